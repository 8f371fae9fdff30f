"""Out of memory: which errors mean it, how to cut a batch, what to say when nothing is left."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches
from ftrain.core.state import TrainState

__all__ = ["advice", "cut", "is_out_of_memory", "next_cut", "release"]

_CPU_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory did not suffice."""
    return any(
        isinstance(cause, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _CPU_SIGNS))
        for cause in _causes(error)
    )


def release(error: BaseException) -> None:
    """Let go of what the failed call holds: its frames keep every intermediate tensor alive."""
    for cause in _causes(error):
        traceback.clear_frames(cause.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut(batch: Any, k: int) -> Any:
    """A batch as `MicroBatches` of k parts along the first axis; each part of one, where it is one.

    No row is lost where k does not divide them, as at the end of the data: parts differ by one row then,
    and where there are fewer rows than k, each is a part.
    """
    if k == 1:
        return batch
    whole = batch.batches if isinstance(batch, MicroBatches) else (batch,)
    counts = [max(1, min(k, _common_rows(part))) for part in whole]
    return MicroBatches(
        tuple(_rows(part, i, n) for part, n in zip(whole, counts, strict=True) for i in range(n))
    )


def next_cut(batch: Any, k: int, multiple: int = 1) -> int | None:
    """The least number of equal parts, at least twice k; `None` where a part has one row already.

    Args:
        batch: what is to be cut.
        k: in how many parts it is.
        multiple: parts come in multiples of this; of a batch in parts already, any number does.
    """
    if isinstance(batch, MicroBatches):
        multiple = 1
    rows = _common_rows(batch)
    return next((n for n in range(2 * k, rows + 1) if rows % n == 0 and n % multiple == 0), None)


def advice(state: Any, batch: Any, k: int, error: BaseException) -> str:
    """What to change, and by how much, where a single row does not fit."""
    rows = _common_rows(batch)
    lines = [f"out of memory ({_brief(error)})."]
    if rows:
        lines.append(f"The batch of {rows} rows is in {k} parts already and cannot be cut further.")
    lines.append("What saves memory, the most harmless first:")
    saving = [
        ("compile=True, donate=True", "the new state in the old one's place, if either is off"),
        ("precision='bf16-mixed'", "halves most of what the forward pass keeps"),
        ("torch.utils.checkpoint", "in the model: of each block only its input is kept"),
    ]
    if isinstance(state, TrainState):
        weights, moments = tree.nbytes(state.params), tree.nbytes(state.opt_state)
        lines[1:1] = [
            f"The state takes {_size(tree.nbytes(state))}: parameters {_size(weights)}, optimizer "
            f"{_size(moments)}, and a step {_size(weights)} for gradients."
        ]
        if moments >= weights:
            saving.append(("optim.adafactor, optim.sgd", f"up to {_size(moments)} of moments"))
        saving.append(("precision='bf16-true'", f"{_size(weights)} of parameters and gradients"))
    saving.append(("shorter rows", "shorter sequences, smaller images: in proportion at least"))
    lines += [f"  {what:<28}{effect}" for what, effect in saving]
    return "\n".join(lines)


def _rows(part: Any, i: int, k: int) -> Any:
    def rows_of(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            return leaf
        n = leaf.shape[0]
        return leaf[i * n // k : (i + 1) * n // k]

    return tree.map(rows_of, part)


def _common_rows(batch: Any) -> int:
    """A number of rows that every tensor of the batch can be cut by; 0 where there are none.

    Of a batch in parts that of the largest part.
    """
    if isinstance(batch, MicroBatches):
        return max(map(_common_rows, batch.batches), default=0)
    found = [
        leaf.shape[0] for leaf in tree.leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim
    ]
    return math.gcd(*found)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _brief(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
