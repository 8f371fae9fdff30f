"""Learning rates in the log, for any step and optimizer.

Read next: `ftrain/core/commit.py`, where a step of `ftrain.make_steps` reports its learning rates.
"""

from __future__ import annotations

from typing import Any

from ftrain.core import tree
from ftrain.loop.callback import Action, Log
from ftrain.loop.events import Event, TrainBegin, WindowEnd

__all__ = ["LearningRateMonitor"]


class LearningRateMonitor:
    """Add every `learning_rate` in the state to the training rows of the log.

    A step of `ftrain.make_steps` reports its learning rates already; this callback is for custom steps
    that do not. Several rates are distinguished by their paths,
    `learning_rate['backbone'].learning_rate`. The rates are read only at the end of a window.

    Raises:
        ValueError: the state holds no learning rate; raised at the start of the run.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.5))
        >>> def step(state, batch):
        ...     return steps.train_step(state, batch)[0], {"loss": 0.0}
        >>> trainer = loop.Trainer(step, [LearningRateMonitor()], compile=False, log_every=1)
        >>> data = [torch.ones(4, 3)]
        >>> events = trainer.events(steps.init_state(0), data, epochs=1, kinds=(loop.Logged,))
        >>> next(events).values
        {'loss': 0.0, 'learning_rate': 0.5}
    """

    listens = (TrainBegin, WindowEnd)
    on_error = "warn"

    def init(self) -> None:
        """Return `None` as the state of this callback: the training state holds the rates."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Log the learning rates that the row does not contain yet."""
        found = _rates(event.state)
        if isinstance(event, WindowEnd):
            missing = {name: rate for name, rate in found.items() if name not in event.values}
            return None, ((Log(missing),) if missing else ())
        if not found:
            raise ValueError(
                "LearningRateMonitor: expected a training state with a field `learning_rate`, got one "
                "without. Use an optimizer of ftrain.optim, whose state has it."
            )
        return None, ()


def _rates(state: Any) -> dict[str, Any]:
    held = getattr(state, "opt_state", state)
    rates = {
        path: rate
        for path, rate in tree.find(held, "learning_rate").items()
        if path.endswith(".learning_rate") or held is state
    }
    if len(rates) == 1:
        return {"learning_rate": next(iter(rates.values()))}
    return {f"learning_rate{path}": rate for path, rate in rates.items()}
