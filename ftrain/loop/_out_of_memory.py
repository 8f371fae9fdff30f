"""Recovery from out-of-memory errors by cutting a batch into parts.

Read next: `_repeat_step.py`, which repeats a step with a batch that is cut into more parts.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._words import one_line
from ftrain.core.accumulate import MicroBatches, check_constants
from ftrain.core.state import TrainState

__all__ = [
    "advice",
    "cut",
    "is_out_of_memory",
    "next_cut",
    "next_micro_batches",
    "refusal",
    "release",
]

_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",  # raised by kernels and CUDA graphs
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception, or one of its causes, is an out-of-memory error."""
    return any(
        isinstance(cause, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _SIGNS))
        for cause in _causes(error)
    )


def release(error: BaseException) -> None:
    """Free the tensors that the traceback of a failed call keeps alive."""
    for cause in _causes(error):
        traceback.clear_frames(cause.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut(batch: Any, k: int) -> Any:
    """Cut a batch, or each batch in a `MicroBatches`, into k parts along the first axis.

    If k does not divide the number of rows, parts differ by one row; if there are fewer rows than k,
    each row is a part. A loss without a weight is then weighted by rows, so that it stays the mean over
    the batch.
    """
    if k == 1:
        return batch
    whole = batch.batches if isinstance(batch, MicroBatches) else (batch,)
    given = batch.weights if isinstance(batch, MicroBatches) else ()
    parts: list[Any] = []
    weights: list[float] = []
    for part, weight in zip(whole, given or [1.0] * len(whole), strict=True):
        rows = _rows_of(part)
        n = max(1, min(k, rows))
        parts += [_part(part, i, n) for i in range(n)]
        sizes = [((i + 1) * rows // n - i * rows // n) for i in range(n)] if rows else [1]
        whole_weight = 1 if len(whole) == 1 else sum(sizes) / weight  # integers for a single batch
        weights += [size / whole_weight for size in sizes]
    return MicroBatches(tuple(parts), tuple(weights) if len(set(weights)) > 1 else ())


def next_cut(batch: Any, k: int, multiple: int = 1) -> int | None:
    """Return a larger number of parts for a batch: the smallest n >= 2 k that divides its row count.

    `None` if no such n exists.

    Args:
        batch: the batch to cut.
        k: the current number of parts.
        multiple: the number of parts must be a multiple of this; ignored for `MicroBatches`.
    """
    if isinstance(batch, MicroBatches):
        multiple = 1
    rows = _rows_of(batch)
    return next((n for n in range(2 * k, rows + 1) if rows % n == 0 and n % multiple == 0), None)


def next_micro_batches(error: Exception, state: Any, batch: Any, k: int, own: int) -> int:
    """Return the number of micro-batches with which to repeat a step that ran out of memory.

    Args:
        error: the exception of the step.
        state: the training state before the step.
        batch: its batch.
        k: the current number of parts.
        own: the number of parts into which the step splits each batch itself.

    Raises:
        torch.OutOfMemoryError: the batch cannot be cut further; the message lists remedies.
        Exception: `error`, if it is not an out-of-memory error.
    """
    if not is_out_of_memory(error):
        raise error
    more = next_cut(batch, max(k, own), own)
    if more is None:
        raise torch.OutOfMemoryError(advice(state, batch, k, error)) from error
    release(error)
    return more


def refusal(
    error: Exception, again: Exception, state: Any, batch: Any, k: int
) -> torch.OutOfMemoryError:
    """Return the error for a step that ran out of memory and then raised for `MicroBatches`.

    Args:
        error: the out-of-memory error of the step.
        again: what the step raised for the micro-batches.
        state: the training state before the step.
        batch: its batch.
        k: the number of parts before the step.
    """
    why = (
        f"the step raised {type(again).__name__} for ftrain.MicroBatches of it ({one_line(again)})"
    )
    return torch.OutOfMemoryError(advice(state, batch, k, error, why))


def advice(state: Any, batch: Any, k: int, error: BaseException, why: str | None = None) -> str:
    """Return the message of an out-of-memory error: why the batch cannot be cut, and remedies."""
    rows, why = _rows_of(batch), why or _why_whole(batch)
    lines = [f"out of memory ({_brief(error)})."]
    if why:
        lines.append(f"The batch cannot be cut: {why}.")
    elif rows:
        lines.append(
            f"The batch of {rows} rows is already cut into {k} parts and cannot be cut further."
        )
    lines.append("Options that save memory, starting with the least intrusive:")
    saving = [
        ("compile=True, donate=True", "if not set yet: reuses the memory of the old state"),
        ("precision='bf16-mixed'", "halves most of the memory that the forward pass keeps"),
        ("torch.utils.checkpoint", "in the model: stores only the input of each block"),
    ]
    if isinstance(state, TrainState):
        weights, moments = tree.nbytes(state.params), tree.nbytes(state.opt_state)
        lines[1:1] = [
            f"The state takes {_size(tree.nbytes(state))}: parameters {_size(weights)}, optimizer "
            f"{_size(moments)}, and a step {_size(weights)} for gradients."
        ]
        if moments >= weights:
            saving.append(
                ("optim.adafactor, optim.sgd", f"saves up to {_size(moments)} of optimizer moments")
            )
        saving.append(
            ("precision='bf16-true'", f"saves {_size(weights)} of parameters and gradients")
        )
    saving.append(
        ("shorter rows", "shorter sequences or smaller images save at least in proportion")
    )
    lines += [f"  {what:<28}{effect}" for what, effect in saving]
    return "\n".join(lines)


def _part(batch: Any, i: int, k: int) -> Any:
    """Return the rows of part i of a batch that is cut into k parts."""

    def rows_of(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            return leaf
        n = leaf.shape[0]
        return leaf[i * n // k : (i + 1) * n // k]

    with tree.withheld("a micro-batch"):
        return tree.map(rows_of, batch)


def _rows_of(batch: Any) -> int:
    """Return the number of rows of a batch's tensors; 0 if the batch cannot be cut.

    For `MicroBatches`, return the rows of the largest part.
    """
    if isinstance(batch, MicroBatches):
        return max(map(_rows_of, batch.batches), default=0)
    sizes = [x.shape[0] for x in tree.leaves(batch) if isinstance(x, torch.Tensor) and x.ndim]
    return sizes[0] if sizes and _why_whole(batch) is None else 0


def _why_whole(batch: Any) -> str | None:
    """Return the reason why a batch cannot be cut into rows; `None` if it can be cut.

    A batch whose tensors have different lengths cannot be cut: one of them may be a vector of class
    weights, for example, and cutting it would change the loss.
    """
    if isinstance(batch, MicroBatches):
        return next(filter(None, map(_why_whole, batch.batches)), None)
    try:
        check_constants(batch, "micro-batches")
    except TypeError as error:
        return str(error).removesuffix(".")
    named = zip(tree.paths(batch), tree.leaves(batch), strict=True)
    sizes = [(path, x.shape[0]) for path, x in named if isinstance(x, torch.Tensor) and x.ndim]
    first = sizes[:1]
    for path, size in sizes[1:]:
        if size != first[0][1]:
            return f"batch{first[0][0]} has {first[0][1]} rows, and batch{path} has {size}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the chain of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _brief(error: BaseException) -> str:
    """Return the first line of an error's message, cut to 200 characters."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
