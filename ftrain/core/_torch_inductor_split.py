"""Lowering rule by which inductor computes the split of a random key inside its own kernels.

As an operator, the generator adds no compile time, independently of the number of draws, but takes 7 µs
per call. A training step splits one key into two by 20 rounds of integer arithmetic, which take less
than 0.1 µs inside a kernel that runs in any case. (A graph of that arithmetic would take inductor 12 s,
since it expands every use of every intermediate value; a rule computes each of them once.)

Like `_torch.py`, this file names the versions that have what it uses: `lowering.register_lowering`,
`ir.Pointwise` and `virtualized.ops`, torch 2.0 and later.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["inline_small_splits"]

_AT_MOST = 4  # largest number of keys
_WORD = 0xFFFFFFFF


@functools.cache
def inline_small_splits(operator: Any, parity: int, rotations: Sequence[Sequence[int]]) -> None:
    """Make inductor inline the split of a key on the CPU into at most four keys.

    Args:
        operator: `(key, folds, shape) -> keys`, Threefry-2x32 of the counters `0, 1, ...`.
        parity: the constant of the key schedule.
        rotations: the rotations of the rounds, in two groups of four.
    """
    from torch._inductor import lowering  # noqa: PLC0415  costs a second

    called = lowering.fallback_handler(operator)

    def rule(key: Any, folds: Sequence[int], shape: Sequence[int]) -> Any:
        if folds or not _is_small(key, shape):
            return called(key, folds, shape)
        return _computed(key, shape, parity, rotations)

    lowering.register_lowering(operator, type_promotion_kind=None)(rule)


def _is_small(key: Any, shape: Sequence[Any]) -> bool:
    return (
        len(key.get_size()) == 1
        and key.get_device().type == "cpu"
        and all(isinstance(n, int) for n in shape)
        and 0 < math.prod(shape) <= _AT_MOST
    )


def _computed(
    key: Any, shape: Sequence[int], parity: int, rotations: Sequence[Sequence[int]]
) -> Any:
    """Return the words of `threefry2x32` as an inductor node, computed in int64 to avoid overflow."""
    from torch._inductor import ir  # noqa: PLC0415  costs a second
    from torch._inductor.virtualized import ops  # noqa: PLC0415

    load: Callable[[Sequence[int]], Any] = key.make_loader()

    def at(index: Sequence[Any]) -> Any:
        def number(value: int) -> Any:
            return ops.constant(value, torch.int64)

        def word(value: Any) -> Any:
            return ops.bitwise_and(value, number(_WORD))

        k0, k1 = (word(ops.to_dtype(load([i]), torch.int64)) for i in range(2))
        schedule = (k0, k1, ops.bitwise_xor(ops.bitwise_xor(k0, k1), number(parity)))
        *place, column = index
        counter: Any = 0
        for size, i in zip(shape, place, strict=True):
            counter = counter * size + i
        x0, x1 = k0, word(ops.add(ops.index_expr(counter, torch.int64), k1))
        for group in range(5):
            for r in rotations[group % 2]:
                x0 = word(ops.add(x0, x1))
                left = ops.bitwise_left_shift(x1, number(r))
                right = ops.bitwise_right_shift(x1, number(32 - r))
                x1 = word(ops.bitwise_xor(ops.bitwise_or(left, right), x0))
            x0 = word(ops.add(x0, schedule[(group + 1) % 3]))
            x1 = word(ops.add(ops.add(x1, schedule[(group + 2) % 3]), number(group + 1)))
        is_first = ops.eq(ops.index_expr(column, torch.int64), number(0))
        return ops.to_dtype(ops.where(is_first, x0, x1), torch.int32)

    return ir.Pointwise.create(
        device=key.get_device(), dtype=torch.int32, inner_fn=at, ranges=[*shape, 2]
    )
