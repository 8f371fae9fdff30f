"""Schedule of a run: pure functions that return the work due after a step."""

from __future__ import annotations

from typing import NamedTuple

from ftrain.loop.callback import Action, Evaluate, Save
from ftrain.loop.events import Plan
from ftrain.loop.state import LoopState

__all__ = ["Due", "due_after_step", "is_last", "next_boundary"]


class Due(NamedTuple):
    """Work that is due after a step.

    Attributes:
        window: True if the log window ends.
        epoch: True if the epoch ends.
        actions: the evaluation and the checkpoint, which run together with requested actions.
    """

    window: bool
    epoch: bool
    actions: tuple[Action, ...]


def due_after_step(plan: Plan, state: LoopState) -> Due:
    """Return the work that is due after the most recent step of a run.

    Example:
        >>> from ftrain.loop.events import Progress
        >>> plan = Plan(None, 100, None, log_every=5, eval_every=10, save_every=4)
        >>> due_after_step(plan, LoopState(None, Progress(1, 10, 10)))
        Due(window=True, epoch=False, actions=(Evaluate(state=None, name=''),))
    """
    n, epoch = state.progress.step, state.epoch_ended
    actions: list[Action] = []
    evaluation = epoch if plan.eval_every is None else n % plan.eval_every == 0
    # The evaluation at the end of a run, too, must precede every checkpoint of the last step.
    if plan.evaluates and (evaluation or is_last(plan, state)):
        actions.append(Evaluate())
    if epoch if plan.save_every is None else n % plan.save_every == 0:
        actions.append(Save("epoch" if plan.save_every is None else "step"))
    return Due(n % plan.log_every == 0, epoch, tuple(actions))


def next_boundary(plan: Plan, step: int) -> int:
    """Return the next step after which work is due, ignoring the ends of epochs."""
    every = (plan.log_every, plan.eval_every, plan.save_every)
    ends = [(step // k + 1) * k for k in every if k is not None]
    return min(ends if plan.max_steps is None else [*ends, plan.max_steps])


def is_last(plan: Plan, state: LoopState) -> bool:
    """Return True if the plan's number of epochs or of steps is reached."""
    return (plan.epochs is not None and state.epochs_done >= plan.epochs) or (
        plan.max_steps is not None and state.progress.step >= plan.max_steps
    )
