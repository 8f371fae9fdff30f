"""Alignment of the sequences of operators that two calls ran."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ftrain.testing.divergence.trace import OperatorRecord

__all__ = ["Alignment", "Gap", "align"]


class Gap(NamedTuple):
    """Operators without a counterpart in the other call, between two aligned pairs.

    Attributes:
        a: positions of those that only the first call ran.
        b: positions of those that only the second call ran.
    """

    a: range
    b: range


class Alignment(NamedTuple):
    """Alignment of two sequences of operators: the matching pairs, and the gaps between them.

    Attributes:
        pairs: positions of operators with equal names and shapes, ascending in both sequences.
        gaps: the operators between them.
    """

    pairs: tuple[tuple[int, int], ...]
    gaps: tuple[Gap, ...]

    def rows(self) -> list[tuple[int | None, int | None]]:
        """Return pairs of positions in order, with `None` for a missing counterpart."""
        found: list[tuple[int | None, int | None]] = []
        done = 0
        for gap in self.gaps:
            until = bisect.bisect_left(self.pairs, (gap.a.start, gap.b.start))
            found += self.pairs[done:until]
            found += [(i, None) for i in gap.a] + [(None, j) for j in gap.b]
            done = until
        return [*found, *self.pairs[done:]]


def align(a: Sequence[OperatorRecord], b: Sequence[OperatorRecord]) -> Alignment:
    """Align two sequences of operators.

    Operators are aligned by name, shapes, module and source line first. Operators between these pairs
    are then aligned by name and shapes alone, because source lines differ between versions of the code.
    """
    placed_a, placed_b = ([(*each.signature, each.place) for each in side] for side in (a, b))
    plain_a, plain_b = ([each.signature for each in side] for side in (a, b))
    pairs: list[tuple[int, int]] = []
    gaps: list[Gap] = []
    for block in _blocks(placed_a, placed_b, range(len(a)), range(len(b))):
        inner = [block] if block.equal else _blocks(plain_a, plain_b, block.a, block.b)
        for each in inner:
            if each.equal:
                pairs += zip(each.a, each.b, strict=True)
            else:
                gaps.append(Gap(each.a, each.b))
    return Alignment(tuple(pairs), tuple(gaps))


class _Block(NamedTuple):
    a: range
    b: range
    equal: bool


def _blocks(one: Sequence[Any], two: Sequence[Any], a: range, b: range) -> list[_Block]:
    """Return `difflib`'s equal and differing blocks of the ranges `a` and `b` of two sequences.

    The common prefix and suffix are removed first, because matching takes quadratic time.
    """
    least = min(len(a), len(b))
    head = next((i for i in range(least) if one[a[i]] != two[b[i]]), least)
    left = least - head
    tail = next((i for i in range(left) if one[a[-1 - i]] != two[b[-1 - i]]), left)
    inner_a, inner_b = a[head : len(a) - tail], b[head : len(b) - tail]
    matcher = difflib.SequenceMatcher(
        None, [one[i] for i in inner_a], [two[j] for j in inner_b], autojunk=False
    )
    inner = [
        _Block(inner_a[i:i_end], inner_b[j:j_end], kind == "equal")
        for kind, i, i_end, j, j_end in matcher.get_opcodes()
    ]
    blocks = [_Block(a[:head], b[:head], True), *inner]
    return [*blocks, _Block(a[len(a) - tail :], b[len(b) - tail :], True)]
