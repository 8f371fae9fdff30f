"""Check that an exception at any operator of a call changes no input, module or random state.

A step that is interrupted (out of memory, a raised error, Ctrl-C) can be repeated only if this holds.

Read next: `gradients.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core._torch_dispatch import DispatchMode
from ftrain.core.compile import Compiled
from ftrain.testing._copies import copied
from ftrain.testing._global_state import changes, restore, world
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._held_objects import Held, roots_of
from ftrain.testing.laws._restored_state import functions_of, kept, unchanging
from ftrain.testing.laws._sites import Site, located, running_site
from ftrain.testing.laws._subject import Call, InapplicableError, calls_of, name_of
from ftrain.testing.laws._words import plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["InjectedError", "check_exception_safety"]


class InjectedError(RuntimeError):
    """Error that `check_exception_safety` raises instead of running an operator."""


@unchanging
def check_exception_safety(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    most: int = 200,
    model: Any = None,
) -> Report:
    """Check that a call changes nothing if an exception is raised at any of its operators.

    The call is repeated with an exception in the place of its first, second, ... operator, those of the
    backward pass included. After each exception, inputs, modules, other objects that the function holds,
    random states and settings must be unchanged.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        args: the arguments of a pure function, instead of batches and a state.
        most: the largest number of operators of one call at which an exception is raised; of a call
            with more operators a sample is drawn from `seed`, and the report says so.
        model: a module or other object that the function reads, beside what its closure holds.

    Returns:
        The report, with the number of operators.

    Raises:
        LawViolation: something has changed; the message names it, and the operator that failed.
        ValueError: the subject is compiled: its operators are inside of one program.

    Example:
        >>> def fn(x):
        ...     y = x.mul_(2.0).square()
        ...     x.div_(2.0)
        ...     return y
        >>> check_exception_safety(fn, args=(torch.ones(2),))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "exception_safety": an exception at operator 2 of 3
        left an input changed: args[0] at (0,): expected 1.0, got 2.0 (... 2 of 2 elements differ)
          operator: aten.pow.Tensor_Scalar
          ...
    """
    start = time.perf_counter()
    with kept(*functions_of(subject, args)):
        calls = calls_of(subject, batches, state, seed, args)
    rows = [_check(call, most, seed, model) for call in calls]
    return Report("exception_safety", True, tuple(rows), time.perf_counter() - start)


def _check(call: Call, most: int, seed: int, model: Any) -> Row:
    if isinstance(call.fn, Compiled):
        raise InapplicableError(
            f"subject: expected a step that is not compiled, got the compiled {name_of(call.fn)}, whose "
            "operators run inside of one program. Pass the step itself."
        )
    held = Held(model, *roots_of(call.fn), follow_globals=True)
    around, before = world(), copied(call.args)
    try:
        total = _count(call)
        held.restore()
        held.restore_tensors()
        places = _places(total, most, seed)
        for place in places:
            args, mode = copied(call.args), _Inject(place)
            try:
                with mode:
                    call.run(args)
            except InjectedError:
                pass
            except Exception as error:
                if not _comes_from(error):
                    raise
            when = f"an exception at operator {place + 1} of {total}"
            _compare(held, mode, when, around)
            difference = first_difference(args, before)
            if difference is not None:
                changed = f"left an input changed: {call.input_named(difference)}"
                raise _violation(mode, f"{when} {changed}", difference)
    finally:
        held.restore()
        held.restore_tensors()
        restore(around)
    of = "" if len(places) == total else f" of {total:,}, drawn at random"
    return Row(call.label, f"{plural(len(places), 'operator')}{of}", "nothing changed")


def _compare(held: Held, mode: _Inject, when: str, around: dict[str, Any]) -> None:
    for what in changes(around):
        raise _violation(mode, f"{when} left the {what} changed")
    for path in held.restore():
        raise _violation(mode, f"{when} left {path.removeprefix('!') or 'an object'} changed")
    found = held.changed_tensor()
    if found is not None:
        name, difference = found
        text = str(difference).replace("the tree", name, 1)
        raise _violation(
            mode, f"{when} left a tensor that the function holds changed: {text}", difference
        )
    grad = held.changed_grad()
    if grad is not None:
        raise _violation(mode, f"{when} left the gradient of {grad} changed")


def _violation(mode: _Inject, summary: str, difference: Any = None) -> LawViolation:
    return LawViolation(
        "exception_safety",
        summary,
        difference=difference,
        **located(mode.site),
        cause="the call changes it before this operator and restores it only afterwards.",
        remedy="Restore it in a finally clause or a context manager, or compute with a copy.",
    )


def _comes_from(error: BaseException | None) -> bool:
    """Return True if an error is, or was caused by, an `InjectedError`."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InjectedError) or InjectedError.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _count(call: Call) -> int:
    args, mode = copied(call.args), _Inject(None)
    with mode:
        call.run(args)
    return mode.count


def _places(total: int, most: int, seed: int) -> list[int]:
    """Return the positions of the operators at which to raise: all, or a random sample."""
    if total <= most:
        return list(range(total))
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:most].tolist())


class _Inject(DispatchMode):
    """Dispatch mode that counts operators, and raises instead of running a chosen one."""

    def __init__(self, place: int | None) -> None:
        super().__init__()
        self.count = 0
        self.site: Site | None = None
        self._place = place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        place, self.count = self.count, self.count + 1
        if place == self._place:
            self.site = running_site(func)
            raise InjectedError(f"InjectedError at operator {place + 1}")
        return func(*args, **(kwargs or {}))
