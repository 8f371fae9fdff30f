"""Law 2: equal inputs give equal bytes, in repeated calls and in a new process.

Read next: `fixpoint.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.laws._processes import outputs_in_new_process, recorded_in_new_process
from ftrain.testing.laws._restored_state import changed_by, unchanging
from ftrain.testing.laws._sites import Site, events_of, first_new, located, origin_of, recorded
from ftrain.testing.laws._subject import Call, calls_of
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_deterministic"]

_GRAD = (
    "Take gradients with torch.autograd.grad or ftrain.value_and_grad, which return them: backward() "
    "adds to the .grad that an earlier call has left."
)
_STATE = "Make it a part of the state: read it from the argument, return it in the new state."
_OTHER = (
    "Draw random numbers from a key in the state, keep no state outside of it, and call "
    "torch.use_deterministic_algorithms(True) if the operator sums in parallel."
)
_SEARCHES = 8  # most repetitions of a call under the mode that records operators


@unchanging
def check_deterministic(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    times: int = 3,
    fresh_processes: int = 0,
    threads: Sequence[int] = (),
) -> Report:
    """Check law 2: calls with equal inputs return equal bytes.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        args: the arguments of a pure function, instead of batches and a state.
        times: the number of calls in this process with each input.
        fresh_processes: the number of new processes that repeat each call, under other hash seeds. The
            subject must be found there: a global variable of a module that can be imported, an object
            that can be pickled, or a string `"module:name"` or `"path/file.py:name"`.
        threads: numbers of threads of torch, each of which must give the same bytes.

    Returns:
        The report.

    Raises:
        LawViolation: two calls differ; the message names the leaf, and the first operator whose result
            differs if a repetition shows the difference again.
        TypeError: a new process cannot find the subject.

    Example:
        >>> print(check_deterministic(torch.square, args=(torch.arange(3.0),)).passed)
        True
        >>> check_deterministic(torch.rand_like, args=(torch.zeros(3),))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "deterministic": two equal calls differ: the output at
        (0,): expected ..., got ... (... ulps; 3 of 3 elements differ)
          operator: aten.rand_like.default
          ...
    """
    start = time.perf_counter()
    calls = calls_of(subject, batches, state, seed, args)
    rows = []
    firsts = [_again(call, times) for call in calls]
    rows.append(Row(f"{times} calls of each", amount(firsts), "same bytes"))
    for number in threads:
        for call, first in zip(calls, firsts, strict=True):
            _under_threads(call, first, number)
        rows.append(Row(plural(number, "thread"), amount(firsts), "same bytes"))
    for number in range(fresh_processes):
        found = outputs_in_new_process(subject, calls, hash_seed=number + 1)
        for call, first, output in zip(calls, firsts, found, strict=True):
            difference = first_difference(output, first)
            if difference is not None:
                raise _fresh(subject, call, difference, number + 1)
        rows.append(Row("a new process", amount(firsts), "same bytes"))
    return Report("deterministic", True, tuple(rows), time.perf_counter() - start)


def _again(call: Call, times: int) -> Any:
    """Repeat a call and return its outputs; raise if the outputs differ between repetitions."""
    first = call()
    for _ in range(times - 1):
        difference = first_difference(call(), first)
        if difference is not None:
            raise _differs(call, difference)
    return first


def _differs(call: Call, difference: Difference) -> LawViolation:
    site, changed = _find_operator(call), changed_by(call.fn, lambda: call.run(copied(call.args)))
    is_grad = site is not None and site.is_backward and "add_" in site.operator
    return LawViolation(
        "deterministic",
        f"two equal calls differ: {call.output_named(difference)}",
        difference=difference,
        **located(site),
        cause=_cause(site, changed),
        remedy=_GRAD if is_grad else _STATE if changed else _OTHER,
    )


def _cause(site: Site | None, changed: str | None) -> str:
    if changed is not None:
        return f"a call changes {changed}, which is not among its arguments, and the next call reads it."
    if site is None:
        return (
            "the step keeps state outside of its arguments, or an operator depends on the order of its "
            "threads and gave equal results when the call was repeated."
        )
    return "this is the first operator whose result differs between two equal calls."


def _find_operator(call: Call) -> Site | None:
    """Repeat a call to find the first operator whose result differs; `None` if none does."""
    first = events_of(call)
    for _ in range(_SEARCHES):
        again = events_of(call)
        for event, other in zip(again, first, strict=False):
            if event.outputs != other.outputs:
                return event.site
        if len(again) != len(first):
            return first_new(again, first) or first_new(first, again)
    return None


def _under_threads(call: Call, first: Any, number: int) -> None:
    before = torch.get_num_threads()
    own = events_of(call)
    torch.set_num_threads(number)
    try:
        difference = first_difference(call(), first)
        if difference is None:
            return
        site = origin_of(difference.path, *recorded(call), own)
    finally:
        torch.set_num_threads(before)
    raise LawViolation(
        "deterministic",
        f"the outputs with {plural(number, 'thread')} have other bits than with {before}: "
        f"{call.output_named(difference)}",
        difference=difference,
        **located(site),
        cause="an operator cuts its sum into as many parts as there are threads, or adds in the order "
        "in which they arrive.",
        remedy="Fix the number of threads of all runs that are compared: "
        f"torch.set_num_threads({before}); for index_put and index_add call "
        "torch.use_deterministic_algorithms(True).",
    )


def _fresh(subject: Any, call: Call, difference: Difference, hash_seed: int) -> LawViolation:
    again = recorded_in_new_process(subject, call, hash_seed=hash_seed)
    site = origin_of(difference.path, *again, events_of(call))
    return LawViolation(
        "deterministic",
        f"a new process gives other bits: {call.output_named(difference)}",
        difference=difference,
        **located(site),
        cause=f"{call.label} depends on something that differs between processes: hash() of a string, "
        "the order of a set, the time, an address in memory, or state that earlier calls have left.",
        remedy="Sort what is iterated, and compute everything from the arguments.",
    )
