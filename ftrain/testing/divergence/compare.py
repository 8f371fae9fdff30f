"""Comparison of two traces, down to the first operator or leaf that differs.

Read next: `first_operator.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ftrain.testing.divergence.divergence import Divergence, Kind
from ftrain.testing.divergence.first_operator import FirstOperator, first_operator, gap_notes
from ftrain.testing.divergence.leaves import differing, listed, rows_that_differ
from ftrain.testing.divergence.trace import OperatorRecord, StepRecord, TensorRecord, Trace

__all__ = ["compare_recorded", "compare_traces", "environment_notes", "repetition_notes"]

Leaves = Mapping[str, TensorRecord]

_UNRECORDED = (
    "unknown, because the operators of this step were not recorded; call record(..., steps=[{}])"
)
_MACHINE_CODE = (
    "the operators give equal results when they run one by one: the difference arises in the machine "
    "code of a compiled step, or the step is not deterministic"
)
_UNREPEATED = (
    "{}: running step {} again gave other bits, so the step is not deterministic, and the first "
    "differing operator may change from call to call"
)


def compare_traces(a: Trace, b: Trace, *, relative: float = 0.0) -> Divergence | None:
    """Return the first difference of two traces; `None` if all states and metrics agree.

    Steps are compared in order: batch, new state and metrics. If these differ and the operators of the
    step were recorded, the two sequences of operators are aligned by name and shapes. The first aligned
    pair with different results is reported. If the inputs of that pair come from an operator without a
    counterpart, that operator is reported instead.

    Args:
        a: the trace of run A, from `record` in this or another process.
        b: the trace of run B.
        relative: largest estimated distance of two floating-point tensors, relative to their norms,
            that counts as equal; 0 compares bytes.

    Raises:
        ValueError: the traces have no step in common.

    Example:
        >>> import torch
        >>> from ftrain.testing import record
        >>> def step(state, batch):
        ...     return state - 0.1 * batch, {"loss": batch.sum()}
        >>> one = record(step, torch.zeros(2), [torch.ones(2), torch.tensor([1.0, 2.0])])
        >>> two = record(step, torch.zeros(2), [torch.ones(2), torch.tensor([2.0, 1.0])])
        >>> print(compare_traces(one, two))
        first difference: step 2, batch
          A: float32[2] ..., norm 2.23606798, from 1 to 2
          B: float32[2] ..., norm 2.23606798, from 1 to 2
          cause: rows 0, 1 differ: B has the rows of A in another order
          then: the new state
    """
    notes = environment_notes(a.environment, b.environment)
    mine, theirs = ({step.step: step for step in trace.steps} for trace in (a, b))
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        raise ValueError(
            f"compare_traces: expected traces with a common step, got steps {sorted(mine)} and "
            f"{sorted(theirs)}. Record the same steps."
        )
    before = [_before(trace, steps, common[0]) for trace, steps in ((a, mine), (b, theirs))]
    first = differing(before[0], before[1], relative)
    if first:
        found = _leaf(common[0] - 1, _Part("initial state", first, before[0], before[1]))
        return dataclasses.replace(found, notes=notes)
    for number in common:
        difference = compare_recorded(mine[number], theirs[number], relative)
        if difference is not None:
            found, _ = difference
            for name, trace, steps in (("A", a, mine), ("B", b, theirs)):
                notes = (*notes, *repetition_notes(name, trace.form, steps[number]))
            return dataclasses.replace(found, notes=(*notes, *found.notes))
    return None


def compare_recorded(
    a: StepRecord, b: StepRecord, relative: float = 0.0
) -> tuple[Divergence, FirstOperator | None] | None:
    """Return the first difference in one step, and the operator that caused it, if one did.

    `None` if batch, new state and metrics agree.
    """
    found = [
        _Part(kind, paths, one, two)
        for kind, one, two in _parts(a, b)
        if (paths := differing(one, two, relative))
    ]
    if not found:
        return None
    first, *others = found
    leaf = _leaf(a.step, first)
    leaf = dataclasses.replace(leaf, follows=(*leaf.follows, *map(str, others)))
    if first.kind == "batch":
        rows = rows_that_differ(a.rows.get(leaf.where, ()), b.rows.get(leaf.where, ()))
        return dataclasses.replace(leaf, cause=rows), None
    if a.operators is None or b.operators is None:
        return dataclasses.replace(leaf, cause=_UNRECORDED.format(a.step)), None
    again = differing(a.recomputed, b.recomputed, relative)
    if not again:
        return dataclasses.replace(leaf, cause=_MACHINE_CODE), None
    results = [
        {leaves[path].digest for path in again if path in leaves}
        for leaves in (a.recomputed, b.recomputed)
    ]
    operator = first_operator(a.operators, b.operators, relative, (results[0], results[1]))
    notes = gap_notes(a.operators, b.operators, operator.alignment)
    if operator.a is None and operator.b is None:
        return dataclasses.replace(leaf, cause=operator.cause, notes=notes), None
    at = _operator(a.step, a.operators, b.operators, operator)
    return dataclasses.replace(at, follows=tuple(map(str, found)), notes=notes), operator


def _before(trace: Trace, steps: Mapping[int, StepRecord], number: int) -> Leaves:
    """Return the recorded leaves of the state that a step started from."""
    return steps[number - 1].state if number - 1 in steps else trace.initial


class _Part(NamedTuple):
    """Leaves that differ in one part of a step (batch, state or metrics).

    Attributes:
        kind: the name of the part.
        paths: the paths of these leaves.
        a: the records of all leaves of the part in run A.
        b: the records of all leaves of the part in run B.
    """

    kind: Kind
    paths: list[str]
    a: Leaves
    b: Leaves

    def __str__(self) -> str:
        name = {"state": "the new state", "metrics": "the metrics"}.get(self.kind, self.kind)
        paths = listed([path for path in self.paths if path])
        return f"{name}: {paths}" if paths else name


def _parts(a: StepRecord, b: StepRecord) -> tuple[tuple[Kind, Leaves, Leaves], ...]:
    return (
        ("batch", a.batch, b.batch),
        ("state", a.state, b.state),
        ("metrics", a.metrics, b.metrics),
    )


def _leaf(step: int, part: _Part) -> Divergence:
    """Return the difference at the first differing leaf of the batch, the state or the metrics."""
    path, *others = part.paths
    one, two = (str(leaves.get(path, "no such leaf")) for leaves in (part.a, part.b))
    follows = (f"also {listed(others)}",) if others else ()
    return Divergence(step, part.kind, path, "", one, two, follows=follows)


def _operator(
    step: int,
    a: Sequence[OperatorRecord],
    b: Sequence[OperatorRecord],
    found: FirstOperator,
) -> Divergence:
    one = None if found.a is None else a[found.a]
    two = None if found.b is None else b[found.b]
    there = [each for each in (one, two) if each is not None]
    names = dict.fromkeys(each.name for each in there)
    places = dict.fromkeys(str(each.place) for each in there)
    cause = found.cause
    if len(there) == 1:
        cause = f"only {'A' if two is None else 'B'} runs this operator"
    return Divergence(
        step,
        "operator",
        " and ".join(names),
        cause,
        _described(one),
        _described(two),
        " and ".join(places),
    )


def _described(operator: OperatorRecord | None) -> str:
    if operator is None:
        return "no such operator"
    outputs = "; ".join(map(str, operator.outputs))
    return f"{operator.name}{operator.arguments} gives {outputs}"


def repetition_notes(name: str, form: str, step: StepRecord) -> tuple[str, ...]:
    """Return a note if an eager step, repeated to record its operators, computed different bits."""
    if form == "eager" and not step.is_repeated:
        return (_UNREPEATED.format(name, step.step),)
    return ()


def environment_notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line per library version or setting that differs."""
    return tuple(
        f"{name}: {a.get(name, 'not recorded')} in A, {b.get(name, 'not recorded')} in B"
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    )
