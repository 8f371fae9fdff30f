"""Hyper-parameters as tensors in the state, which can be read, set between steps and vmapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._words import did_you_mean
from ftrain.optim import _checks
from ftrain.optim._checked import checked, other_options
from ftrain.optim._leaves import first_device, parameters
from ftrain.optim._rate import double
from ftrain.optim._starting_values import taken
from ftrain.optim.get import locate
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["HyperparamsState", "set_hyperparams", "with_hyperparams"]


class HyperparamsState(NamedTuple):
    """State of `with_hyperparams`.

    Attributes:
        hyperparams: name -> float64, 0-d: the values of the next update.
        inner: the optimizer's own state.
    """

    hyperparams: dict[str, torch.Tensor]
    inner: PyTree


def with_hyperparams(
    build: Callable[..., GradientTransformation], **hyperparams: Any
) -> GradientTransformation:
    """Return an optimizer whose hyper-parameters are tensors in its state, not fixed constants.

    It is `build(**hyperparams)`, with every number stored in the state in float64, so that eager updates
    equal those of the plain optimizer to the bit. Changing a value (`set_hyperparams`) does not
    recompile a step; states with stacked values (`torch.vmap`) make a sweep.

    Args:
        build: the constructor of the optimizer, such as `optim.adamw`.
        **hyperparams: its arguments. Numbers and 0-d tensors go into the state; all others (schedules,
            masks, bools) are passed to `build` unchanged. An integer count (`k=5`) cannot be stored:
            bind it, `functools.partial(optim.lookahead, k=5)`.

    Returns:
        A transformation with a `HyperparamsState`.

    Raises:
        ValueError: a number is out of its range for `build`.
        TypeError: `build` does not have such an argument, or none of them is a number.

    Example:
        >>> from ftrain import optim
        >>> optimizer = with_hyperparams(optim.sgd, learning_rate=0.1, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = set_hyperparams(optimizer.init(params), learning_rate=0.5)
        >>> optimizer.update(params, state, params)[0]
        {'w': tensor([-0.5000])}
    """
    numbers = {name: value for name, value in hyperparams.items() if _is_number(value)}
    rest = {name: value for name, value in hyperparams.items() if name not in numbers}
    if not numbers:
        raise TypeError(
            "hyperparams: expected at least one number to keep in the state, got 0. Write "
            "`with_hyperparams(optim.adamw, learning_rate=1e-3, weight_decay=0.1)`."
        )
    build(**hyperparams)  # raises for a value out of range before any tensor exists

    def init(params: PyTree) -> HyperparamsState:
        leaves, _ = parameters(params)
        device = first_device(leaves)
        start = dict(numbers)
        for given, rows in taken(list(numbers)):
            for row in rows:
                build(**{**hyperparams, **row})
            start.update(given)
        values = {name: double(value, device).clone() for name, value in start.items()}
        return HyperparamsState(values, build(**values, **rest).init(params))

    def update(
        grads: PyTree, state: HyperparamsState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, HyperparamsState]:
        if state.hyperparams.keys() != numbers.keys():
            names = f"{', '.join(state.hyperparams)} instead of {', '.join(numbers)}"
            raise other_options("with_hyperparams", names)
        inner = build(**state.hyperparams, **rest)
        updates, new = inner.update(grads, state.inner, params, **extra)
        kept = {name: value.clone() for name, value in state.hyperparams.items()}
        return updates, HyperparamsState(kept, new)

    return checked("with_hyperparams", HyperparamsState, init, update)


def set_hyperparams(state: PyTree, *within: str, **values: Hyperparameter) -> PyTree:
    """Return the state with new values of hyper-parameters kept by `with_hyperparams`.

    Some values are read by `init` alone, and setting them has no effect: the learning rate of `rprop`
    (its first step size), `b1` of the schedule-free methods, `d0` of `prodigy`, and
    `initial_accumulator_value`. Pass these to `with_hyperparams`, or sweep over them.

    Args:
        state: an optimizer's state that holds a `HyperparamsState` somewhere.
        *within: names of enclosing entries, which select one of several hyper-parameters of the same
            name, such as a group of `partition`.
        **values: numbers or tensors; for a vmapped state a number for all rows, or a tensor of rows. A
            tensor that requires a gradient stays connected: its hypergradient goes through the updates.

    Returns:
        A new state; the old one stays as it was.

    Raises:
        LookupError: no hyper-parameter has the name, or `within` has an unknown name.
        ValueError: several hyper-parameters have the name, a number is out of the range that the
            optimizers of ftrain allow for its name, or a tensor has another shape.

    Example:
        >>> from ftrain import optim
        >>> optimizer = with_hyperparams(optim.adamw, learning_rate=1e-3, weight_decay=0.1)
        >>> state = set_hyperparams(optimizer.init({"w": torch.ones(2)}), weight_decay=0.0)
        >>> optim.get(state, "hyperparams")["weight_decay"]
        tensor(0., dtype=torch.float64)
    """
    prefix = locate(state, *within)[0] if within else ""
    leaves, treedef = tree.flatten(state)
    paths = tree.paths(state)
    for name, value in values.items():
        where = [p for p in paths if p.startswith(prefix) and p.endswith(_entry(name))]
        if len(where) != 1:
            raise _not_one(name, where, [p for p in paths if ".hyperparams[" in p])
        index = paths.index(where[0])
        leaves[index] = _replaced(name, leaves[index], value)
    return tree.unflatten(treedef, leaves)


def _entry(name: str) -> str:
    return f".hyperparams[{name!r}]"


def _not_one(name: str, where: list[str], there_are: list[str]) -> Exception:
    if where:
        listed = "\n".join(f"  {path}" for path in where)
        return ValueError(
            f"{len(where)} hyper-parameters in this state are called {name!r}:\n{listed}\nPass the "
            f'name of an enclosing entry, `optim.set_hyperparams(state, "<holder>", {name}=...)`.'
        )
    listed = ", ".join(there_are) or "none; `with_hyperparams` keeps them"
    names = [path.rpartition(".hyperparams[")[2].strip("]'\"") for path in there_are]
    meant = did_you_mean(_OTHER_NAMES.get(name, name), names)
    return LookupError(
        f"no hyper-parameter in this state is called {name!r}.{meant} It has: {listed}."
    )


#: Names used by torch or in practice, and the names of ftrain.
_OTHER_NAMES = {"lr": "learning_rate", "rate": "learning_rate", "wd": "weight_decay"}


def _replaced(name: str, old: torch.Tensor, value: Hyperparameter) -> torch.Tensor:
    check = _CHECKS.get(name, _checks.finite)
    if not isinstance(value, torch.Tensor):
        check(name, value)
    elif value.shape not in (old.shape, ()):
        raise ValueError(
            f"{name}: expected a number or a tensor of shape {tuple(old.shape)}, as in this state, got "
            f"shape {tuple(value.shape)}. For one value per row, stack states by "
            "`torch.vmap(optimizer.init)`."
        )
    return double(value, old.device).expand(old.shape).clone()


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float, torch.Tensor))


_FRACTIONS = "b1 b2 b3 momentum decay adam_b1 adam_b2 eta_minus"
_POSITIVES = "d d0 d_coef trust_coefficient clip_threshold max_step_size"
_NON_NEGATIVES = """
    learning_rate adam_learning_rate weight_decay adam_weight_decay momentum_decay
    eps adam_eps eps1 eps2 eps_root alpha lambd rho eta gamma t0
    min_step_size weight_lr_power initial_accumulator_value
"""

# The checks of the constructors. A state does not record its constructor: if two constructors check one
# name differently, the weaker check is used (`rho` is a distance in `sam`, a fraction in `adadelta`).
_CHECKS: dict[str, Callable[[str, Hyperparameter], None]] = {
    **dict.fromkeys(_FRACTIONS.split(), _checks.fraction),
    **dict.fromkeys(_POSITIVES.split(), _checks.positive),
    **dict.fromkeys(_NON_NEGATIVES.split(), _checks.non_negative),
    "beta2_decay": _checks.falling_power,
    "dampening": _checks.closed_fraction,
    "eta_plus": _checks.above_one,
    "max_norm": _checks.at_least_zero,
}
