"""Hyper-parameters checked when an optimizer is built, before any tensor is seen.

A 0-d tensor is let through unread: its value may be batched, traced or on a device, and reading it
would be a host sync.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core._words import a_or_an
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = [
    "above_one",
    "falling_power",
    "finite",
    "fraction",
    "function_needed",
    "limit",
    "needed",
    "non_negative",
    "optimizer",
    "other_options",
    "own_state",
    "positive",
    "positive_int",
    "share",
]


def finite(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number."""
    if _is_number(name, value) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")


def non_negative(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number >= 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")


def positive(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number > 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}.")


def fraction(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` lies in [0, 1)."""
    if _is_number(name, value) and not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def share(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` lies in [0, 1]."""
    if _is_number(name, value) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def above_one(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number > 1."""
    if _is_number(name, value) and not (math.isfinite(value) and value > 1):
        raise ValueError(f"{name} must be a finite number > 1, got {value!r}.")


def falling_power(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number <= 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value <= 0):
        raise ValueError(f"{name} must be a finite number <= 0, got {value!r}. Write -0.8 for 0.8.")


def limit(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a number >= 0; infinite is no limit."""
    if _is_number(name, value) and not value >= 0:
        raise ValueError(f"{name} must be a number >= 0, got {value!r}.")


def positive_int(name: str, value: int, at_least: int = 1) -> None:
    """Raise unless `value` is a whole number of updates, `at_least` or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} counts updates: it must be an int, got {value!r}.")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}.")


def optimizer(wrapper: str, inner: object) -> None:
    """Raise unless `inner` is something that `wrapper` can go around."""
    if not isinstance(inner, GradientTransformation):
        raise TypeError(
            f"`{wrapper}` goes around an optimizer such as `optim.adamw(1e-3)`, its first argument, and "
            f"found {a_or_an(type(inner).__name__)}."
        )


def needed(algorithm: str, params: PyTree | None) -> PyTree:
    """The parameters, or the error that says who needs them."""
    if params is None:
        raise ValueError(
            f"`{algorithm}` reads the parameters and got none: call `update(grads, state, params)`."
        )
    return params


def own_state(algorithm: str, kind: type, state: object, without: Sequence[str] = ()) -> None:
    """Raise unless `state` is one that the algorithm's own `init` or `update` has returned.

    `without` names the fields that are `()` at the algorithm's options.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"`{algorithm}` goes on from its own {kind.__name__}, and was handed "
            f"{a_or_an(type(state).__name__)}: the state of another optimizer, or the pair that "
            "`update` returned. Write `state = optimizer.init(params)` and `updates, state = "
            "optimizer.update(grads, state, params)`; with `make_steps`, start from the `init_state` "
            "that it returned together with this `train_step`."
        )

    for name in without:
        value = getattr(state, name)
        if not isinstance(value, tuple) or value:
            raise other_options(algorithm, f"a `{name}`, for which it has no use")


def other_options(algorithm: str, difference: str) -> ValueError:
    """The error that says how a state differs from those that the algorithm makes at its options."""
    return ValueError(
        f"`{algorithm}` was handed the state of an optimizer with other options: it has {difference}. "
        "Give the optimizer the options of the one that made the state, or start from its own "
        "`init(params)`."
    )


def function_needed(
    algorithm: str, name: str, value: Callable[[PyTree], Any] | None
) -> Callable[[PyTree], Any]:
    """The function of the parameters, or the error that says who calls it."""
    if not callable(value):
        raise ValueError(
            f"`{algorithm}` calls `{name}` at other parameters and got {value!r}. Steps made by "
            f"`ftrain.make_steps` hand it in; by hand write `update(grads, state, params, "
            f"{name}=...)`, a pure function of the parameters alone."
        )
    return value


def _is_number(name: str, value: Hyperparameter) -> bool:
    if isinstance(value, torch.Tensor):
        if value.ndim or not value.is_floating_point():
            raise TypeError(
                f"{name} is a tensor of shape {tuple(value.shape)} and dtype {value.dtype}; it "
                "must be a number or a 0-d floating tensor. For many values, `torch.vmap` over it."
            )
        return False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}.")
    return True
