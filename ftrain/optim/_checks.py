"""Checks of hyper-parameters when an optimizer is built, before any tensor is seen.

A 0-d tensor passes unread: its value may be batched, traced or on a device, and reading it would be
a host sync.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ftrain.core._words import a_or_an
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = [
    "above_one",
    "at_least_zero",
    "closed_fraction",
    "falling_power",
    "finite",
    "fraction",
    "function_needed",
    "non_negative",
    "optimizer",
    "positive",
    "positive_int",
]


def finite(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number."""
    if _is_number(name, value) and not math.isfinite(value):
        raise _out_of_range(name, "a finite number", value)


def non_negative(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number >= 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value >= 0):
        raise _out_of_range(name, "a finite number >= 0", value)


def positive(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number > 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value > 0):
        raise _out_of_range(name, "a finite number > 0", value)


def fraction(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is in [0, 1)."""
    if _is_number(name, value) and not 0 <= value < 1:
        raise _out_of_range(name, "a number in [0, 1)", value)


def closed_fraction(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is in [0, 1]."""
    if _is_number(name, value) and not 0 <= value <= 1:
        raise _out_of_range(name, "a number in [0, 1]", value)


def above_one(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number > 1."""
    if _is_number(name, value) and not (math.isfinite(value) and value > 1):
        raise _out_of_range(name, "a finite number > 1", value)


def falling_power(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a finite number <= 0."""
    if _is_number(name, value) and not (math.isfinite(value) and value <= 0):
        raise _out_of_range(name, "a finite number <= 0, such as -0.8", value)


def at_least_zero(name: str, value: Hyperparameter) -> None:
    """Raise unless `value` is a number >= 0; infinity means no limit."""
    if _is_number(name, value) and not value >= 0:
        raise _out_of_range(name, "a number >= 0", value)


def positive_int(name: str, value: int, at_least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}. Write an integer.")
    if value < at_least:
        raise _out_of_range(name, f"an integer of at least {at_least}", value)


def optimizer(wrapper: str, inner: object) -> None:
    """Raise unless `inner` is an optimizer that `wrapper` can wrap."""
    if not isinstance(inner, GradientTransformation):
        raise TypeError(
            f"`{wrapper}`: expected an optimizer such as `optim.adamw(1e-3)` as its first argument, got "
            f"{a_or_an(type(inner).__name__)}. Pass an optimizer, not the function that builds it."
        )


def function_needed(
    algorithm: str, name: str, value: Callable[[PyTree], Any] | None
) -> Callable[[PyTree], Any]:
    """Return `value`, a function that the optimizer `algorithm` calls; raise if it is not callable."""
    if not callable(value):
        raise ValueError(
            f"`{algorithm}`: expected `{name}`, a pure function of the parameters alone, got {value!r}. "
            f"Call `update(grads, state, params, {name}=...)`, as steps made by `ftrain.make_steps` do."
        )
    return value


def _is_number(name: str, value: Hyperparameter) -> bool:
    if isinstance(value, torch.Tensor):
        if value.ndim or not value.is_floating_point():
            raise TypeError(
                f"{name}: expected a number or a 0-d floating-point tensor, got shape "
                f"{tuple(value.shape)} and dtype {value.dtype}. For several values use `torch.vmap`."
            )
        return False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name}: expected a number, got {type(value).__name__} {value!r}. Write a Python number."
        )
    return True


def _out_of_range(name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {value!r}. Choose a value in this range.")
