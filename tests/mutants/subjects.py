"""Modules of `ftrain/core` that `python -m tests.mutants` changes, and the tests that judge them."""

from __future__ import annotations

SUBJECTS: dict[str, tuple[str, ...]] = {
    "commit": ("tests/core/test_commit.py", "tests/core/test_step.py"),
    "metrics": (
        "tests/core/test_metrics.py",
        "tests/core/test_nesting.py",
        "tests/loop/test_metrics.py",
    ),
    "norm": ("tests/core/test_norm.py", "tests/core/test_commit.py"),
    "precision": ("tests/core/test_precision.py", "tests/core/test_step.py"),
    "state": ("tests/core/test_step.py", "tests/core/test_python_side.py"),
    "step": ("tests/core/test_step.py", "tests/core/test_loss_key.py"),
    "evaluate": ("tests/core/test_step.py", "tests/core/test_outputs.py"),
    "gradients": (
        "tests/core/test_step.py",
        "tests/core/test_precision.py",
        "tests/core/test_differentiating_losses.py",
    ),
    "accumulate": (
        "tests/core/test_step.py",
        "tests/core/test_batches.py",
        "tests/core/test_foreign_batches.py",
    ),
    "optimizer": ("tests/core/test_step.py", "tests/core/test_python_side.py"),
    "functional": (
        "tests/core/test_functional.py",
        "tests/core/test_hidden_state.py",
        "tests/core/test_python_side.py",
    ),
    "tree": ("tests/core/test_tree.py", "tests/core/test_digests.py"),
    "scan": ("tests/core/test_scan.py", "tests/core/test_scan_gradients.py"),
    "cond": ("tests/core/test_cond.py",),
    "while_loop": ("tests/core/test_while_loop.py",),
    "random.keys": ("tests/random/test_threefry.py", "tests/random/test_sample.py"),
}
# Tests that judge every module: the laws on small models.
LAWS = ("tests/laws/test_laws.py",)
