"""Hypothesis strategy of training states that a run can reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

__all__ = ["states"]


def states(
    steps: Any,
    batches: SearchStrategy[Any] | Sequence[Any] = (),
    *,
    max_steps: int = 3,
    seeds: SearchStrategy[int] | None = None,
) -> SearchStrategy[Any]:
    """Return a strategy of states after some training steps, which shrink to `init_state(0)`.

    Args:
        steps: the `Steps` of the run, or another tuple of `init_state`, `train_step` and `eval_step`.
        batches: a strategy of batches, or a sequence of batches to draw from; empty: only initial
            states.
        max_steps: the largest number of steps before the state.
        seeds: a strategy of the seeds of `init_state`; default: all of 32 bits.

    Raises:
        TypeError: `steps` has no `init_state` and `train_step`.

    Example:
        >>> import torch
        >>> from ftrain import make_steps, optim
        >>> from hypothesis import find
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> steps = make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1))
        >>> find(states(steps, [torch.ones(3, 2)]), lambda state: int(state.step) > 0).step
        tensor(1)
    """
    init_state, train_step = getattr(steps, "init_state", None), getattr(steps, "train_step", None)
    if init_state is None and isinstance(steps, tuple) and len(steps) == 3:
        init_state, train_step, _ = steps
    if init_state is None or train_step is None:
        raise TypeError(
            f"steps: expected init_state, train_step and eval_step, got {type(steps).__name__}. Pass "
            "the result of make_steps."
        )
    if not isinstance(batches, SearchStrategy):
        batches = st.sampled_from(batches) if len(batches) else st.nothing()
    seeds = st.integers(0, 2**32 - 1) if seeds is None else seeds

    @st.composite
    def drawn(draw: Any) -> Any:
        seed = draw(seeds)
        drawn_batches = draw(st.lists(batches, max_size=0 if batches.is_empty else max_steps))
        note(f"state: init_state({seed}), then {len(drawn_batches)} steps")
        state = init_state(seed)
        for batch in drawn_batches:
            state, _ = train_step(state, batch)
        return state

    return drawn()
