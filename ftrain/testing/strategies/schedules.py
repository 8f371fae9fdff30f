"""Hypothesis strategy of learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain import optim

__all__ = ["rates", "schedules"]


def rates() -> SearchStrategy[float]:
    """Return a strategy of learning rates from 0.001 to 1, with three decimals."""
    return st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


def schedules(*, max_steps: int = 20) -> SearchStrategy[optim.Schedule]:
    """Return a strategy of schedules of `ftrain.optim`, which shrink to `constant`.

    Hypothesis prints them as the call that made them, `join((constant(0.001), ...), (1,))`.

    Args:
        max_steps: the largest number of steps of a phase.

    Raises:
        ValueError: `max_steps` is not positive.

    Example:
        >>> import torch
        >>> from hypothesis import find
        >>> find(schedules(), lambda schedule: True)(torch.tensor(5))
        tensor(0.0010, dtype=torch.float64)
    """
    if max_steps < 1:
        raise ValueError(f"max_steps: expected a positive number, got {max_steps}. Pass 1 or more.")
    return _schedules(max_steps)


@st.composite
def _schedules(draw: Any, max_steps: int) -> Any:
    simple = _simple(max_steps)
    joined = st.builds(optim.join, st.tuples(simple, simple), st.tuples(st.integers(1, max_steps)))
    return draw(simple | joined)


@st.composite
def _simple(draw: Any, max_steps: int) -> Any:
    make = draw(st.sampled_from(_KINDS))
    return draw(make(rates(), st.integers(1, max_steps)))


def _factors() -> SearchStrategy[float]:
    return st.integers(1, 10).map(lambda tenths: tenths / 10)


def _with_warmup(rate: SearchStrategy[float], steps: SearchStrategy[int]) -> SearchStrategy[Any]:
    """Return a strategy of `warmup_cosine` schedules with valid numbers of steps."""
    return st.tuples(steps, steps).flatmap(
        lambda n: st.builds(optim.warmup_cosine, rate, st.just(n[0]), st.just(n[0] + n[1]))
    )


_KINDS: tuple[Callable[[SearchStrategy[float], SearchStrategy[int]], SearchStrategy[Any]], ...] = (
    lambda rate, steps: st.builds(optim.constant, rate),
    lambda rate, steps: st.builds(optim.linear, rate, rate, steps),
    lambda rate, steps: st.builds(optim.polynomial, rate, rate, steps, st.integers(1, 3)),
    lambda rate, steps: st.builds(optim.exponential, rate, _factors(), steps),
    lambda rate, steps: st.builds(optim.step, rate, steps, _factors()),
    lambda rate, steps: st.builds(
        optim.piecewise_constant,
        rate,
        st.dictionaries(steps, _factors(), min_size=1, max_size=2),
    ),
    lambda rate, steps: st.builds(optim.cosine, rate, steps),
    lambda rate, steps: st.builds(optim.cosine_restarts, rate, steps, factor=st.integers(1, 2)),
    lambda rate, steps: st.builds(optim.linear_warmup, rate, steps),
    lambda rate, steps: st.builds(optim.inverse_sqrt, rate, steps),
    lambda rate, steps: st.builds(optim.warmup_stable_decay, rate, steps, steps, steps),
    _with_warmup,
)
