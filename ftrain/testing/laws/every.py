"""Check of all laws that apply to given steps or a given function, in one call.

Read next: `assertions.py`, the older names.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from ftrain.testing.laws._subject import InapplicableError, subject_of
from ftrain.testing.laws.accumulation import Accumulated, check_accumulation
from ftrain.testing.laws.compiled import check_compiled
from ftrain.testing.laws.deterministic import check_deterministic
from ftrain.testing.laws.donation import check_donation
from ftrain.testing.laws.evaluation import check_evaluation
from ftrain.testing.laws.exception_safety import check_exception_safety
from ftrain.testing.laws.fixpoint import check_fixpoint
from ftrain.testing.laws.gradients import check_gradients
from ftrain.testing.laws.keyed import check_keyed
from ftrain.testing.laws.pure import check_pure
from ftrain.testing.laws.resume import check_resume
from ftrain.testing.laws.skip import check_skip
from ftrain.testing.laws.vmap import check_vmap
from ftrain.testing.report import LawViolation, Report, Reports

__all__ = ["LAWS", "check_all", "check_function"]

Check = Callable[[], Report]

#: Laws whose checks repeat a step most often; they look at the first batch only.
_ONE_BATCH = ("vmap", "exception_safety", "gradients")
_MOST = 50  # largest number of operators of each call at which an exception is raised
_CHECKS: dict[str, Callable[..., Report]] = {
    "pure": check_pure,
    "deterministic": check_deterministic,
    "fixpoint": check_fixpoint,
    "keyed": check_keyed,
    "skip": check_skip,
    "resume": check_resume,
    "evaluation": check_evaluation,
    "accumulation": check_accumulation,
    "vmap": check_vmap,
    "compiled": check_compiled,
    "donation": check_donation,
    "exception_safety": check_exception_safety,
    "gradients": check_gradients,
}
#: Names of all laws, in the order in which `check_all` checks them; the first `_FAST` are the fast ones.
LAWS = tuple(_CHECKS)
_FAST = 7


def check_all(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    evaluate: Callable[[Any, Any], Any] | None = None,
    accumulated: Accumulated | None = None,
    fast: bool = False,
    skip: Sequence[str] = (),
) -> Reports:
    """Check every law that applies to the given steps.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`.
        batches: a list of batches; three or four of the run's own are enough. Gradients, rows of a vmap
            and exceptions (at 50 operators, drawn if there are more) are checked on the first one.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        evaluate: `(state, batch) -> metrics` for a step alone, as `check_evaluation` takes it.
        accumulated: `(state, micro_batches) -> (state, metrics)` for a step of your own, as
            `check_accumulation` takes it.
        fast: check the first seven laws only, without compilation, on two batches: seconds.
        skip: names of laws that are not checked, such as "gradients" for a loss with stopped gradients;
            with "compiled", "donation" and "vmap" nothing is traced.

    Returns:
        The reports, which print as a table. The report of a law that does not apply gives the reason.

    Raises:
        LawViolation: a law is violated. All laws are checked first; the error is that of the first one
            violated, its `reports` hold all, and its note shows the table.
        ValueError: `skip` has an unknown name.

    Example:
        >>> import torch
        >>> def step(state, batch):
        ...     return {"w": state["w"] - batch}, {"norm": state["w"].norm()}
        >>> state = {"w": torch.zeros(2)}
        >>> print(check_all(step, [torch.ones(2)] * 2, state=state, fast=True, skip=["skip"]))
        pure           passed       ... s  ...
        deterministic  passed       ... s  ...
        fixpoint       passed       ... s  ...
        keyed          passed       ... s  ...
        skip           not checked  ... s  excluded by the argument skip
        resume         passed       ... s  ...
        evaluation     not checked  ... s  evaluate: expected a function ...
        all            passed       ... s
    """
    unknown = [name for name in skip if name not in LAWS]
    if unknown:
        raise ValueError(
            f"skip: expected names among {', '.join(LAWS)}, got {unknown}. Write one of them."
        )
    subject_of(
        subject, batches, state, seed
    )  # raises for wrong arguments before any law is checked
    batches = list(batches)[:2] if fast else batches
    checks: dict[str, Check] = {}
    for law in LAWS[:_FAST] if fast else LAWS:
        options: dict[str, Any] = {"state": state, "seed": seed}
        if law == "fixpoint":
            options["compiled"] = not fast and "compiled" not in skip
        if law == "exception_safety":
            options["most"] = _MOST
        if law == "evaluation":
            options["evaluate"] = evaluate
        if law == "accumulation":
            options["accumulated"] = accumulated
        given = batches[:1] if law in _ONE_BATCH else batches
        checks[law] = functools.partial(_CHECKS[law], subject, given, **options)
    return _run(checks, skip)


def check_function(fn: Callable[..., Any], *args: Any, differentiable: bool = True) -> Reports:
    """Check the laws of a pure function of trees: pure, deterministic, keyed, compiled, differentiable.

    Args:
        fn: the function.
        *args: its arguments.
        differentiable: check its gradients, and that an exception inside of it changes nothing.

    Returns:
        The reports.

    Raises:
        LawViolation: as for `check_all`.

    Example:
        >>> import torch
        >>> print(check_function(torch.sin, torch.ones(3)).passed)
        True
    """
    names = ["pure", "deterministic", "keyed", "compiled", "exception_safety"]
    names += ["gradients"] if differentiable else []
    checks: dict[str, Check] = {
        name: functools.partial(_CHECKS[name], fn, args=args) for name in names
    }
    return _run(checks, ())


def _run(checks: dict[str, Check], skip: Sequence[str]) -> Reports:
    start = time.perf_counter()
    reports, violations = [], []
    for law, check in checks.items():
        began = time.perf_counter()
        try:
            if law in skip:
                raise InapplicableError("excluded by the argument skip")
            reports.append(check())
        except InapplicableError as error:
            seconds = time.perf_counter() - began
            reports.append(Report(law, False, (), seconds, str(error), applies=False))
        except LawViolation as violation:
            violations.append(violation)
            seconds = time.perf_counter() - began
            reports.append(Report(law, False, (), seconds, violation.summary))
    found = Reports(tuple(reports), time.perf_counter() - start)
    if violations:
        first = violations[0]
        first.reports = found
        first.add_note(str(found))
        raise first
    return found
