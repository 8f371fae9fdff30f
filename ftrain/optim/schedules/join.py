"""Concatenation of learning-rate schedules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ftrain.core._torch import value_at_hand
from ftrain.optim import _checks
from ftrain.optim._rate import rate_at
from ftrain.optim.protocol import Schedule

__all__ = ["join"]


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Concatenate schedules; each counts updates from the boundary at which it begins.

    `schedules[i]` gives the rates from count `boundaries[i - 1]` on, and is called with the count minus
    that boundary, as in `SequentialLR` of torch (`milestones`) and `optax.join_schedules`.

    Args:
        schedules: two or more. They are never called with a count below 0 or past their end, so their
            values there do not matter.
        boundaries: the counts at which the second, third, ... schedule begins, in ascending order: one
            fewer than schedules.

    Raises:
        ValueError: there are too many or too few boundaries, or they are not in ascending order.
        TypeError: an entry is not a schedule, or a boundary is not an int.

    Example:
        >>> from ftrain import optim
        >>> rate = join([optim.linear(0.0, 1.0, 2), optim.constant(1.0), optim.cosine(1.0, 2)], [2, 4])
        >>> [round(rate(torch.tensor(t)).item(), 3) for t in range(8)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    schedules, boundaries = tuple(schedules), tuple(boundaries)
    for index, schedule in enumerate(schedules):
        if not callable(schedule) or isinstance(schedule, torch.Tensor):
            raise TypeError(
                f"schedules[{index}]: expected a schedule, got {type(schedule).__name__} {schedule!r}. "
                "Write `constant(rate)` for a constant rate."
            )
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(
            "join: expected at least one schedule, and one boundary between each two schedules, got "
            f"{len(schedules)} schedules (which need {max(len(schedules) - 1, 0)} boundaries) and "
            f"{len(boundaries)} boundaries. Write `join([warmup, decay], [warmup_steps])`."
        )
    for index, boundary in enumerate(boundaries):
        _checks.positive_int(f"boundaries[{index}]", boundary)
        if index and boundary <= boundaries[index - 1]:
            raise ValueError(
                f"boundaries[{index}] is {boundary}, but boundaries[{index - 1}] is "
                f"{boundaries[index - 1]}: each schedule must begin after the one before it. Give "
                "numbers of updates since the start of the run, not lengths of schedules."
            )
    begins = (0, *boundaries)

    def running(count: torch.Tensor) -> int | None:
        """Return the index of the schedule at this count; `None` if the count cannot be read."""
        for index, end in enumerate(boundaries):
            is_before = value_at_hand(count < end)
            if is_before is None or is_before:
                return index if is_before else None
        return len(boundaries)

    def joined(count: torch.Tensor, /) -> torch.Tensor:
        index = None if torch.is_grad_enabled() else running(count)
        if index is not None:
            return rate_at(schedules[index], (count - begins[index]).clamp(min=0))
        rate = rate_at(schedules[-1], (count - begins[-1]).clamp(min=0))
        for index in reversed(range(len(boundaries))):
            begin, end = begins[index], boundaries[index]
            # The count is clamped to the schedule's range: outside of it a rate may overflow, and an
            # infinity makes gradients NaN even if `torch.where` does not select it.
            inside = count.clamp(begin, end) - begin
            rate = torch.where(count < end, rate_at(schedules[index], inside), rate)
        return rate

    return joined
