"""Modules of `ftrain/core` that `python -m tests.mutants` changes, and the tests that judge them."""

from __future__ import annotations

SUBJECTS: dict[str, tuple[str, ...]] = {
    "commit": ("tests/core/test_commit.py", "tests/core/test_step.py"),
    "metrics": ("tests/core/test_metrics.py",),
    "norm": ("tests/core/test_norm.py",),
    "precision": ("tests/core/test_precision.py",),
    "state": ("tests/core/test_step.py",),
    "step": ("tests/core/test_step.py",),
    "evaluate": ("tests/core/test_step.py",),
    "gradients": ("tests/core/test_step.py", "tests/core/test_precision.py"),
    "accumulate": ("tests/core/test_step.py", "tests/core/test_batches.py"),
    "optimizer": ("tests/core/test_step.py",),
    "functional": ("tests/core/test_functional.py",),
    "tree": ("tests/core/test_tree.py",),
    "scan": ("tests/core/test_scan.py",),
    "cond": ("tests/core/test_cond.py",),
    "while_loop": ("tests/core/test_while_loop.py",),
    "random.keys": ("tests/random/test_threefry.py",),
}
# Tests that judge every module: the laws on small models.
LAWS = ("tests/laws/test_laws.py",)
