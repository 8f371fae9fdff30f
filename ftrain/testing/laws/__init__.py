"""Checks of the laws of a training step, with one file per law.

    report = check_pure(steps, [batch])             # Steps, or (init_state, train_step, eval_step)
    report = check_pure(step, [batch], state=state) # a step (state, batch) -> (state, metrics)
    report = check_pure(fn, args=(x, y))            # a pure function
    print(check_all(steps, batches))                # every law that applies

Each check returns a `Report` or raises `LawViolation`, which names the leaf, the operator and the line.

Read next: `_subject.py`, how a subject becomes calls; `pure.py`, the first law.
"""

from ftrain.testing.laws.accumulation import check_accumulation
from ftrain.testing.laws.assertions import (
    assert_deterministic,
    assert_evaluation_is_pure,
    assert_fixpoint,
    assert_pure,
    assert_resumes,
    assert_skips,
    assert_vmap_rows,
)
from ftrain.testing.laws.compiled import check_compiled
from ftrain.testing.laws.deterministic import check_deterministic
from ftrain.testing.laws.donation import check_donation
from ftrain.testing.laws.evaluation import check_evaluation
from ftrain.testing.laws.every import check_all, check_function
from ftrain.testing.laws.exception_safety import check_exception_safety
from ftrain.testing.laws.fixpoint import check_fixpoint
from ftrain.testing.laws.gradients import check_gradients
from ftrain.testing.laws.keyed import check_keyed
from ftrain.testing.laws.pure import check_pure
from ftrain.testing.laws.resume import check_resume
from ftrain.testing.laws.skip import check_skip
from ftrain.testing.laws.vmap import check_vmap

__all__ = [
    "assert_deterministic",
    "assert_evaluation_is_pure",
    "assert_fixpoint",
    "assert_pure",
    "assert_resumes",
    "assert_skips",
    "assert_vmap_rows",
    "check_accumulation",
    "check_all",
    "check_compiled",
    "check_deterministic",
    "check_donation",
    "check_evaluation",
    "check_exception_safety",
    "check_fixpoint",
    "check_function",
    "check_gradients",
    "check_keyed",
    "check_pure",
    "check_resume",
    "check_skip",
    "check_vmap",
]
