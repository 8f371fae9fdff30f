"""Start of a run: its step functions, and the saved state from which it resumes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from ftrain.checkpoint import Store
from ftrain.core.step import Steps
from ftrain.loop._one_rank import ALONE, TOGETHER, OneRank
from ftrain.loop.state import LoopState

__all__ = ["Resume", "Step", "both_steps", "check_mesh", "evaluation_of", "loop_state"]

Step = Callable[[Any, Any], tuple[Any, Any]]
Resume = str | os.PathLike[str] | bool | None


def check_mesh(mesh: Any) -> None:
    """Raise if the program runs on several ranks and the trainer was given no mesh of them.

    Raises:
        ValueError: there are several ranks and no mesh, so that every rank would write the same files.
    """
    distributed: Any = torch.distributed
    if mesh is None and distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size()
        if size > 1:
            raise ValueError(
                f"mesh: expected the mesh of the {size} ranks on which this program runs, got None. "
                "Write Trainer(distributed.data_parallel(steps, mesh), ..., mesh=mesh)."
            )


def evaluation_of(
    trainer: Any, data: Any, ranks: OneRank, argument: str
) -> tuple[Callable[[Any, Any], Any] | None, Callable[[Any], tuple[int, int]], OneRank]:
    """Return the step that evaluates data, its `count_samples`, and the ranks that divide the batches.

    Args:
        trainer: the trainer.
        data: the evaluation data; `None`: no evaluation.
        ranks: the ranks of the run.
        argument: the name of the data, for messages.

    Raises:
        ValueError: the ranks cannot divide an evaluation over these data.
    """
    step, count = trainer._eval_step, trainer.count_samples
    if data is None or ranks.is_one:
        return step, count, ALONE
    if ranks.shares_rows(data):
        ranks.check_data(data, argument)
        return step, ranks.counting(count), TOGETHER
    if trainer._eval_in_turns is None:
        raise ValueError(
            f"{argument}: expected a data.Loader with rank and ranks, since the evaluation step of this "
            "trainer has no variant for one rank, got other data. Write data.Loader(..., "
            "rank=mesh.get_rank(), ranks=mesh.size())."
        )
    return trainer._eval_in_turns, count, ranks


def both_steps(steps: Any) -> tuple[Step, Callable[[Any, Any], Any] | None]:
    """Return the training step and the evaluation step, or `None`, in a trainer's `steps`.

    Raises:
        TypeError: `steps` is of another kind.
    """
    if isinstance(steps, Steps):
        return steps.train_step, steps.eval_step
    if isinstance(steps, tuple) and len(steps) == 2 and all(map(callable, steps)):
        return steps
    if callable(steps) and not isinstance(steps, torch.nn.Module):
        return steps, None
    raise TypeError(
        "steps: expected the result of ftrain.make_steps, a step `(state, batch) -> (state, "
        f"metrics)`, or a pair (step, eval_step), got {type(steps).__name__}. Write "
        "Trainer(ftrain.make_steps(...))."
    )


def loop_state(state: Any, store: Store | None, resume: Resume, ranks: OneRank) -> LoopState | None:
    """Return the saved state to resume from; `None` if the run starts from the beginning.

    Rank 0 chooses the checkpoint, which all ranks load.

    Raises:
        ValueError: the store holds a run already and `resume` is not given; there is no store.
        CheckpointError: there is no checkpoint, or it cannot be loaded.
    """
    chosen = _chosen(store, resume) if ranks.is_main else None
    chosen = ranks.agree(chosen, "the checkpoint to resume from")
    if chosen is None:
        return None
    if chosen is not True:
        return LoopState.from_metadata(*ranks.load(chosen, state))
    assert store is not None
    return ranks.load_newest(store, state)


def _chosen(store: Store | None, resume: Resume) -> str | Literal[True] | None:
    """Return the path of a checkpoint, `True` for the newest one, or `None` if the run starts."""
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
