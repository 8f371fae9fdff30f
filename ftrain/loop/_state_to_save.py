"""State of a run in the form in which a checkpoint stores it.

Read next: `_checkpoint_writer.py`, which writes the checkpoint.
"""

from __future__ import annotations

import dataclasses

from ftrain.loop._actions import begin_epoch, numbers
from ftrain.loop._read_metrics import read_metrics
from ftrain.loop.callback import Action, Evaluate, Log, Replace, Save, Stop
from ftrain.loop.state import LoopState

__all__ = ["note_unreadable_metrics", "state_to_save", "state_to_save_after_failure"]


def state_to_save(state: LoopState) -> LoopState:
    """Return the state to save: metrics as numbers; of pending actions, only `Evaluate` and `Save`."""
    state = read_metrics(state)
    pending = tuple(each for each in state.pending if isinstance(each, (Evaluate, Save)))
    return begin_epoch(
        state.replace(pending=pending, stop=_final(state.stop), boundary_unfinished=False)
    )


def state_to_save_after_failure(state: LoopState) -> LoopState:
    """Return the state for the checkpoint of a failed run.

    Args:
        state: the last state; if the work after a step was unfinished, the state before that work, which
            a resumed run repeats. Metrics that cannot be read, perhaps the reason for the failure, are
            left out.
    """
    state = read_metrics(state) if _is_readable(state) else state.replace(unread=None)
    if not state.boundary_unfinished:
        return state_to_save(state)
    replaced = [each.state for each in state.pending if isinstance(each, Replace)]
    return state.replace(
        train=replaced[-1] if replaced else state.train,
        pending=tuple(filter(None, map(_storable, state.pending))),
        stop=_final(state.stop),
    )


def note_unreadable_metrics(error: Exception, state: LoopState) -> None:
    """Add a note to the error of a failed run if its latest metrics cannot be read and saved."""
    if not _is_readable(state):
        error.add_note(
            "The checkpoint lacks the metrics since the last row of the log, which cannot be read."
        )


def _is_readable(state: LoopState) -> bool:
    """Return True if the unread metrics of a state can be read."""
    try:
        read_metrics(state)
    except (TypeError, ValueError):
        return False
    return True


def _final(stop: Stop | None) -> Stop | None:
    """Return `stop` if it ends the run for good; `None` if a resumed run continues after it."""
    return None if stop is None or stop.resumable else stop


def _storable(action: Action) -> Action | None:
    """Return an action in a form that JSON can represent; `None` if JSON cannot hold its values."""
    if isinstance(action, Replace) or (isinstance(action, Evaluate) and action.state is not None):
        return None
    if isinstance(action, Log):
        try:
            values = numbers(action.values)
        except (TypeError, ValueError):  # perhaps the error that made the run fail
            return None
        return dataclasses.replace(action, values=values)
    return action
