"""Evaluation of averaged weights, beside that of the weights themselves."""

from __future__ import annotations

from typing import Any

from ftrain import optim
from ftrain.core import tree
from ftrain.core.state import TrainState
from ftrain.loop.callback import Action, Evaluate
from ftrain.loop.events import EvaluateEnd, Event

__all__ = ["EMAEvaluation", "averaged"]


class EMAEvaluation:
    """After each evaluation, evaluate the optimizer's average of the parameters, as `ema/loss`, ...

    Nothing is swapped: the evaluation step gets a state whose parameters are the average.

    Args:
        name: of the field that holds the average: `"ema"` of `optim.ema`, `"swa"` of `optim.swa`, a key
            of `state.extras`; its metrics are called `NAME/loss`, and followed as `eval/NAME/loss`.

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
        """Name in a checkpoint, so that two averages can be evaluated."""
        return f"EMAEvaluation {self._field}"

    def init(self) -> None:
        """Return no state: the average is in the training state."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Request an evaluation of the average."""
        assert isinstance(event, EvaluateEnd)
        if event.name:
            return None, ()
        return None, (Evaluate(averaged(event.state, self._field), self._field),)


def averaged(state: Any, name: str) -> TrainState:
    """Return the state with an average in the place of its parameters, in their dtypes.

    Args:
        state: a `TrainState`.
        name: of the field that holds the average, as for `EMAEvaluation`.

    Raises:
        LookupError: the state holds no such average.
        TypeError: it is not a `TrainState`.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"EMAEvaluation needs a TrainState to put the average into, found {type(state).__name__}"
        )
    if name in state.extras:
        average = state.extras[name]
    else:
        try:
            average = optim.get(state.opt_state, name)
        except LookupError as error:
            raise LookupError(
                f"the state holds no average called {name!r}: wrap the optimizer, "
                f"optim.ema(optimizer, 0.999), or keep one in state.extras[{name!r}]. {error}"
            ) from None
    # In the parameters' own dtypes, or the evaluation step would be compiled again.
    return state.replace(params=tree.map(lambda a, p: a.to(p.dtype), average, state.params))
