"""Subjects that a new process imports: correct steps, and steps with faults that only it shows."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

import ftrain
from ftrain import optim


def loss_fn(model: Any, batch: Any) -> Any:
    return (model(batch["x"]) - batch["y"]).square().mean()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))


STEPS = ftrain.make_steps(model, loss_fn, optim.adam(1e-2))

ONCE: dict[str, Any] = {}


def forgets(state: Any, batch: Any) -> Any:
    """Keep the first batch for the whole run, as a lazily computed statistic would be."""
    mean = ONCE.setdefault("mean", batch.mean())
    return {"w": state["w"] - 0.1 * (batch - mean)}, {}


def by_hash(state: Any, batch: Any) -> Any:
    """Scale by a hash that differs between processes."""
    return {"w": state["w"] + (hash("layer.weight") % 1000)}, {}


def fails(state: Any, batch: Any) -> Any:
    """Raise in any process but that of the tests."""
    if "pytest" not in sys.modules:
        raise RuntimeError("a file is missing")
    return {"w": state["w"] + 1}, {}
