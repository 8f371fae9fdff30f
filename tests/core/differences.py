"""Finite-difference derivatives with an error estimate, and functions to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ftrain
from ftrain.core import tree

W = torch.tensor([0.3, -0.7], dtype=torch.float64)
RATE = torch.tensor(0.1, dtype=torch.float64)
MODES = pytest.mark.parametrize("mode", ["eager", "compiled"])


def quartic(p: torch.Tensor) -> torch.Tensor:
    return (p**4).sum()


def run(f: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return the function itself or, in the mode "compiled", its compiled form."""
    return f if mode == "eager" else ftrain.compile(f, backend="eager")


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gradient function of `f` with respect to its first argument."""
    return lambda *args: ftrain.value_and_grad(f)(*args)[1]


def differences(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of a scalar function of float64 values, and a bound for its error.

    Ridders' method (Numerical Recipes 5.7): central differences with steps h, h/1.4, ..., extrapolated
    to 0 by a Neville tableau in h². The error is the smallest difference between neighbours in it, plus
    the rounding of the function's values at the last step.
    """
    assert x.dtype == torch.float64
    flat = x.detach().reshape(-1)
    grads, errors = torch.zeros_like(flat), torch.zeros_like(flat)
    for i in range(flat.numel()):
        grads[i], errors[i] = _ridders(f, x, i)
    return grads.view_as(x), errors.view_as(x)


def _ridders(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, i: int
) -> tuple[float, float]:
    def at(delta: float) -> float:
        moved = x.detach().clone()
        moved.view(-1)[i] += delta
        return float(f(moved).detach())

    step, shrink, rows = 0.02, 1.4, 6
    scale = max(abs(at(step)), abs(at(-step)))
    table = [[(at(step) - at(-step)) / (2 * step)]]
    best, error = table[0][0], float("inf")
    for n in range(1, rows):
        step /= shrink
        row = [(at(step) - at(-step)) / (2 * step)]
        factor = shrink**2
        for k in range(n):
            row.append((row[k] * factor - table[-1][k]) / (factor - 1))
            factor *= shrink**2
            distance = max(abs(row[-1] - row[-2]), abs(row[-1] - table[-1][k]))
            if distance <= error:
                best, error = row[-1], distance
        table.append(row)
    # 50 times the rounding: extrapolation adds differences with weights of up to 2.
    return best, error + 50 * 2.3e-16 * scale / step


def assert_derivative(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, found: torch.Tensor
) -> None:
    """Raise unless `found` is the gradient of `f` at `x`, within ten times the estimated error."""
    expected, error = differences(f, x)
    off = (found - expected).abs() - 10 * error
    assert bool((off <= 0).all()), f"{found} is not {expected} ± {error}"


def assert_gradients(
    f: Callable[..., torch.Tensor], args: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]
) -> None:
    """Raise unless `found` holds the gradients of `f(*args)` with respect to each argument."""
    for i, (x, grad) in enumerate(zip(args, found, strict=True)):
        assert_derivative(lambda v, i=i: f(*args[:i], v, *args[i + 1 :]), x, grad)


def is_close(a: object, b: object, rtol: float = 1e-9) -> bool:
    """Return True if two trees of float64 values are equal up to rounding, in the L2 norm."""
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    off = sum(float((x - y).abs().square().sum()) for x, y in pairs)
    size = sum(float(y.abs().square().sum()) for _, y in pairs)
    return off <= rtol**2 * (size + 1e-6)
