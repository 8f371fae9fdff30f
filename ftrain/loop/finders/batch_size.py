"""Batch-size finder: double until a step runs out of memory, then bisect.

    found = finders.batch_size(steps, state, batch, highest=4096)
    print(found.size)

Each size is tried on a copy of the state; the given state does not change.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.loop import _out_of_memory
from ftrain.loop.finders._steps import CompileOptions, Step, compiled, copied, quietly, step_of

__all__ = ["BatchSizes", "Trial", "batch_size"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Result of trying one batch size.

    Attributes:
        size: number of rows.
        fits: True if the steps ran without running out of memory.
        peak_bytes: peak memory in bytes of the state's device (of several, the largest); `None` on a
            CPU or if the size does not fit.
    """

    size: int
    fits: bool
    peak_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """Result of a search for the largest batch size.

    Attributes:
        size: the largest batch size that fits into memory.
        too_large: the smallest tried size that does not fit; `None` if `highest` fits.
        trials: all trials, in order.
    """

    size: int
    too_large: int | None
    trials: tuple[Trial, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the sizes and trials as a dict that `json.dumps` accepts."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        end = (
            "which is the largest size that was requested"
            if self.too_large is None
            else f"and {self.too_large} rows do not"
        )
        lines = [f"a batch of {self.size} rows fits into memory, {end}"]
        for trial in self.trials:
            peak = "" if trial.peak_bytes is None else f"  {trial.peak_bytes / 2**20:,.0f} MiB"
            lines.append(f"{trial.size:>8}  {'fits' if trial.fits else 'out of memory'}{peak}")
        return "\n".join(lines)


def batch_size(
    steps: Any,
    state: Any,
    batch: Any,
    *,
    start: int = 2,
    highest: int = 8192,
    multiple: int = 1,
    n_steps: int = 2,
    compile: CompileOptions = False,
) -> BatchSizes:
    """Find the largest batch size at which a training step fits into memory.

    Sizes are doubled from `start` until one runs out of memory (or halved if `start` does), then the gap
    is bisected. Each size is tried on a new copy of the state. On a GPU choose a size a few per cent
    smaller, because memory fragments during a long run. On a CPU the operating system may kill the
    process before an allocation fails: set `highest` to a size that fits into the machine's memory.

    Args:
        steps: the result of `ftrain.make_steps`, or a step `(state, batch) -> (state, metrics)`.
        state: the training state. Not changed.
        batch: a batch, whose rows (the first axis) are repeated or cut to the size; or a function
            `size -> batch`.
        start: the first size; at least 2 for BatchNorm.
        highest: the largest size to try.
        multiple: sizes between doublings are multiples of this, for example 8 for tensor cores.
        n_steps: steps at each size.
        compile: False: run eager steps, which need slightly more memory than compiled steps but no
            compilation for each size. True, or options for `ftrain.compile`: run the compiled step,
            which donates its state.

    Returns:
        The result of the search; its `size` is the largest size that fits.

    Raises:
        MemoryError: a single row does not fit; the message lists remedies.
        ValueError: an option is out of range; the batch has no rows.

    Example:
        >>> def step(state, batch):
        ...     if len(batch) > 100:
        ...         raise torch.OutOfMemoryError("CUDA out of memory.")
        ...     return state, {}
        >>> found = batch_size(step, {}, torch.ones(4, 3))
        >>> found.size, found.too_large, [trial.size for trial in found.trials]
        (100, 101, [2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100, 102, 101])
    """
    _check(start, highest, multiple, n_steps)
    step = compiled(step_of(steps, "finders.batch_size"), compile)
    make = _batches_of(batch)
    trials: list[Trial] = []

    def fits(size: int) -> bool:
        trial, error = _tried(step, state, make, size, n_steps)
        trials.append(trial)
        if error is not None and size == 1:
            raise MemoryError(_out_of_memory.advice(state, make(1), 1, error)) from error
        return trial.fits

    size, too_large = start, None
    while not fits(size):
        size, too_large = size // 2, size
    while size < highest and too_large is None:
        larger = min(2 * size, highest)
        if fits(larger):
            size = larger
        else:
            too_large = larger
    while too_large is not None:
        middle = (size + too_large) // 2 // multiple * multiple
        middle = middle if middle > size else middle + multiple
        if not size < middle < too_large:
            break
        if fits(middle):
            size = middle
        else:
            too_large = middle
    return BatchSizes(size, too_large, tuple(trials))


def _tried(
    step: Step, state: Any, make: Callable[[int], Any], size: int, n_steps: int
) -> tuple[Trial, BaseException | None]:
    """Run a few steps at one batch size, and release their memory afterwards."""
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    on_cuda = [device for device in devices if device.type == "cuda"]
    for device in on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with quietly():
            batch, current = make(size), copied(state)
            for _ in range(n_steps):
                current, _ = step(current, batch)
            for device in on_cuda:
                torch.cuda.synchronize(device)
    except Exception as error:
        if not _out_of_memory.is_out_of_memory(error):
            error.add_note(f"raised by a step at batch size {size}, which finders.batch_size tried")
            raise
        _out_of_memory.release(error)
        return Trial(size, False), error
    finally:
        batch = current = None
        if on_cuda:
            gc.collect()
            torch.cuda.empty_cache()
    peak = max(map(torch.cuda.max_memory_allocated, on_cuda), default=None)
    return Trial(size, True, peak), None


def _batches_of(batch: Any) -> Callable[[int], Any]:
    """Return a function that makes a batch of a given size."""
    if callable(batch) and not isinstance(batch, torch.Tensor):
        return batch  # type: ignore[no-any-return]
    tensors = [leaf for leaf in tree.leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    rows = {len(leaf) for leaf in tensors}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(
            "batch: expected tensors that all have the same number of rows (1 or more), got row counts "
            f"{sorted(rows)}. Pass a function that returns a batch of a given size."
        )
    (n,) = rows

    def of(size: int) -> Any:
        def cut(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
                return leaf
            whole = leaf.repeat(math.ceil(size / n), *(1 for _ in leaf.shape[1:]))
            return whole[:size].clone()

        return tree.map(cut, batch)

    return of


def _check(start: int, highest: int, multiple: int, n_steps: int) -> None:
    counts = {"start": start, "highest": highest, "multiple": multiple, "n_steps": n_steps}
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(
                f"{name}: expected an integer of at least 1, got {count!r}. Write {name}=1."
            )
    if highest < start:
        raise ValueError(
            f"highest: expected at least start={start}, got {highest}. Write highest={start} or more."
        )
