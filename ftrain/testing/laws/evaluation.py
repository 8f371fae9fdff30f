"""Law 10: evaluations between steps do not change a run.

Read next: `compiled.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ftrain.testing._copies import copied
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import Call, InapplicableError, Subject, name_of, subject_of
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.laws.deterministic import check_deterministic
from ftrain.testing.laws.pure import check_pure
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_evaluation"]


@unchanging
def check_evaluation(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    evaluate: Callable[[Any, Any], Any] | None = None,
) -> Report:
    """Check law 10: evaluations are pure and deterministic, and do not change later training steps.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`.
        batches: a list of batches; each one is a step of the run, and is evaluated before it.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        evaluate: `(state, batch) -> metrics`; default: the `eval_step` of the subject.

    Returns:
        The report.

    Raises:
        LawViolation: the evaluation changes an input, an object or the training that follows it.
        ValueError: the subject has no evaluation.

    Example:
        >>> import torch
        >>> def step(state, batch):
        ...     return {"w": state["w"] + batch}, {}
        >>> def evaluate(state, batch):
        ...     return {"norm": state["w"].mul_(0.5).norm()}
        >>> check_evaluation(step, [torch.ones(2)], state={"w": torch.ones(2)}, evaluate=evaluate)
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "evaluation": an input changed: args[0]['w'] at (0,): ...
          operator: aten.mul_.Tensor
          ...
    """
    start = time.perf_counter()
    whole = subject_of(subject, batches, state, seed)
    evaluate = evaluate or whole.evaluate
    if evaluate is None:
        raise InapplicableError(
            "evaluate: expected a function (state, batch) -> metrics, since the subject is a step "
            "alone, got None. Pass evaluate=..."
        )
    plain = _run(whole, None)
    if first_difference(_run(whole, None), plain) is not None:
        raise LawViolation(
            "evaluation",
            "two runs without an evaluation differ",
            cause=f"{name_of(whole.step)} is not deterministic, so evaluations cannot be judged.",
            remedy="Make check_deterministic and check_pure pass first.",
        )
    first = (copied(whole.state), whole.batches[0])
    try:
        check_pure(evaluate, args=first)
        check_deterministic(evaluate, args=first, times=2)
    except LawViolation as violation:
        raise violation.under("evaluation") from violation
    difference = first_difference(_run(whole, evaluate), plain)
    if difference is not None:
        label = Call("", evaluate, (), (), ("state", "metrics"))
        raise LawViolation(
            "evaluation",
            f"evaluation changed training: {label.output_named(difference)}",
            difference=difference,
            cause=f"{name_of(evaluate)} leaves something behind that the step reads: weights that were "
            "swapped in, a module in eval mode, an advanced generator.",
            remedy="Pass the weights as arguments, and restore what is changed in a finally clause.",
        )
    rows = (
        Row("evaluation", plural(1, "call"), "pure and deterministic"),
        Row("run with evaluations", amount(plain), "same bytes"),
    )
    return Report("evaluation", True, rows, time.perf_counter() - start)


def _run(whole: Subject, evaluate: Callable[[Any, Any], Any] | None) -> tuple[Any, Any]:
    state, metrics = copied(whole.state), None
    for batch in whole.batches:
        if evaluate is not None:
            evaluate(state, copied(batch))
        state, metrics = whole.stepped(state, batch)
    return state, metrics
