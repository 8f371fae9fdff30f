"""Recording of a run as a `Trace`.

Read next: `operators.py`, which records the operators of a step.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sized
from typing import Any

import torch

from ftrain.checkpoint._determinism import fingerprint, versions
from ftrain.core import tree
from ftrain.core._leaf_digest import row_digests
from ftrain.testing.divergence.operators import Recorder
from ftrain.testing.divergence.trace import (
    StepRecord,
    TensorRecord,
    Trace,
    record_leaf,
)
from ftrain.testing.divergence.variant import Variant

__all__ = ["environment_of", "record", "record_leaves", "record_step"]

_MOST_ROWS = 4096


def record(
    step: Any,
    state: Any,
    batches: Iterable[Any],
    *,
    path: str | os.PathLike[str] | None = None,
    steps: Collection[int] | None = None,
    first_step: int = 1,
) -> Trace:
    """Run a step over batches and return a `Trace`: digests of batches, states, metrics and operators.

    For each step, the trace has digests, norms and extreme values of the batch, the new state and the
    metrics. For chosen steps it also has those of every operator, with its module and source line.
    Traces from different processes, machines, thread counts and commits can be compared.

    A compiled step is recorded in two ways: its results come from the compiled program, its operators
    from its graph, which is run operator by operator with the kernels of the eager backend.

    Args:
        step: the result of `ftrain.make_steps`, or a step `(state, batch) -> (state, metrics)`, compiled
            or not. It runs on copies; a step whose operators are recorded runs twice.
        state: the state before the first batch. Not changed, nor donated.
        batches: one batch for each step.
        path: the file to write the trace to, whose folder is created if it is missing; `None` writes no
            file.
        steps: the numbers of the steps whose operators are recorded; `None`: all. Each must be reached.
        first_step: the number of the first step, for a state that comes from a checkpoint.

    Raises:
        TypeError: `step` is not a step; a leaf is not a tensor, a number or a string.
        ValueError: `steps` has the number of a step that does not run; no file is written then.
        NotADirectoryError: a parent of `path` is a file; no step is run then.
        IsADirectoryError: `path` is a folder; no step is run then.

    Example:
        >>> def step(state, batch):
        ...     return state - 0.1 * batch, {"loss": batch.sum()}
        >>> trace = record(step, torch.zeros(2), [torch.ones(2)] * 3, steps=[3])
        >>> [(each.step, len(each.operators or ())) for each in trace.steps]
        [(1, 0), (2, 0), (3, 3)]
        >>> print(trace.steps[2].state[""])
        float32[2] ..., norm 0.424264086, from -0.3 to -0.3
    """
    variant = Variant.of(step)
    if path is not None:
        _check_path(pathlib.Path(path))
    if isinstance(batches, Sized):
        _check_steps(steps, first_step, len(batches))
    initial = record_leaves(state)
    found = []
    for number, batch in enumerate(batches, first_step):
        is_chosen = steps is None or number in steps
        before, (state, metrics) = state, variant.run(state, batch)
        recorded = variant.record(before, batch) if is_chosen else None
        found.append(record_step(number, batch, (state, metrics), recorded))
    _check_steps(steps, first_step, len(found))
    trace = Trace(variant.form, environment_of(), initial, tuple(found))
    if path is not None:
        trace.save(path)
    return trace


def _check_path(path: pathlib.Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(
            f"path: expected the name of a file, got the folder {path}. Add a name: "
            f"{path / 'run.trace'}."
        )
    files = [parent for parent in path.parents if parent.is_file()]
    if files:
        raise NotADirectoryError(
            f"path: expected a file in a folder, got {path}, in which {files[0]} is a file instead of a "
            "folder. Write another path."
        )


def _check_steps(steps: Collection[int] | None, first: int, count: int) -> None:
    outside = [number for number in steps or () if not first <= number < first + count]
    if outside:
        raise ValueError(
            f"steps: expected numbers from {first} to {first + count - 1}, those of the steps that run, "
            f"got {outside}. Pass more batches, or other numbers."
        )


def record_step(
    number: int,
    batch: Any,
    result: tuple[Any, Any],
    recorded: tuple[Recorder, tuple[Any, Any]] | None = None,
) -> StepRecord:
    """Return the record of one step, from its batch, its result and the records of its operators."""
    rows = {
        path: tuple(row_digests(leaf))
        for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True)
        if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) <= _MOST_ROWS
    }
    state, metrics = map(record_leaves, result)
    step = StepRecord(number, record_leaves(batch), rows, None, state, metrics)
    if recorded is None:
        return step
    recorder, again = recorded
    return dataclasses.replace(
        step, operators=tuple(recorder.operators), recomputed=record_leaves(again)
    )


def record_leaves(value: Any) -> Mapping[str, TensorRecord]:
    """Return digest, norms, dtype and shape of each leaf of a tree, by path."""
    pairs = zip(tree.paths(value), tree.leaves(value), strict=True)
    return {path: record_leaf(leaf, path) for path, leaf in pairs}


def environment_of() -> dict[str, Any]:
    """Return the library versions and settings of this process that bits depend on."""
    return {**versions(), **fingerprint()}
