"""Check that a compiled step gives the results of the eager step.

Read next: `donation.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch

from ftrain.core.compile import compile as compile_
from ftrain.testing.laws._close import LOOSE, Apart, apart_by_leaf, apart_by_tree, smooth, tolerance
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._sites import Site, events_of, located, origin_of, recorded
from ftrain.testing.laws._subject import Call, calls_of, name_of
from ftrain.testing.laws._traced import plain, require_tensors, untraceable
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_compiled"]


@unchanging
def check_compiled(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    backend: Literal["eager", "inductor"] = "eager",
    relative: float | None = None,
) -> Report:
    """Check that a compiled step gives the results of the eager step, at each step of a run.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        args: the arguments of a pure function, instead of batches and a state.
        backend: "eager" runs the traced graph operator by operator; "inductor" compiles machine code.
        relative: the largest norm of a leaf's difference, divided by the leaf's norm; 0 compares bytes.
            Default: 0 for "eager" (a graph with an LSTM or GRU, which runs another kernel, needs more);
            for "inductor" 1e-4 for metrics and outputs (5e-2 with bfloat16 leaves, 5e-3 with float16)
            and 2e-2 for the state as a whole, since Adam amplifies rounding.

    Returns:
        The report.

    Raises:
        LawViolation: the step cannot be compiled, or its results differ; the message names the line, or
            the first operator with another result.

    Example:
        >>> import torch
        >>> print(check_compiled(torch.square, args=(torch.arange(3.0),)).passed)
        True
        >>> count = [0.0]
        >>> def fn(x):
        ...     count[0] += 1
        ...     return x + count[0]
        >>> check_compiled(fn, args=(torch.zeros(2),))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "compiled": the compiled fn gives other results than the
        eager one: the output at (0,): expected 1.0, got 2.0 (... ulps; 2 of 2 elements differ)
          ...
    """
    start = time.perf_counter()
    calls = calls_of(subject, batches, state, seed, args)
    programs: dict[int, Any] = {}
    rows: dict[Row, None] = {}
    for call in calls:
        require_tensors(call)
        fn = plain(call.fn)
        if id(fn) not in programs:
            programs[id(fn)] = compile_(fn, backend=backend)
        rows[_compare(call._replace(fn=fn), programs[id(fn)], backend, relative)] = None
    count = sum(program.n_compiles for program in programs.values())
    rows[Row("compiled functions", plural(len(programs), "function"), plural(count, "program"))] = (
        None
    )
    return Report("compiled", True, tuple(rows), time.perf_counter() - start)


def _compare(call: Call, compiled: Any, backend: str, relative: float | None) -> Row:
    expected = call()
    with untraceable("compiled", name_of(call.fn)):
        got = _of_program(call, compiled)()
    if relative is None:
        relative = 0.0 if backend == "eager" else None
    apart, result = _apart(call, got, expected, relative)
    if apart is not None:
        raise _differs(call, compiled, apart, backend)
    return Row(call.label, amount(expected), result)


def _of_program(call: Call, compiled: Any) -> Call:
    """Return the call of a compiled function; gradients are off, since it may capture a graph."""
    return call._replace(fn=torch.no_grad()(compiled))


def _apart(call: Call, got: Any, expected: Any, relative: float | None) -> tuple[Apart | None, str]:
    """Return the leaf that differs by too much, if any, and the tolerance as text."""
    if relative == 0.0:
        return apart_by_leaf(got, expected, 0.0), "same bytes"
    if relative is not None or not call.outputs:
        limit = tolerance(call.fn, call.args) if relative is None else relative
        return apart_by_leaf(got, expected, limit), f"relative norm at most {limit:.3g}"
    limit = tolerance(call.fn, call.args)
    state = apart_by_tree([got[0]], [expected[0]], LOOSE)
    # The empty first entry makes the paths of metrics begin with [1], as in the output of the step.
    metrics = apart_by_leaf([(), smooth(got[1], limit)], [(), smooth(expected[1], limit)], limit)
    return metrics or state, f"relative norm at most {limit:.3g} (state: {LOOSE:.3g})"


def _differs(call: Call, compiled: Any, apart: Apart, backend: str) -> LawViolation:
    difference = apart.difference
    site = _find_operator(call, compiled, difference.path) if backend == "eager" else None
    named = apart._replace(difference=call.output_named(difference))
    return LawViolation(
        "compiled",
        f"the compiled {name_of(call.fn)} gives other results than the eager one: {named}",
        difference=difference,
        **located(site),
        cause="the step reads a Python value that was fixed when it was traced (a number in a closure, "
        "a counter, the time, the order of a dict's keys), or draws from a generator."
        if backend == "eager"
        else "machine code sums in another order, or keeps float32 where eager mode rounds to bfloat16.",
        remedy="Pass what changes as a tensor of the state or of the batch, and take entries of dicts "
        "by name."
        if backend == "eager"
        else "Compare backend='eager' first; if that passes, raise relative.",
    )


def _find_operator(call: Call, compiled: Any, path: str) -> Site | None:
    return origin_of(path, *recorded(call), events_of(_of_program(call, compiled)))
