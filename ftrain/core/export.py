"""Export of a state's weights to an ordinary module, and loading of weights into a state.

    module = ftrain.export(state, model)
    state = ftrain.load_weights(state, model, module)

The module can be saved and exported with its own methods and those of torch; see `docs/exporting.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ftrain.core._checks import check_state
from ftrain.core._structure import Tensors, named_tensors
from ftrain.core._words import a_or_an, did_you_mean, kind
from ftrain.core.functional import Bound, bind
from ftrain.core.state import TrainState

__all__ = ["export", "load_weights"]


def export(
    state: TrainState,
    model: nn.Module | Callable[[], nn.Module] | Bound,
    *,
    params: Mapping[str, torch.Tensor] | None = None,
    forward: Callable[..., Any] | None = None,
) -> nn.Module:
    """Return an ordinary module with copies of a state's weights, in eval mode.

    The module is of the model's own class: its `state_dict()`, a `save_pretrained` of Hugging Face,
    `torch.export.export` and `torch.onnx.export` work as for any other module. Tied weights are tied.
    Low-rank adapters of `tasks.lora` are merged into the weights. The outputs of the module are those of
    the model in `eval_step`; for a run in mixed precision, only under the same autocast.

    Args:
        state: the trained state.
        model: the model that `make_steps` received: a module, a function that builds one, or a bound
            model.
        params: other values for the parameters, such as an average; they are cast to the dtypes of
            `state.params`.
        forward: a function `(module, *args) -> outputs`, to export an evaluation. The result is then a
            module that calls this function, and has the model's module as its attribute `model`.

    Returns:
        A new module, which shares no memory with the state. The flags `requires_grad` of its parameters
        are those of the model.

    Raises:
        TypeError: `state` is not a `TrainState`, a value of `params` is not a tensor, or `forward` is
            not callable.
        ValueError: the state belongs to another model; the message names the first tensor that differs.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> model = nn.Linear(3, 2)
        >>> steps = ftrain.make_steps(model, lambda model, x: model(x).sum(), optim.sgd(0.1))
        >>> export(steps.init_state(0), model)
        Linear(in_features=3, out_features=2, bias=True)
    """
    check_state(state)
    bound = bind(model)
    expected = list(bound.dtypes())
    _require_names("state.params", state.params, expected, bound)
    values = state.params
    if params is not None:
        _require_names("params", params, expected, bound)
        for name, value in params.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"params[{name!r}]: expected a tensor, got {a_or_an(type(value).__name__)}. Convert "
                    "it: torch.as_tensor(...)."
                )
        values = {name: params[name].to(old.dtype) for name, old in state.params.items()}
    if forward is not None and not callable(forward):
        raise TypeError(
            f"forward: expected a function (module, *args) -> outputs, got {forward!r}. Write "
            "forward=lambda model, x: model(x).softmax(-1)."
        )
    module = bound.module(values, state.buffers)
    return module if forward is None else _Evaluation(module, forward).eval()


def load_weights(
    state: TrainState,
    model: nn.Module | Callable[[], nn.Module] | Bound,
    weights: nn.Module | Mapping[str, torch.Tensor],
) -> TrainState:
    """Return the state with the weights of a module or state dict; the inverse of `export`.

    Parameters and buffers are replaced by copies, in the floating-point dtypes and on the devices of the
    state. Step, key, `extras` and the optimizer's state are those of `state`: pass a new state to begin
    a new run. Buffers that a module does not save (`persistent=False`) may be missing in a state dict,
    and then keep their values.

    Args:
        state: a state of the model.
        model: the model that `make_steps` received.
        weights: a module of the model's structure, or its `state_dict()`.

    Raises:
        TypeError: `weights` is neither a module nor a mapping of tensors; the model has adapters.
        ValueError: a tensor is missing, has another shape, is sparse or has no values (device `"meta"`),
            has an unknown name, or has different values under the two names of a tied weight; the
            message names the first such tensor.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> model, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> steps = ftrain.make_steps(model, lambda model, x: model(x).sum(), optim.sgd(0.1))
        >>> state = load_weights(steps.init_state(0), model, other)
        >>> torch.equal(state.params["weight"], other.weight)
        True
    """
    check_state(state)
    bound = bind(model)
    root = bound.skeleton.module
    name = type(root).__name__
    if bound.dtypes().keys() != set(bound.skeleton.trainable):
        raise TypeError(
            f"model: expected a model without adapters, got {bound}. Load the weights into its base "
            "model before you add adapters: tasks.lora(module, ...)."
        )
    _require_names("state.params", state.params, bound.skeleton.trainable, bound)
    _require_names("state.buffers", state.buffers, bound.skeleton.carried, bound)
    first = {id(tensor): each for each, tensor in named_tensors(root).items()}
    aliases = {alias: first[id(t)] for alias, t in _every_name(root)}
    given = _values(weights)
    found: Tensors = {}
    for alias, value in given.items():
        if alias not in aliases:
            raise ValueError(
                f"weights: expected names of parameters and buffers of {name}, got {alias!r}."
                f"{did_you_mean(alias, aliases)} Pass the weights of a model of the same structure."
            )
        own = aliases[alias]
        old = state.params[own] if own in state.params else state.buffers[own]
        if not isinstance(value, torch.Tensor) or not _fits(value, old):
            raise ValueError(
                f"weights: expected {kind(old)} for {alias!r}, as in the state, got {kind(value)}. Pass "
                "the weights of a model of the same sizes."
            )
        if value.layout != torch.strided or value.is_meta:
            got = "one without values" if value.is_meta else f"layout {value.layout}"
            raise ValueError(
                f"weights: expected a dense tensor with values for {alias!r}, got {got}. Load the "
                "weights into the module first, or call to_dense()."
            )
        new = value.detach().to(device=old.device, dtype=old.dtype)
        if own in found and not _are_equal(found[own], new):
            raise ValueError(
                f"weights: expected one value for the tied weights {own!r} and {alias!r}, got two. "
                "Untie them in the model, or leave one of them out."
            )
        found[own] = new
    saved = {aliases[alias] for alias in root.state_dict() if alias in aliases}
    for own in (*state.params, *state.buffers):
        if own not in found and own in saved:
            raise ValueError(
                f"weights: expected every tensor of {name}, got none for {own!r}. Pass the weights of a "
                "model of the same structure, or copy those that match with ftrain.checkpoint.restore."
            )

    def replaced(olds: Tensors) -> Tensors:
        return {
            each: torch.empty_like(old).copy_(found[each]) if each in found else old.clone()
            for each, old in olds.items()
        }

    return state.replace(params=replaced(state.params), buffers=replaced(state.buffers))


class _Evaluation(nn.Module):
    """Module whose forward calls a given function with another module and the inputs."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._function = model, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return `function(module, *inputs)`."""
        return self._function(self.model, *args, **kwargs)


def _values(weights: Any) -> Mapping[str, Any]:
    if isinstance(weights, nn.Module):
        return dict(_every_name(weights))
    if isinstance(weights, Mapping):
        return weights
    raise TypeError(
        "weights: expected a module or a mapping of names to tensors, got "
        f"{a_or_an(type(weights).__name__)}. Pass module.state_dict(), or the module."
    )


def _every_name(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return all parameters and buffers, with tied ones under each of their names."""
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _fits(value: torch.Tensor, old: torch.Tensor) -> bool:
    floating = value.is_floating_point() and old.is_floating_point()
    return value.shape == old.shape and (floating or value.dtype == old.dtype)


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _require_names(what: str, given: Any, expected: list[str], bound: Bound) -> None:
    """Raise unless a dict of tensors has the expected names; name the first difference."""
    names = set(given) if isinstance(given, Mapping) else set()
    for each in sorted(names.symmetric_difference(expected)):
        got = (
            "no such tensor."
            if each in expected
            else f"it in addition.{did_you_mean(each, expected)}"
        )
        raise ValueError(
            f"{what}[{each!r}]: expected the {len(expected)} tensors of {bound}, got {got} The state "
            "belongs to another model: pass the one that make_steps received."
        )
