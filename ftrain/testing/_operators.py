"""Repetition of single operators, to find those whose results are not reproducible.

Read next: `_environment.py`, which reports the results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._leaf_digest import row_major
from ftrain.core._torch_dispatch import (
    DispatchMode,
    OpOverload,
    backward_pass,
    makes_values,
    names_of,
)
from ftrain.core._user_line import show
from ftrain.testing._frames import innermost
from ftrain.testing._generators import seeded

__all__ = ["OperatorBits", "examine"]


_TOGETHER = 2**28  # largest total size in bytes of the argument copies that exist at one time
# Factor on the repeats of an operator whose threads may race: not every call shows the race.
_MORE = 10


class OperatorBits(NamedTuple):
    """Result of repeating one operator of a step: the settings on which its bits depend.

    Attributes:
        name: the operator, `aten.embedding_dense_backward`.
        inputs: dtypes and shapes of its tensors.
        calls: the number of calls of this kind in the step.
        line: `FILE:LINE in NAME` and the source line that called it first, or "(backward)".
        deterministic: True if equal inputs gave equal bytes each time, at each number of threads.
        thread_dependent: True if the bytes depend on the number of threads.
        alignment_dependent: True if the bytes depend on where in memory the inputs begin.
    """

    name: str
    inputs: str
    calls: int
    line: str
    deterministic: bool
    thread_dependent: bool
    alignment_dependent: bool


def examine(
    fn: Callable[..., Any], args: tuple[Any, ...], threads: Sequence[int], repeats: int
) -> tuple[OperatorBits, ...]:
    """Call a function, repeat each kind of operator that it ran, and return one result per kind.

    Args:
        fn: the function.
        args: its arguments.
        threads: the numbers of threads to compare.
        repeats: the number of equal calls at each number of threads.
    """
    recorder = _Recorder()
    with recorder:
        fn(*args)
    records = list(recorder.records.values())
    trials = []
    with _threads_restored():
        for count in threads:
            torch.set_num_threads(count)
            # The number of threads also applies while arguments are copied: threads that have just
            # started or woken rarely run at the same time as others, and without this the race in the
            # backward of `x[index]` was missed in 5 of 8 examinations instead of 1.
            trials.append([_tried(record, repeats, racing=count > 1) for record in records])
        return tuple(
            _row(record, of_record) for record, *of_record in zip(records, *trials, strict=True)
        )


class _Record:
    """First call of one kind of operator: a copy of its arguments, and the line that called it."""

    def __init__(self, func: Any, args: Any, line: str) -> None:
        self.func, self.args, self.line, self.calls = func, _copied(args), line, 1


class _Recorder(DispatchMode):
    """Dispatch mode that records the first call of each kind of operator."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[Any, _Record] = {}

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_examined(func, (args, kwargs)):
            key = (func, _kinds((args, kwargs)))
            if key in self.records:
                self.records[key].calls += 1
            else:
                self.records[key] = _Record(func, (args, kwargs), _line())
        return func(*args, **kwargs)


def _line() -> str:
    """Return the source line that called the current operator; "(backward)" in a backward pass."""
    frame = None if backward_pass() != -1 else innermost()
    return "(backward)" if frame is None else show(frame).strip()


def _is_examined(func: Any, arguments: Any) -> bool:
    """Return True for an operator that computes new values from tensors."""
    if not isinstance(func, OpOverload) or not makes_values(func):
        return False
    return any(_plain(x) for x in tree.leaves(arguments))


def _plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def _kinds(arguments: Any) -> Any:
    return tuple(
        (leaf.dtype, tuple(leaf.shape), leaf.stride(), leaf.device)
        if isinstance(leaf, torch.Tensor)
        else repr(leaf)
        for leaf in tree.leaves(arguments)
    )


class _Trial(NamedTuple):
    """Result of several equal calls: the bytes of the first, and True if all calls returned them."""

    first: list[Any]
    is_same: bool


def _tried(record: _Record, repeats: int, *, racing: bool) -> _Trial:
    times = repeats * (_MORE if racing and _adds_into(record.func) else 1)
    first, *others = _outcomes(record, [0] * times)
    return _Trial(first, all(other == first for other in others))


def _row(record: _Record, trials: Sequence[_Trial]) -> OperatorBits:
    """Return the row of the report for an operator, from its trials at several numbers of threads."""
    deterministic, first = all(trial.is_same for trial in trials), trials[-1].first
    shifted = _outcomes(record, [1, 3]) if deterministic else []
    tensors = [x for x in tree.leaves(record.args) if isinstance(x, torch.Tensor)]
    return OperatorBits(
        name=str(record.func).removesuffix(".default"),
        inputs=", ".join(f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in tensors),
        calls=record.calls,
        line=record.line,
        deterministic=deterministic,
        thread_dependent=deterministic and any(trial.first != first for trial in trials),
        alignment_dependent=any(other != first for other in shifted),
    )


def _adds_into(func: Any) -> bool:
    """Return True for operators that may add to an element from several threads in varying order."""
    return any(
        word in names_of(func)[0] for word in ("index_", "scatter", "put", "bag", "bincount")
    )


def _outcomes(record: _Record, shifts: Sequence[int]) -> list[list[Any]]:
    """Call an operator once for each memory offset of its arguments; return the bytes of each result.

    All arguments are copied before the first call: with a pause between the calls, threads would wake up
    at different times and would not race. Large arguments are copied before each call, to save memory.
    """
    if len(shifts) > 1 and _size(record.args) * len(shifts) > _TOGETHER:
        return [outcome for shift in shifts for outcome in _outcomes(record, [shift])]
    arguments = [_copied(record.args, shift) for shift in shifts]
    random = torch.Tag.nondeterministic_seeded in record.func.tags
    results = []
    for args, kwargs in arguments:
        with seeded(0) if random else contextlib.nullcontext():
            results.append(record.func(*args, **kwargs))
    # Compare the arguments too, because the operator may have written to them.
    return [
        [_bytes(leaf) for leaf in tree.leaves(outcome)]
        for outcome in zip(results, arguments, strict=True)
    ]


def _size(arguments: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree.leaves(arguments) if _plain(x))


def _bytes(leaf: Any) -> Any:
    if not _plain(leaf):
        return repr(leaf)
    return bytes(row_major(leaf)) if leaf.numel() else tuple(leaf.shape)


def _copied(arguments: Any, shift: int = 0) -> Any:
    """Copy tensors with their strides, at an offset of `shift` elements in new memory."""

    def copy(leaf: Any) -> Any:
        if not _plain(leaf):
            return leaf
        leaf = leaf.detach()
        extent = sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True))
        extent = extent + 1 if leaf.numel() else 0
        memory = torch.empty(extent + shift, dtype=leaf.dtype, device=leaf.device)
        memory[shift:].copy_(leaf.as_strided((extent,), (1,)))
        return memory.as_strided(leaf.shape, leaf.stride(), shift)

    return tree.map(copy, arguments)


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
