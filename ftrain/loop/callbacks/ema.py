"""Evaluation of averaged weights, in addition to the evaluation of the current weights."""

from __future__ import annotations

from typing import Any

from ftrain import optim
from ftrain.core import tree
from ftrain.core.state import TrainState
from ftrain.loop.callback import Action, Evaluate
from ftrain.loop.events import EvaluateEnd, Event

__all__ = ["EMAEvaluation", "averaged"]


class EMAEvaluation:
    """Evaluate the optimizer's average of the parameters after each evaluation, and log `ema/loss`.

    The training state does not change: the evaluation step receives a state with averaged parameters.

    Args:
        name: name of the field that holds the average: `"ema"` of `optim.ema`, `"swa"` of `optim.swa`,
            a key of `state.extras`; its metrics are called `NAME/loss`, and monitored as
            `eval/NAME/loss`.

    Raises:
        LookupError: the state holds no such average.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> optimizer = optim.ema(optim.sgd(0.1), 0.9)
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optimizer)
        >>> trainer = loop.Trainer(steps, [EMAEvaluation()], compile=False)
        >>> data = [torch.ones(4, 3)]
        >>> result = trainer.fit(steps.init_state(0), data, data, epochs=1)
        >>> [each.split for each in result.history]
        ['train', 'eval', 'eval/ema']
    """

    listens = (EvaluateEnd,)

    def __init__(self, name: str = "ema") -> None:
        self._field = name

    @property
    def name(self) -> str:
        """Name of this callback's state in a checkpoint, such as `EMAEvaluation ema`."""
        return f"EMAEvaluation {self._field}"

    def init(self) -> None:
        """Return `None` as the state of this callback: the training state holds the average."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Request an evaluation of the averaged parameters after each evaluation of the current ones."""
        assert isinstance(event, EvaluateEnd)
        if event.name:
            return None, ()
        return None, (Evaluate(averaged(event.state, self._field), self._field),)


def averaged(state: Any, name: str) -> TrainState:
    """Return the state with its parameters replaced by an average, cast to the parameters' dtypes.

    Args:
        state: a `TrainState`.
        name: name of the field that holds the average, as for `EMAEvaluation`.

    Raises:
        LookupError: the state holds no such average.
        TypeError: the state is not a `TrainState`.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"EMAEvaluation: expected a TrainState, got {type(state).__name__}. Make the steps with "
            "ftrain.make_steps."
        )
    if name in state.extras:
        average = state.extras[name]
    else:
        try:
            average = optim.get(state.opt_state, name)
        except LookupError as error:
            raise LookupError(
                f"name: expected the name of an average of the weights in the state, got {name!r}: "
                f"{error} Wrap the optimizer: optim.ema(optimizer, 0.999); or keep an average in "
                f"state.extras[{name!r}]."
            ) from None
    # The average is cast to the dtypes of the parameters, to avoid recompiling the evaluation step.
    return state.replace(params=tree.map(lambda a, p: a.to(p.dtype), average, state.params))
