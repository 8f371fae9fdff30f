"""Hand-written training loops: over the trainer's events, or without a trainer.

    python examples/own_loop.py

Both loops below do the same steps on the same batches and end with the same bits.

Read next: `resume.py`.
"""

from __future__ import annotations

import torch
from torch import nn

import ftrain
from ftrain import data, optim, tree
from ftrain.loop import EpochEnd, Stop, TrainEnd, Trainer

x = torch.linspace(-1, 1, 64)[:, None]
LOADER = data.Loader({"x": x, "y": x.square()}, batch_size=16, seed=0)


def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared error."""
    error: torch.Tensor = model(batch["x"]) - batch["y"]
    return error.square().mean()


def model() -> nn.Module:
    """Return a small network."""
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))


STEPS = ftrain.make_steps(model, loss_fn, optim.adam(0.01))


def without_a_trainer(epochs: int) -> ftrain.TrainState:
    """Train with the step functions alone, in a loop that you control line by line."""
    state = STEPS.init_state(0)
    for batch, cursor in LOADER.batches(epochs=epochs):
        state, metrics = STEPS.train_step(state, batch)
        if cursor.position == 0:  # an epoch is over; only now is a number waited for
            print(f"epoch {cursor.epoch}: loss {metrics['loss']:.4f}")
    return state


def with_its_events(epochs: int) -> ftrain.TrainState:
    """Train in a loop over the events of a `Trainer`, which does the steps, logs and checkpoints."""
    events = Trainer(STEPS, compile=False).events(
        STEPS.init_state(0), LOADER, epochs=1000, kinds=(EpochEnd, TrainEnd)
    )
    for epoch, event in enumerate(events, 1):
        assert isinstance(event, EpochEnd)
        print(f"epoch {epoch}: mean loss {event.result.loss:.4f}")
        if epoch == epochs:
            break
    end = events.send([Stop("that is enough")])  # what a callback could ask for, sent back
    assert isinstance(end, TrainEnd)
    state: ftrain.TrainState = end.result.state
    return state


if __name__ == "__main__":
    first, second = without_a_trainer(3), with_its_events(3)
    print("the same bits:", tree.digest(first) == tree.digest(second))
