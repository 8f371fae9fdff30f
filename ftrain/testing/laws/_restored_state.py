"""Restoration of all state that a check may change: closures, modules, generators, settings.

Read next: `pure.py`, the first law.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from ftrain.core.random import _generators
from ftrain.testing._global_state import restore, world
from ftrain.testing.laws._held_objects import Held, roots_of
from ftrain.testing.laws._subject import imported, parts_of

__all__ = ["changed_by", "functions_of", "kept", "unchanging"]

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def kept(*functions: Any) -> Iterator[None]:
    """Restore functions' state, global generators and torch's settings after a `with` block."""
    held = Held(*(root for fn in functions for root in roots_of(fn)), follow_globals=True)
    around, marks = world(), _generators.read(_generators.accelerator())
    try:
        yield
    finally:
        _generators.restore(marks, _generators.moved(marks))
        restore(around)
        held.restore()
        held.restore_tensors()


def unchanging(check: Callable[P, R]) -> Callable[P, R]:
    """Decorate a check to restore the state of steps, random generators and torch when it ends."""

    @functools.wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        with kept(*_functions(args, kwargs)):
            return check(*args, **kwargs)

    return checked


def changed_by(fn: Any, run: Callable[[], Any]) -> str | None:
    """Call a function; return the name of the first object it holds that changes, or `None`.

    Args:
        fn: the function.
        run: a function without arguments that calls `fn`.
    """
    held = Held(*roots_of(fn), follow_globals=True)
    with kept(fn):
        run()
        tensor = held.changed_tensor()
        objects = [name for name in held.restore() if not name.startswith("!")]
    return objects[0] if objects else tensor and tensor[0]


def functions_of(subject: Any, args: tuple[Any, ...] | None) -> list[Any]:
    """Return the functions under check: the steps of `subject`, or `subject` if `args` is given."""
    if isinstance(subject, str):
        subject = imported(subject)
    parts = [subject] if args is not None else parts_of(subject)
    return [fn for fn in parts if callable(fn)]


def _functions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the functions under check, given the arguments of the decorated check."""
    subject = args[0] if args else kwargs.get("subject")
    extra = [kwargs.get(name) for name in ("evaluate", "accumulated")]
    return [*functions_of(subject, kwargs.get("args")), *filter(callable, extra)]
