"""Choice of the checkpoint from which a run resumes, and the state that it holds."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any, Literal

from ftrain.checkpoint import Store
from ftrain.loop._batches import check_position, steps_left, steps_per_epoch
from ftrain.loop._one_rank import OneRank
from ftrain.loop.callbacks.accumulation import AccumulationSchedule
from ftrain.loop.events import LoopWarning
from ftrain.loop.state import LoopState

__all__ = ["Resume", "extra_steps", "resumed_state", "warn_of_accumulate"]

Resume = str | os.PathLike[str] | bool | None


def resumed_state(
    state: Any, store: Store | None, resume: Resume, ranks: OneRank, data: Any
) -> LoopState | None:
    """Return the saved state to resume from; `None` if the run starts from the beginning.

    Rank 0 chooses the checkpoint, which all ranks load. If the batches of `data` are larger than those
    of the earlier run, and none remains in the current epoch, the epoch has ended in the result.

    Raises:
        ValueError: the store holds a run already and `resume` is not given; there is no store.
        CheckpointError: there is no checkpoint, or it cannot be loaded.
    """
    loop = _loaded(state, store, resume, ranks)
    cursor = None if loop is None else loop.cursor
    if loop is None or cursor is None or not cursor.position or steps_left(data, cursor, 1) != 0:
        return loop
    check_position(data, cursor)
    cursor = dataclasses.replace(cursor, epoch=cursor.epoch + 1, position=0)
    return loop.replace(cursor=cursor, epoch_ended=True, boundary_unfinished=True)


def extra_steps(data: Any, loop: LoopState) -> int:
    """Return the steps taken so far minus those of a run that reads the same samples in such steps.

    Example:
        >>> import torch
        >>> from ftrain.data import Cursor, Loader
        >>> from ftrain.loop.events import Progress
        >>> loader = Loader({"x": torch.zeros(100)}, batch_size=20)
        >>> after_five_of_ten = LoopState(None, Progress(1, 5, 5), Cursor(0, 0, 50))
        >>> extra_steps(loader, after_five_of_ten)  # 5 - 3, because 2 of 5 steps remain in the epoch
        2
    """
    k, cursor = loop.accumulate, loop.cursor
    per_epoch = steps_per_epoch(data, k)
    left = None if cursor is None else steps_left(data, cursor, k)
    if cursor is None or per_epoch is None or left is None:
        return 0
    return loop.progress.step - (cursor.epoch + 1) * per_epoch + left


def warn_of_accumulate(trainer: Any, loop: LoopState) -> None:
    """Warn if a resumed run ignores `Trainer(accumulate=...)`, unless a schedule sets the number."""
    scheduled = any(isinstance(each, AccumulationSchedule) for each in trainer.callbacks)
    if loop.accumulate != trainer.accumulate and not scheduled:
        warnings.warn(
            f"accumulate: expected {loop.accumulate}, the number of batches per step in the checkpoint, "
            f"got {trainer.accumulate}; the run resumes with {loop.accumulate}. To change the number, "
            f"request Accumulate({trainer.accumulate}) in a callback.",
            LoopWarning,
            stacklevel=2,
        )


def _loaded(state: Any, store: Store | None, resume: Resume, ranks: OneRank) -> LoopState | None:
    """Load the chosen checkpoint on all ranks; return `None` if there is none to load."""
    chosen = _chosen_checkpoint(store, resume) if ranks.is_main else None
    chosen = ranks.agree(chosen, "the checkpoint to resume from")
    if chosen is None:
        return None
    if chosen is not True:
        return LoopState.from_metadata(*ranks.load(chosen, state))
    assert store is not None
    return ranks.load_newest(store, state)


def _chosen_checkpoint(store: Store | None, resume: Resume) -> str | Literal[True] | None:
    """Return the path of a checkpoint, `True` for the newest one, or `None` to start from step 0."""
    how: Literal["auto"] | Resume = resume
    if how is None or how is False:
        if store is not None and store.steps():
            raise ValueError(
                f"store: expected a directory without checkpoints, got {store.directory} with a run up "
                f"to step {store.steps()[-1]}. Resume it, fit(..., resume=True), or write Trainer(..., "
                "store='runs/second/checkpoints')."
            )
        return None
    if how is True or how == "auto":
        if store is None:
            raise ValueError(
                f"resume={resume!r}: expected a trainer with a store, got one without. Write "
                "Trainer(..., store='runs/first/checkpoints'), or pass the path of a checkpoint."
            )
        if how == "auto" and not store.steps():
            return None
        return True
    return os.fspath(how)
