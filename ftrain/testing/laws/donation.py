"""Law 9: donation changes memory, not bits.

Read next: `exception_safety.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch

from ftrain.core import tree
from ftrain.core.compile import compile as compile_
from ftrain.core.state import TrainState
from ftrain.testing._copies import copied
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import Call, name_of, outputs_of, subject_of
from ftrain.testing.laws._traced import plain, require_tensors, untraceable
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_donation"]


@tree.register_dataclass
class Donated:
    """Wrapper that allows donation of a state whose class is not `TrainState`."""

    state: Any


@unchanging
def check_donation(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    backend: Literal["eager", "inductor"] = "eager",
) -> Report:
    """Check law 9: a step compiled with `donate=True` gives the same bits, in the old state's memory.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`, compiled or not. A state of any class is donated.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        backend: of `ftrain.compile`.

    Returns:
        The report.

    Raises:
        LawViolation: the state cannot be donated, or its bits differ.

    Example:
        >>> def step(state, batch):
        ...     return {"w": state["w"] - batch, "old": state["w"]}, {}
        >>> state = {"w": torch.zeros(2), "old": torch.zeros(2)}
        >>> print(check_donation(step, [torch.ones(2)] * 3, state=state))
        donation: passed in ... s
          state after 3 donated steps  2 leaves, 16 bytes  same bytes
          memory                       2 of 2 leaves       reused
    """
    start = time.perf_counter()
    whole = subject_of(subject, batches, state, seed)
    fn = plain(whole.step)
    for batch in whole.batches:
        require_tensors(Call(name_of(fn), fn, (whole.state, batch), ("state", "batch")))
    name = name_of(fn)
    ordinary, donating = compile_(fn, backend=backend), _donating(fn, backend)
    kept, donated = copied(whole.state), _boxed(copied(whole.state))
    places = _places(donated)
    for i, batch in enumerate(whole.batches):
        with untraceable("donation", name):
            kept, metrics = outputs_of(ordinary(kept, copied(batch)))
            donated, donated_metrics = donating(donated, copied(batch))
        for what, got, expected in (
            ("state", donated, _boxed(kept)),
            ("metrics", donated_metrics, metrics),
        ):
            difference = first_difference(got, expected)
            if difference is not None:
                raise LawViolation(
                    "donation",
                    f"donation changed the {what} after step {i + 1}: {difference}",
                    difference=difference,
                    cause="a leaf is read after its memory was overwritten.",
                    remedy="Copy values that outlive the step with .clone(), and report this as a "
                    "bug of ftrain.",
                )
    reused = sum(a == b for a, b in zip(places, _places(donated), strict=True))
    rows = (
        Row(f"state after {plural(len(batches), 'donated step')}", amount(donated), "same bytes"),
        Row("memory", f"{reused} of {plural(len(places), 'leaf', 'leaves')}", "reused"),
    )
    return Report("donation", True, rows, time.perf_counter() - start)


def _donating(fn: Any, backend: Literal["eager", "inductor"]) -> Any:
    def step(state: Any, batch: Any) -> Any:
        inner = state.state if isinstance(state, Donated) else state
        new, metrics = outputs_of(fn(inner, batch))
        return _boxed(new), metrics

    step.__name__ = name_of(fn)
    return compile_(step, donate=True, backend=backend)


def _boxed(state: Any) -> Any:
    return state if isinstance(state, TrainState) else Donated(state)


def _places(state: Any) -> list[int]:
    return [leaf.data_ptr() for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)]
