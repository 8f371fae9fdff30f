"""Detection of draws from generators, rather than from keys, in pure functions.

The function mode of `keyed` handles the calls of torch's functions in its thread. Any other draw (below
the mode, in another thread, or from NumPy's or Python's generator) changes the state of a generator,
which is detected when the call returns, in 5 µs. Such a call is run again under the operator mode, which
keys all draws of torch in this thread; later calls of this function run under the operator mode from the
start. If the state of a generator changes again, the draw cannot get a key, and `_find_draw.py` searches
for its line.

A program's other threads may draw at any time. That is not an error, and their draws are not undone,
except during a call that raises or that seeds torch's generator (`torch.random.fork_rng`).

Read next: `_find_draw.py`, the search for the line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ftrain.core._row_buffers import RowBuffers
from ftrain.core._short_traceback import shortened
from ftrain.core._transform_errors import under_transforms
from ftrain.core._write_line import with_line
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import _generators
from ftrain.core.random._find_draw import find_draws, is_alone
from ftrain.core.random._generators import Marks
from ftrain.core.random._keyed_operators import KeyedOperators, here
from ftrain.core.random._own_generators import reachable
from ftrain.core.random._refusal import mapped_draw, unkeyed_draw

__all__ = ["Watch", "failed", "require_line", "watched_trace"]

T = TypeVar("T")

_ONCE = (
    "in one call, but not when the call was repeated: probably while it filled a cache or imported "
    "a module for the first time. Fill the cache, or import the module, before the call."
)


class Watch:
    """Runner of pure functions that raises if they draw without a key; it may run them twice.

    Args:
        *roots: the functions and modules whose own generators are compared too.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._own: tuple[Any, ...] | None = None
        self._operators = False
        self._run = RowBuffers()
        self._others = 0  # number of calls during which another thread drew

    def __call__(self, run: Callable[[], T], device: torch.device | None = None) -> T:
        """Return `run()`; raise if a draw in it did not come from a key.

        Args:
            run: a pure function, whose draws are inside of `keyed` contexts.
            device: the accelerator whose generator is compared, beside those of the CPU.

        Raises:
            UnkeyedRandomError: a draw came from no key, or a generator was seeded.
        """
        if here.watching:  # an outer call compares the generators
            return run()
        if self._own is None:
            self._own = reachable(*self._roots)
            # In distributed runs, all processes must repeat a call that one process repeats.
            self._operators = _is_distributed()
        here.watching = True
        operators, here.operators = here.operators, here.operators or self._operators
        before = _generators.read(device, self._own)
        try:
            out = self._run(run)
            names = _generators.moved(before)
            return out if not names else self._again(run, before, names, out)
        except Exception as error:
            raise shortened(failed(with_line(error, run), before)) from error.__cause__
        finally:
            here.watching = False
            here.operators = operators

    def _again(self, run: Callable[[], T], before: Marks, names: tuple[str, ...], out: T) -> T:
        def under_operators() -> T:
            with _operators_seen():
                return self._run(run)

        if not here.operators and ("torch" in names or "device" in names):
            again, keyed = _generators.read_again(before), here.keyed
            try:
                out = under_operators()
            except UnkeyedRandomError:
                _generators.restore(before, names)
                raise
            self._operators = True
            if here.keyed > keyed and not _generators.moved(again):
                _generators.restore(before, names)
                return out
        if self._is_due():
            require_line(None if _is_distributed() else under_operators, before, names)
            self._others += 1
        return out

    def _is_due(self) -> bool:
        """Return True if a draw's line should be searched for, more rarely once other threads drew."""
        if self._others == 0 or is_alone():
            return True
        self._others += 1
        return self._others & (self._others - 1) == 0


def require_line(run: Callable[[], Any] | None, before: Marks, names: tuple[str, ...]) -> None:
    """Raise an error with the line that drew random numbers, unless another thread may have drawn.

    Args:
        run: the call that advanced generators; `None` if it cannot be repeated.
        before: the states of the generators before the call, which are restored.
        names: the generators that the call advanced.
    """
    again = _generators.read_again(before)
    draws = [] if run is None else find_draws(run, before)
    matching = [draw for draw in draws if set(draw.names) & set(names)]
    if matching or (draws and is_alone()):
        draw = (matching or draws)[0]
        _generators.restore(before, names)
        raise unkeyed_draw(draw.names, f"here:\n\n{draw.line}")
    if is_alone():
        found_again = run is None or _generators.moved(again)
        _generators.restore(before, names)
        raise unkeyed_draw(names, "at a line that cannot be found." if found_again else _ONCE)


def failed(error: Exception, before: Marks, *, in_trace: bool = False) -> Exception:
    """Restore the generators after a call raised `error`; return the exception to raise instead.

    If the program has other threads, generators are restored only if the error shows that the call has
    drawn, so that draws of these threads are not undone.
    """
    if is_alone() or isinstance(error, UnkeyedRandomError):
        _generators.restore(before, _generators.moved(before))
    return mapped_draw(error) or under_transforms(error, in_trace=in_trace) or error


def watched_trace(run: Callable[[], T], *roots: Any) -> T:
    """Return `run()`, which traces a function; raise if it draws, as a trace fixes the numbers.

    Args:
        run: the trace.
        *roots: the function that it traces, whose own generators are compared too.

    Raises:
        UnkeyedRandomError: the function draws from no key, or seeds a generator.
    """

    row_buffers = RowBuffers()

    def seen() -> T:
        watching, here.watching = here.watching, True
        try:
            with _operators_seen():
                return row_buffers(run)
        finally:
            here.watching = watching

    before = _generators.read(_generators.accelerator(), reachable(*roots))
    try:
        traced = seen()
    except Exception as error:
        raise failed(with_line(error, seen), before, in_trace=True) from error.__cause__
    names = _generators.moved(before)
    if names:
        require_line(seen, before, names)
    return traced


@contextlib.contextmanager
def _operators_seen() -> Iterator[None]:
    """Make random operators in this context draw from the key of `keyed`, or raise outside of `keyed`.

    The operators inside a `keyed` context draw from its key; those outside of one raise.
    """
    before, here.operators = here.operators, True
    try:
        with KeyedOperators(None):
            yield
    finally:
        here.operators = before


def _is_distributed() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()
