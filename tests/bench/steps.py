"""Steps that the tests measure, and functions that build them as `ftrain bench FILE.py:NAME` calls."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim


def pure(batch_size: int = 8, precision: Any = "32-true", accumulate: int = 1) -> Any:
    """Return a training step of ftrain, its state and a batch."""
    init_state, train_step, _ = ftrain.make_steps(
        lambda: nn.Linear(6, 3),
        lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"]),
        optim.adam(1e-3),
        precision=precision,
        accumulate=accumulate,
    )
    batch = {"x": torch.ones(batch_size, 6), "y": torch.zeros(batch_size, 3)}
    return train_step, init_state(0), batch


def by_hand(batch_size: int = 8) -> Any:
    """Return a pure step on a dict of tensors that does not use ftrain."""

    def step(params: Any, batch: Any) -> Any:
        x, y = batch
        error = x @ params["w"] - y
        return {"w": params["w"] - 0.1 * x.T @ error / len(x)}, error.square().mean()

    return step, {"w": torch.zeros(6)}, (torch.ones(batch_size, 6), torch.ones(batch_size))


def plain(batch_size: int = 8) -> Any:
    """Return a step that updates a model in place, and a batch."""
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(batch["input_ids"]).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        return loss.detach()

    return step, {"input_ids": torch.ones(batch_size, 6)}


def fails() -> Any:
    """Return a step that raises."""

    def step(state: Any, batch: Any) -> Any:
        raise ValueError("the step is broken")

    return step, torch.zeros(3), torch.ones(3)


def wrong() -> Any:
    """Return the functions of `make_steps` instead of a step."""
    return ftrain.make_steps(
        nn.Linear(6, 3), lambda model, batch: model(batch).sum(), optim.sgd(0.1)
    )


def anything(**settings: Any) -> Any:
    """Return a step, whatever settings are passed."""
    return (lambda w, x: w + x.mean(0)), torch.zeros(3), torch.ones(settings["n"], 3)


not_a_function = 3
