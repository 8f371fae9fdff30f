"""Assertions that a training step, of ftrain or your own, obeys the laws of pure training."""

from ftrain.testing.compare import assert_close_norm, assert_same_bits, describe_difference
from ftrain.testing.laws import (
    assert_deterministic,
    assert_evaluation_is_pure,
    assert_fixpoint,
    assert_pure,
    assert_resumes,
    assert_skips,
    assert_vmap_rows,
)

__all__ = [
    "assert_close_norm",
    "assert_deterministic",
    "assert_evaluation_is_pure",
    "assert_fixpoint",
    "assert_pure",
    "assert_resumes",
    "assert_same_bits",
    "assert_skips",
    "assert_vmap_rows",
    "describe_difference",
]
