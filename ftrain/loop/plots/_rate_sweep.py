"""Figure of a learning-rate sweep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from ftrain.loop.plots._style import dress, new_figure, theme, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ftrain.loop.plots.run_log import Path

__all__ = ["rate_sweep_figure"]


class Sweep(Protocol):
    """Protocol of the attributes of a `RateSweep` that the figure reads."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates, in ascending order."""

    @property
    def losses(self) -> tuple[float, ...]:
        """Loss at each rate."""

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Smoothed loss at each rate."""

    @property
    def suggestion(self) -> float | None:
        """Suggested rate; `None` if there is none."""


def rate_sweep_figure(sweep: Sweep, out: Path | None, title: str | None, dark: bool) -> Figure:
    """Draw a sweep's losses as dots, its smoothed losses as a line, and the suggested rate."""
    colours = theme(dark)
    blue, orange = colours.series[:2]
    figure = new_figure("a learning-rate sweep", 7.2, 4.0, dark)
    ax = figure.subplots()
    dress(ax, dark, title or "learning-rate sweep")
    ax.set_xscale("log")
    ax.plot(sweep.rates, sweep.losses, ".", color=colours.quiet, alpha=0.45, ms=5)
    ax.plot(sweep.rates, sweep.smoothed, color=blue, linewidth=2)
    finite = [value for value in sweep.smoothed if math.isfinite(value)]
    if finite:
        low, start = min(finite), finite[0]
        high = max(start, *finite[: max(1, finite.index(low) + 1)])
        room = (high - low) or abs(high) or 1.0
        ax.set_ylim(low - 0.12 * room, high + 0.45 * room)
    if sweep.suggestion is not None:
        at = sweep.smoothed[sweep.rates.index(sweep.suggestion)]
        ax.axvline(sweep.suggestion, color=orange, linewidth=1.2, linestyle=(0, (4, 3)))
        ax.plot([sweep.suggestion], [at], "o", color=orange, ms=8, zorder=5)
        ax.annotate(
            f"{sweep.suggestion:.2g}",
            (sweep.suggestion, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-6, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            color=orange,
            fontsize=11,
            fontweight="bold",
        )
    ax.set_xlabel("learning rate")
    ax.set_ylabel("training loss")
    write(figure, out)
    return figure
