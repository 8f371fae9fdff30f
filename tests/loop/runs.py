"""A small run for tests of the loop: an MLP with dropout on 64 rows, not compiled."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import data, optim, tree
from ftrain.loop import BatchEnd, EvaluateEnd, Stop, Trainer, WindowEnd

ROWS = 60


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 3))


def loss_fn(module: Any, batch: Any) -> Any:
    logits = module(batch["x"])
    n = torch.tensor(float(len(batch["y"])))
    loss = F.cross_entropy(logits, batch["y"], reduction="sum")
    return ftrain.Mean(loss, n), {
        "accuracy": ftrain.Mean((logits.argmax(-1) == batch["y"]).sum(), n)
    }


@functools.cache
def rows(n: int = ROWS, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g)
    return {"x": x, "y": x[:, :3].argmax(1)}


def steps(**options: Any) -> ftrain.Steps:
    schedule = optim.warmup_cosine(1e-2, 5, 100)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(schedule))
    return ftrain.make_steps(model, loss_fn, optimizer, **options)


STEPS = steps()


def train_data(batch: int = 8, **options: Any) -> data.Loader:
    return data.Loader(rows(), batch, seed=3, **options)


def eval_data() -> data.Loader:
    return data.Loader(rows(seed=1), 16, shuffle=False)


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        options.pop("steps", STEPS), callbacks, **{"compile": False, "log_every": 3, **options}
    )


def fit(made: Trainer, seed: int = 0, **options: Any) -> Any:
    return made.fit(STEPS.init_state(seed), train_data(), eval_data(), **options)


def digest(result: Any) -> str:
    return tree.digest(result.state)


class Counts:
    """A callback whose state counts its events and sums the logged values."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after

    def init(self) -> Any:
        return {"received": {}, "losses": [], "evaluations": 0}

    def __call__(self, state: Any, event: Any) -> Any:
        kind = type(event).__name__
        if kind in ("TrainBegin", "TrainEnd", "Saved"):
            return state, ()
        received = {**state["received"], kind: state["received"].get(kind, 0) + 1}
        losses, evaluations = state["losses"], state["evaluations"]
        if isinstance(event, WindowEnd):
            losses = [*losses, event.values["loss"]]
        actions = []
        if isinstance(event, EvaluateEnd):
            evaluations += 1
            if evaluations == self.stop_after:
                actions.append(Stop("enough"))
        return {"received": received, "losses": losses, "evaluations": evaluations}, actions


class Interrupts:
    """A callback that sends this process a signal at the n-th event of a kind."""

    on_error = "raise"

    def __init__(self, number: int, kind: type, n: int) -> None:
        self.number, self.kind, self.n = number, kind, n
        self.listens = (kind,)
        self.seen = 0

    def init(self) -> Any:
        return None

    def __call__(self, state: Any, event: Any) -> Any:
        import os

        self.seen += 1
        if self.seen == self.n:
            os.kill(os.getpid(), self.number)
        return state, ()


class Requests:
    """A callback that requests actions at the n-th event of a kind."""

    def __init__(self, action: Any, kind: Any = BatchEnd, n: int = 1) -> None:
        self.action, self.n, self.listens = action, n, (kind,)

    def init(self) -> int:
        return 0

    def __call__(self, state: int, event: Any) -> Any:
        action = self.action(event) if callable(self.action) else self.action
        return state + 1, [action] if state + 1 == self.n else ()

    @classmethod
    def once(cls, action: Any, **options: Any) -> Trainer:
        return trainer(cls(action), **options)
