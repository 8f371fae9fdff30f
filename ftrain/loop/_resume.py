"""Choice of the checkpoint from which a run resumes, and the state that it holds."""

from __future__ import annotations

import os
from typing import Any, Literal

from ftrain.checkpoint import Store
from ftrain.loop._one_rank import OneRank
from ftrain.loop.state import LoopState

__all__ = ["Resume", "resumed_state"]

Resume = str | os.PathLike[str] | bool | None


def resumed_state(
    state: Any, store: Store | None, resume: Resume, ranks: OneRank
) -> LoopState | None:
    """Return the saved state to resume from; `None` if the run starts from the beginning.

    Rank 0 chooses the checkpoint, which all ranks load.

    Raises:
        ValueError: the store holds a run already and `resume` is not given; there is no store.
        CheckpointError: there is no checkpoint, or it cannot be loaded.
    """
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
