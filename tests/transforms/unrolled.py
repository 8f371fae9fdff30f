"""A small model, its batches and a finite difference, for the tests of differentiated training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.transforms import differentiable


class Net(nn.Sequential):
    """Three inputs, two outputs, with dropout in between."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(p), nn.Linear(4, 2))


def loss_fn(model: Any, batch: Any, extras: Any) -> torch.Tensor:
    """Squared errors, weighted by example (batch) and by output (extras)."""
    errors = (model(batch["x"]) - batch["y"]).square() @ extras["outputs"]
    return ftrain.Mean((batch["weight"] * errors).sum(), batch["weight"].sum())


def steps_of(optimizer: Any, dtype: torch.dtype = torch.float64, **options: Any) -> ftrain.Steps:
    steps = ftrain.make_steps(lambda: Net().to(dtype), loss_fn, optimizer, **options)
    extras = {"outputs": torch.tensor([1.0, 0.5], dtype=dtype)}
    return steps._replace(init_state=lambda seed: steps.init_state(seed).replace(extras=extras))


def batches(k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"x": (k, 5, 3), "y": (k, 5, 2)}
    found = {name: torch.randn(shape, generator=g, dtype=dtype) for name, shape in shapes.items()}
    return {**found, "weight": torch.rand((k, 5), generator=g, dtype=dtype) + 0.5}


def validation(
    steps: ftrain.Steps, train: Any, rate: float, k: int, seed: int = 0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a loss after training, of shifts of rate, parameters, extras and batches: shape (4,)."""
    state, data = steps.init_state(seed), batches(k, seed)
    g = torch.Generator().manual_seed(seed + 1)
    slopes = tree.map(
        lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype),
        (state.params, state.extras, data),
    )

    def loss(shift: torch.Tensor) -> torch.Tensor:
        params, extras, moved = (
            tree.map(lambda x, d, s=s: x + s * d, x, d)
            for x, d, s in zip((state.params, state.extras, data), slopes, shift[1:], strict=True)
        )
        opt_state = state.opt_state
        if rate:
            opt_state = optim.set_hyperparams(opt_state, learning_rate=rate * (1 + shift[0]))
        start = state.replace(params=params, extras=extras, opt_state=opt_state)
        last, metrics = train(start, moved)
        first = tree.map(lambda x: x[0], data)
        final: torch.Tensor = differentiable(steps.eval_step)(last, first)["loss"]
        return final + metrics["loss"].sum()

    return loss


def difference(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, h: float) -> Any:
    """Return the gradient of `f` by central differences of fourth order."""
    found = torch.zeros_like(x)
    with torch.no_grad():
        for i in range(len(x)):
            e = torch.zeros_like(x)
            e[i] = h
            near, far = f(x + e) - f(x - e), f(x + 2 * e) - f(x - 2 * e)
            found[i] = (8 * near - far) / (12 * h)
    return found


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())
