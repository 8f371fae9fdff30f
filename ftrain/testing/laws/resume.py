"""Law 7: a run that is saved, loaded and continued has the bits of an uninterrupted run.

Read next: `vmap.py`.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain import checkpoint
from ftrain.core import tree
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.laws._processes import in_new_process
from ftrain.testing.laws._restored_state import changed_by, unchanging
from ftrain.testing.laws._subject import Subject, outputs_of, parts_of, subject_of
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_resume"]


@unchanging
def check_resume(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    fresh_process: bool = False,
) -> Report:
    """Check law 7: resuming from a checkpoint before any step gives the same states and metrics.

    The state is written by `ftrain.checkpoint.save` and read by `load` into fresh memory. A single batch
    is used twice, so that the run can be interrupted between two steps.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        fresh_process: resume the second half in a new process too, which finds state that the step keeps
            outside of its arguments. The subject must be a global variable of a module that can be
            imported, an object that can be pickled, or a string `"module:name"`.

    Returns:
        The report.

    Raises:
        LawViolation: the state cannot be saved or loaded, or the resumed run has other bits.
        TypeError: a new process cannot find the subject.

    Example:
        >>> count = [0]
        >>> def step(state, batch):
        ...     count[0] += 1
        ...     return {"w": state["w"] - batch / count[0]}, {}
        >>> check_resume(step, [torch.ones(2)] * 3, state={"w": torch.zeros(2)})
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "resume": resuming before step 0 gave another state:
        ['w'] at (0,): expected -1.0, got -0.25 (... ulps; 2 of 2 elements differ)
          cause: ...
    """
    start = time.perf_counter()
    batches = list(batches) * 2 if len(batches) == 1 else batches
    whole = subject_of(subject, batches, state, seed)
    run = _run(whole)
    with tempfile.TemporaryDirectory() as folder:
        saved = [_saved(f"{folder}/{i}", before, i) for i, (before, _) in enumerate(run[:-1])]
        for i, path in enumerate(saved):
            _resume(whole, run, i, path)
        rows = [Row("resumed in this process", plural(len(saved), "checkpoint"), "same bytes")]
        if fresh_process:
            half = len(saved) // 2
            payload = (saved[half], run[half][0], whole.batches[half:])
            found = in_new_process(_continue, subject, payload)
            _compare(whole, found, run[-1], half, "in a new process ")
            rows.append(Row("resumed in a new process", amount(found[0]), "same bytes"))
    return Report("resume", True, tuple(rows), time.perf_counter() - start)


def _run(whole: Subject) -> list[tuple[Any, Any]]:
    """Run all batches; return `(state, metrics)` before the first step and after each step."""
    run: list[tuple[Any, Any]] = [(copied(whole.state), None)]
    for batch in whole.batches:
        run.append(whole.stepped(run[-1][0], batch))
    return run


def _saved(path: str, state: Any, step: int) -> str:
    try:
        checkpoint.save(path, state)
    except TypeError as error:
        raise LawViolation(
            "resume",
            f"the state before step {step} cannot be saved: {error}",
            cause="a part of the state is a Python object, which a resumed run would not have.",
            remedy="Keep every part of the state in tensors: torch.tensor(...) for numbers.",
        ) from error
    return path


def _resume(whole: Subject, run: list[tuple[Any, Any]], i: int, path: str) -> None:
    like = whole.init_state(1) if whole.init_state is not None else run[0][0]
    try:
        state, _ = checkpoint.load(path, like, on_change="ignore")
    except checkpoint.CheckpointMismatchError as error:
        raise LawViolation(
            "resume",
            f"the state before step {i} cannot be loaded into an initial state: {error}",
            cause="the structure of the state changes during the run.",
            remedy="Give the initial state every leaf, with its final shape and dtype.",
        ) from error
    difference = first_difference(state, run[i][0])
    if difference is not None:
        raise LawViolation(
            "resume",
            f"reloading before step {i} changed the state: {difference}",
            difference=difference,
        )
    found = outputs_of(whole.step(state, copied(whole.batches[i])))
    _compare(whole, found, run[i + 1], i, "")


def _compare(
    whole: Subject, found: tuple[Any, Any], expected: tuple[Any, Any], i: int, where: str
) -> None:
    for name, a, b in zip(("state", "metrics"), found, expected, strict=True):
        difference = first_difference(a, b)
        if difference is not None:
            what = f"resuming {where}before step {i} gave {_other(name)}"
            first = functools.partial(whole.stepped, whole.state, whole.batches[0])
            raise _differs(what, difference, changed_by(whole.step, first))


def _other(name: str) -> str:
    return "another state" if name == "state" else "other metrics"


def _differs(summary: str, difference: Difference, changed: str | None) -> LawViolation:
    return LawViolation(
        "resume",
        f"{summary}: {difference}",
        difference=difference,
        cause=f"the step changes {changed}, which is not in the state and so not in the checkpoint."
        if changed
        else "the step reads something that is not in the state and so not in the checkpoint: a "
        "counter, a generator, an optimizer, a cache, the memory layout of a leaf.",
        remedy="Put it into the state as a tensor; check_pure and check_keyed name what a step keeps.",
    )


def _continue(subject: Any, payload: tuple[str, Any, Sequence[Any]]) -> tuple[Any, Any]:
    """Load a checkpoint in the new process, run the remaining batches, return state and metrics."""
    path, like, batches = payload
    like = tree.map(lambda x: torch.empty_like(x) if isinstance(x, torch.Tensor) else x, like)
    state, metrics = checkpoint.load(path, like, on_change="ignore")[0], None
    step = parts_of(subject)[0]
    for batch in batches:
        state, metrics = outputs_of(step(state, batch))
    return state, metrics
