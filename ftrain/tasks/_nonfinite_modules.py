"""Search for the first module with a non-finite value, computed in the graph of a step.

In the forward pass, it is the first module to return a non-finite output for finite inputs, or the loss
function, if the loss is non-finite and there is no such module. If the forward pass is finite, it is the
module whose parameter receives the first non-finite gradient of the backward pass, whose order is the
reverse of that in which modules return.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftrain.core import tree
from ftrain.core._compares_rows import compares_rows, is_declared
from ftrain.core._loss import is_pair
from ftrain.core._model_calls import own_gradients
from ftrain.core._torch_levels import place
from ftrain.core.functional import describe
from ftrain.core.metrics import Mean, Metrics, Sum, as_metrics
from ftrain.tasks.gradient_statistics import module_of

__all__ = ["FORWARD", "LOSS", "nonfinite_modules", "watching_outputs"]

FORWARD, BACKWARD = "nonfinite_output/", "nonfinite_grad/"
#: The name of the loss function among the paths of modules, none of which has parentheses.
LOSS = "(loss)"


def watching_outputs(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loss function with a metric `nonfinite_output/PATH` for each module that it calls.

    The metric is the number of calls of the loss in which the module had finite inputs and a non-finite
    output. The metrics are in the order in which the modules returned, with that of the loss function
    last.

    Raises:
        ValueError: the loss computes its gradients itself, as that of `grad_cache` does.
    """
    if own_gradients(loss_fn) is not None:
        raise ValueError(
            f"first_nonfinite: expected a loss that the step differentiates, got {describe(loss_fn)}, "
            "which computes its gradients itself. Leave first_nonfinite out."
        )

    def watched(model: nn.Module, batch: Any, **more: Any) -> Any:
        with _outputs_of(model) as flags:
            out = loss_fn(model, batch, **more)
        loss, extra = out if is_pair(out) else (out, {})
        metrics = as_metrics(extra, describe(loss_fn))
        total = loss.total if isinstance(loss, Mean) else loss
        if isinstance(total, Tensor):  # the step raises for any other loss
            flags[LOSS] = ~torch.isfinite(total.detach()).all()
        counts = {f"{FORWARD}{path}": Sum(flag.to(torch.int64)) for path, flag in flags.items()}
        return loss, Metrics({**metrics.entries, **counts})

    # Copy the signature of the loss, which may have parameters `key` and `extras`, but not the
    # attributes of a callable object.
    functools.update_wrapper(watched, loss_fn, updated=())
    inner = loss_fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    watched.__qualname__ = getattr(inner, "__qualname__", type(inner).__name__)  # named in messages
    return compares_rows(watched) if is_declared(loss_fn) else watched


@contextlib.contextmanager
def _outputs_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record which modules, called in a `with` block, have finite inputs and a non-finite output."""
    flags: dict[str, Tensor] = {}
    here = place()

    def hook(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if place() != here:  # a flag must not leave the body of a loop
            return
        outputs = _finite(output)
        if outputs is None:
            return
        inputs = _finite((args, kwargs))
        begins = ~outputs if inputs is None else inputs & ~outputs
        flags[path] = flags[path] | begins if path in flags else begins

    handles = [
        module.register_forward_hook(functools.partial(hook, path or "model"), with_kwargs=True)
        for path, module in model.named_modules()
    ]
    try:
        yield flags
    finally:
        for handle in handles:
            handle.remove()


def _finite(values: Any) -> Tensor | None:
    """Return True if all elements of the floating-point tensors are finite; `None` if there are none."""
    tensors = [x.detach() for x in tree.leaves(values) if isinstance(x, Tensor)]
    return _all_finite([x for x in tensors if x.is_floating_point() or x.is_complex()])


def nonfinite_modules(
    entries: Mapping[str, Any], grads: Mapping[str, Tensor], finite: Tensor
) -> dict[str, Any]:
    """Return metrics that mark the module with the first non-finite value, if there is one.

    Args:
        entries: the metrics of a step whose loss is that of `watching_outputs`.
        grads: gradients by name of the parameter.
        finite: bool, 0-d: False if the step has a gradient that is not finite.

    Returns:
        The metrics, with `nonfinite_output/PATH` and `nonfinite_grad/PATH` equal to 1 for the module
        where the first non-finite value occurs, and to 0 for all others.
    """
    kept = {name: metric for name, metric in entries.items() if not name.startswith(FORWARD)}
    order = [name for name in entries if name.startswith(FORWARD)]
    begins = [(entries[name].total > 0) & ~finite for name in order]
    first = _first(begins)
    kept |= {name: Sum(flag.to(torch.int64)) for name, flag in zip(order, first, strict=True)}
    by_module: dict[str, list[Tensor]] = {}
    for name, grad in grads.items():
        by_module.setdefault(module_of(name), []).append(grad)
    places = {name.removeprefix(FORWARD): i for i, name in enumerate(order)}
    # Modules whose forward is not called, and whose parameters are only read, come last.
    backward = sorted(by_module, key=lambda path: -places.get(path, -1))
    is_forward = functools.reduce(torch.logical_or, begins, torch.zeros_like(finite))
    flags = [_all_finite(by_module[path]) for path in backward]
    wrong = [~(finite if flag is None else flag) & ~is_forward & ~finite for flag in flags]
    kept |= {
        f"{BACKWARD}{path}": Sum(flag.to(torch.int64))
        for path, flag in zip(backward, _first(wrong), strict=True)
    }
    return kept


def _all_finite(tensors: list[Tensor]) -> Tensor | None:
    """Return True if all elements are finite; `None` if there are no elements."""
    flags: list[Tensor] = []
    real = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in tensors]
    for x in real:
        if x.numel():
            # Both are NaN if an element is. On a CPU, this takes an eighth of the time of
            # `torch.isfinite(x).all()`.
            low, high = torch.aminmax(x)
            flags.append(torch.isfinite(low) & torch.isfinite(high))
    return functools.reduce(torch.logical_and, flags) if flags else None


def _first(flags: list[Tensor]) -> list[Tensor]:
    """Return a copy of the flags in which every True after the first is False."""
    if not flags:
        return []
    stacked = torch.stack(flags)
    return list((stacked & (stacked.cumsum(0) == 1)).unbind())
