"""Successive halving: keep the best part of the members of a sweep."""

from __future__ import annotations

import torch

from ftrain.core._words import kind
from ftrain.transforms.members import Mode, ranking

__all__ = ["successive_halving"]


def successive_halving(
    values: torch.Tensor,
    keep: float = 0.5,
    mode: Mode = "min",
    *,
    active: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Return a mask of the best $\lceil \mathrm{keep} \cdot m \rceil$ of $m$ active members.

    Nothing waits for the device. Of members with equal values the first are kept, and NaN is worse than
    any number. Apply the mask with `select` (fewer members, a smaller program) or `deactivate` (the same
    program).

    Args:
        values: `(n,)`, one per member, such as `metrics["loss"]` of an evaluation.
        keep: the fraction of members to keep, in (0, 1]; at least one member is kept.
        mode: `"min"` if smaller is better, `"max"` if larger is.
        active: bool, `(n,)`: the members that take part; default: all.

    Returns:
        bool, `(n,)`.

    Raises:
        ValueError: `keep` is out of range, or a shape is not `(n,)`.

    Example:
        >>> successive_halving(torch.tensor([0.3, float("nan"), 0.1, 0.2]))
        tensor([False, False,  True,  True])

    References:
        Jamieson, Talwalkar (2016), "Non-stochastic Best Arm Identification and Hyperparameter
        Optimization".
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected a fraction in (0, 1], got {keep!r}. Write keep=0.5.")
    if values.ndim != 1:
        raise ValueError(
            f"values: expected one number per member, shape (n,), got {kind(values)}. Reduce other axes "
            "first."
        )
    order = ranking(values, len(values), mode)
    if active is None:
        active = torch.ones_like(values, dtype=torch.bool)
    elif active.shape != values.shape or active.dtype != torch.bool:
        raise ValueError(
            f"active: expected bool{list(values.shape)}, as many as values, got {kind(active)}. Pass "
            "state.extras['active'] of the stacked state."
        )
    active_first = order[torch.argsort((~active[order]).to(torch.int8), stable=True)]
    # A rounding error must not keep one more member: 0.1 * 30 is 3.0000000000000004.
    count = torch.ceil(active.sum().double() * keep - 1e-9).clamp(min=1)
    rank = torch.empty_like(order)
    rank = rank.scatter(0, active_first, torch.arange(len(order), device=order.device))
    return (rank < count) & active
