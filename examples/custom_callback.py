"""Two custom callbacks: one that keeps a state and stops the run, and a plain class with methods.

    python examples/custom_callback.py

A callback is a value: `(its state, event) -> (its state, actions)`. What it remembers is in the state
that it returns, so it is in every checkpoint, and a resumed run decides as the undisturbed one would.

Read next: `own_loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

import ftrain
from ftrain import data, optim
from ftrain.loop import Action, EpochEnd, EvaluateEnd, Event, FitResult, Log, Stop, Trainer


class StopWhenGood:
    """Stop the run when `times` consecutive evaluations have a loss below `loss`."""

    listens = (EvaluateEnd,)

    def __init__(self, loss: float, times: int = 2) -> None:
        self.loss, self.times = loss, times

    def init(self) -> int:
        """Return the initial state: the number of consecutive good evaluations, 0."""
        return 0

    def __call__(self, state: int, event: Event) -> tuple[int, Iterable[Action]]:
        assert isinstance(event, EvaluateEnd)
        state = state + 1 if event.result.loss < self.loss else 0
        done = [Stop(f"{state} evaluations below {self.loss}")] if state == self.times else []
        return state, done


class WeightNorm:
    """Log the norm of all weights at the end of each epoch; a plain class, not a `Callback`."""

    def on_epoch_end(self, event: EpochEnd) -> Log:
        """Return an action that logs the norm; its tensor is read only when the row is written."""
        return Log({"weight_norm": optim.global_norm(event.state.params)})


def run() -> FitResult:
    """Fit a line until two consecutive evaluations are good."""
    x = torch.linspace(-1, 1, 64)[:, None]
    points = {"x": x, "y": 2 * x + 1}

    def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        error: torch.Tensor = model(batch["x"]) - batch["y"]
        return error.square().mean()

    steps = ftrain.make_steps(lambda: nn.Linear(1, 1), loss_fn, optim.adam(0.05))
    trainer = Trainer(steps, [StopWhenGood(loss=0.01), WeightNorm()], compile=False)
    loader = data.Loader(points, batch_size=16, seed=0)
    return trainer.fit(steps.init_state(0), loader, eval_data=[points], epochs=100)


if __name__ == "__main__":
    print(run())
