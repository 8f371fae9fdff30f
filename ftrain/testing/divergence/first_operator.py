"""Search for the first operator whose results differ between two calls, and for its cause."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ftrain.testing.divergence.align import Alignment, align
from ftrain.testing.divergence.leaves import is_far, listed
from ftrain.testing.divergence.trace import OperatorRecord

__all__ = ["FirstOperator", "first_operator", "gap_notes"]

Operators = Sequence[OperatorRecord]

_ALONE = "it has no counterpart in the other run"
_KERNEL = (
    "equal inputs gave different results: kernel, reduction order, number of threads or a library "
    "version may differ"
)
_CAPTURED = (
    "no recorded operator computed its differing tensor arguments (numbers {}, counted from 0): they "
    "are leaves, captured tensors, or views of other parts of equal tensors"
)
_TOLERATED = "its inputs differ by less than the tolerance, its results by more"
_BETWEEN = (
    "every aligned operator has equal results, and no other operator computed the leaf: the step "
    "returns another tensor, or computes it without operators"
)


class FirstOperator(NamedTuple):
    """First operator whose results differ between two calls, A and B.

    Attributes:
        a: its position in A; `None` if it has no counterpart there, or if there is no such operator.
        b: its position in B, likewise.
        cause: the reason, as far as the records show it.
        alignment: of the two sequences.
    """

    a: int | None
    b: int | None
    cause: str
    alignment: Alignment


def first_operator(
    a: Operators,
    b: Operators,
    relative: float,
    results: tuple[Collection[str], Collection[str]] = ((), ()),
) -> FirstOperator:
    """Return the first operator whose results differ between two calls, with its cause.

    If the differing inputs of an operator come from one without a counterpart, that one is returned.

    Args:
        a: the operators of A.
        b: the operators of B.
        relative: as for `compare_traces`.
        results: digests of the leaves in which the results of the two calls differ.
    """
    alignment = align(a, b)
    alone_a = [k for gap in alignment.gaps for k in gap.a]
    alone_b = [k for gap in alignment.gaps for k in gap.b]
    for i, j in alignment.pairs:
        outputs = zip(a[i].outputs, b[j].outputs, strict=True)
        if not any(is_far(one, two, relative) for one, two in outputs):
            continue
        changed = [k for k, digest in enumerate(a[i].inputs) if digest != b[j].inputs[k]]
        wanted_a, wanted_b = ({x.inputs[k] for k in changed} for x in (a[i], b[j]))
        made_a = _producer(a, [k for k in alone_a if k < i], wanted_a)
        made_b = _producer(b, [k for k in alone_b if k < j], wanted_b)
        if made_a is not None or made_b is not None:
            return FirstOperator(made_a, made_b, _ALONE, alignment)
        return FirstOperator(i, j, _cause(a, b, i, j, changed, relative), alignment)
    made_a, made_b = _producer(a, alone_a, results[0]), _producer(b, alone_b, results[1])
    found = made_a is not None or made_b is not None
    return FirstOperator(made_a, made_b, _ALONE if found else _BETWEEN, alignment)


def _cause(
    a: Operators, b: Operators, i: int, j: int, changed: Sequence[int], relative: float
) -> str:
    if not changed and a[i].arguments != b[j].arguments:
        return f"its arguments differ: {a[i].arguments} in A, {b[j].arguments} in B"
    if not changed:
        return _KERNEL
    made = {output.digest for operator in a[:i] for output in operator.outputs}
    if relative and any(a[i].inputs[k] in made for k in changed):
        return _TOLERATED
    return _CAPTURED.format(", ".join(map(str, changed)))


def _producer(
    operators: Operators, positions: Sequence[int], wanted: Collection[str]
) -> int | None:
    """Return the position of the last operator that computed a tensor with a digest in `wanted`."""
    made = (k for k in reversed(positions) if any(x.digest in wanted for x in operators[k].outputs))
    return next(made, None)


def gap_notes(a: Operators, b: Operators, alignment: Alignment) -> tuple[str, ...]:
    """Return a note on the operators that only one of the calls ran, if there are any."""
    if not alignment.gaps:
        return ()
    n_a, n_b = (sum(len(gap[side]) for gap in alignment.gaps) for side in (0, 1))
    gap = alignment.gaps[0]
    only = [
        f"{listed([operators[k].name for k in gap[side]])} only in {name}"
        for side, (name, operators) in enumerate((("A", a), ("B", b)))
        if gap[side]
    ]
    return (
        f"the sequences of operators differ: {len(alignment.pairs)} are aligned, {n_a} of A and {n_b} "
        f"of B have no counterpart; the first ones, after {gap.a.start} operators of A and "
        f"{gap.b.start} of B: {', '.join(only)}",
    )
