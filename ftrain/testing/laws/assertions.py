"""Short assertions of the laws, for one step and one batch.

Each takes a step `(state, batch) -> (state, metrics)`, compiled or not, ftrain's or your own, and raises
an `AssertionError` with one line. The checks say more: operator, line, cause and remedy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ftrain.core import tree
from ftrain.testing._copies import copied
from ftrain.testing.difference import first_difference
from ftrain.testing.laws.deterministic import check_deterministic
from ftrain.testing.laws.evaluation import check_evaluation
from ftrain.testing.laws.fixpoint import check_fixpoint
from ftrain.testing.laws.pure import check_pure
from ftrain.testing.laws.resume import check_resume
from ftrain.testing.laws.skip import require_kept
from ftrain.testing.laws.vmap import check_vmap
from ftrain.testing.report import LawViolation

__all__ = [
    "assert_deterministic",
    "assert_evaluation_is_pure",
    "assert_fixpoint",
    "assert_pure",
    "assert_resumes",
    "assert_skips",
    "assert_vmap_rows",
]

Step = Callable[[Any, Any], tuple[Any, Any]]


@contextlib.contextmanager
def _brief() -> Iterator[None]:
    """Convert a `LawViolation` in a `with` block to an `AssertionError` with its summary."""
    try:
        yield
    except LawViolation as violation:
        raise AssertionError(violation.summary) from violation


def assert_pure(fn: Callable[..., Any], *args: Any, model: Any = None) -> None:
    """Raise unless law 1 holds: no input or global state changes, and no output aliases an input.

    The global state is the random states of torch, NumPy and Python, and torch's modes and settings.

    Args:
        fn: the function.
        *args: its arguments.
        model: a module or other object that `fn` reads. It must keep its attributes, its hooks and
            all objects that it holds: nested containers, instances, the data of its classes.

    >>> import torch
    >>> assert_pure(lambda x: x + 1, torch.zeros(3))
    >>> assert_pure(lambda x: x.add_(1), torch.zeros(3))
    Traceback (most recent call last):
        ...
    AssertionError: an input changed: args[0] at (0,): expected 0.0, got 1.0 (... 3 of 3 elements differ)
    >>> counts = {"calls": [0]}
    >>> assert_pure(lambda: counts["calls"].append(1), model=counts)
    Traceback (most recent call last):
        ...
    AssertionError: the call changed ['calls'] of the model
    """
    with _brief():
        check_pure(fn, args=args, model=model)


def assert_deterministic(fn: Callable[..., Any], *args: Any, times: int = 2) -> None:
    """Raise unless law 2 holds: calls with equal input bytes return equal output bytes."""
    with _brief():
        check_deterministic(fn, args=args, times=times)


def assert_fixpoint(step: Step, state: Any, batch: Any) -> None:
    """Raise unless law 3 holds: the state keeps its structure, shapes, dtypes, devices and strides."""
    with _brief():
        check_fixpoint(step, [batch], state=state, compiled=False)


def assert_skips(
    step: Step,
    state: Any,
    poisoned_batch: Any,
    *,
    moving: Sequence[str] = ("rng",),
    free: Sequence[str] = ("scaler",),
) -> None:
    """Raise unless law 6 holds: a step with non-finite gradients changes only scaler and key.

    Args:
        step: the step; its metrics have an entry `skipped`.
        state: a `TrainState`, or a tree of another class with fields or keys.
        poisoned_batch: a batch whose gradients are not finite.
        moving: fields that must change, if the state has them; default: the key.
        free: fields of the state that may change.

    Example:
        >>> import torch
        >>> def step(state, batch):
        ...     ok = torch.isfinite(batch).all()
        ...     w = torch.where(ok, state["w"] - batch, state["w"])
        ...     return {"w": w, "key": state["key"] + 1}, {"skipped": ~ok}
        >>> state = {"w": torch.zeros(2), "key": torch.tensor(0)}
        >>> assert_skips(step, state, torch.tensor([torch.nan, 1.0]), moving=["key"])
    """
    kept = copied(state)
    new_state, metrics = step(state, poisoned_batch)
    if "skipped" not in metrics:
        raise AssertionError(
            f"metrics: expected an entry 'skipped', got {[*metrics]}. Return it from the step."
        )
    with _brief():
        require_kept(kept, new_state, metrics, free=(*free, *moving))
    before, after = tree.one_level(kept), tree.one_level(new_state)
    for path, was in before.items():
        if path.strip(".[]'") in moving and first_difference(after[path], was) is None:
            raise AssertionError(
                f"state{path}: expected another value after a skipped step too, got the same bytes. "
                "Change it in each step."
            )


def assert_resumes(step: Step, state: Any, batches: Iterable[Any]) -> None:
    """Raise unless law 7 holds: a run resumed from a checkpoint computes the same bits.

    Each state passes through `ftrain.checkpoint`, and comes back in fresh memory.
    """
    with _brief():
        check_resume(step, list(batches), state=state)


def assert_vmap_rows(
    step: Step, states: list[Any], batch: Any, *, relative: float = 0.0, compile: Any = None
) -> None:
    """Raise unless law 8 holds: each row of a vmapped step equals the step of that row alone.

    Args:
        step: the step.
        states: the rows.
        batch: one batch, the same for each row.
        relative: the largest relative distance of a row's state (a batched matrix product may sum in
            another order than a single one); 0 requires the same bits.
        compile: a function applied to the vmapped step, such as `ftrain.compile`.
    """
    with _brief():
        check_vmap(
            step, [batch], state=states[0], states=states, relative=relative, compile=compile
        )


def assert_evaluation_is_pure(
    step: Step, evaluate: Callable[[Any, Any], Any], state: Any, batch: Any
) -> None:
    """Raise unless law 10 holds: evaluations between steps do not change a run."""
    with _brief():
        check_evaluation(step, [batch], state=state, evaluate=evaluate)
