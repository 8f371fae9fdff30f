"""Histograms of values between fixed edges, such as histograms of gradients by module."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Histogram", "histogram", "log_edges"]


class Histogram(NamedTuple):
    """Counts of values between fixed edges; the log of a `Trainer` omits them.

    Attributes:
        counts: int64 `(edges + 1,)`: the numbers of values up to the first edge, between each two edges
            (the upper edge included), and above the last edge or NaN.
    """

    counts: Tensor

    @property
    def value(self) -> Tensor:
        """Return the counts."""
        return self.counts

    def merge(self, other: Histogram) -> Histogram:
        """Return the sum of the counts of `self` and `other`."""
        return Histogram(self.counts + other.counts)


def histogram(values: Tensor, edges: Sequence[float]) -> Histogram:
    """Count the values between given edges, without waiting for the device.

    Args:
        values: floating point, any shape. bfloat16 and float16 are compared as float32.
        edges: at least one number, strictly increasing.

    Raises:
        ValueError: the edges do not increase.

    Example:
        >>> histogram(torch.tensor([-3.0, 0.0, 0.5, 1.0, 9.0]), (0.0, 1.0)).value
        tensor([2, 2, 1])
    """
    check_edges(edges)
    values = values.to(torch.promote_types(values.dtype, torch.float32)).flatten()
    # Not torch.tensor(edges, device=...), which copies from the host and waits.
    limits = torch.stack([values.new_full((), edge) for edge in edges])
    places = torch.bucketize(values, limits)
    empty = torch.zeros(len(edges) + 1, dtype=torch.int64, device=values.device)
    return Histogram(empty.scatter_add(0, places, torch.ones_like(places)))


def log_edges(low: float = 1e-10, high: float = 100.0, per_decade: int = 1) -> tuple[float, ...]:
    """Return histogram edges of both signs, equally spaced on a logarithmic scale.

    Args:
        low: the smallest positive edge; values between `-low` and `low` share one interval.
        high: the largest edge.
        per_decade: the number of intervals for each factor of ten.

    Raises:
        ValueError: `low` is not positive or not below `high`, or `per_decade` is not positive.

    Example:
        >>> log_edges(0.1, 10.0)
        (-10.0, -1.0, -0.1, 0.1, 1.0, 10.0)
    """
    if not 0 < low < high < math.inf or per_decade < 1:
        raise ValueError(
            f"log_edges: expected 0 < low < high and at least one interval per decade, got {low!r}, "
            f"{high!r} and {per_decade!r}. Write log_edges(1e-10, 100.0)."
        )
    n = round(math.log10(high / low) * per_decade)
    positive = [float(f"{low * 10 ** (i / per_decade):.6g}") for i in range(n + 1)]
    return (*(-edge for edge in reversed(positive)), *positive)


def check_edges(edges: Any) -> None:
    """Raise unless the edges are one or more numbers in increasing order."""
    if (
        isinstance(edges, str)
        or not isinstance(edges, Collection)
        or not all(isinstance(x, numbers.Real) for x in edges)
    ):
        raise TypeError(
            f"edges: expected a tuple of numbers, got {edges!r}. Write ftrain.tasks.metrics.log_edges()."
        )
    if not len(edges) or any(not a < b for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"edges: expected strictly increasing numbers, got {tuple(edges)}. Write "
            "ftrain.tasks.metrics.log_edges()."
        )
