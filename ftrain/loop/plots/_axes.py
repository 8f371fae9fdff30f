"""Scales and tick labels of chart axes: round numbers, without matplotlib's offset or factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ftrain.loop.plots._style import Theme

__all__ = ["clock_unit", "scale_x", "scale_y", "tick"]

_LOG_RANGE = 30.0  # ratio of largest to smallest value above which an axis is logarithmic
_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


def tick(value: float, largest: float) -> str:
    """Format a tick label in the unit (`k`, `M`, ...) or notation of the largest tick.

    Example:
        >>> [tick(v, 2e6) for v in (0, 5e5, 2e6)], [tick(v, 1e-4) for v in (5e-5, 1e-4)], tick(0.25, 1)
        (['0', '0.5M', '2M'], ['5e-5', '1e-4'], '0.25')
    """
    if value == 0:
        return "0"
    for unit, size in _UNITS:
        if size <= abs(largest) < 1e12 and abs(largest) >= 1e4:
            return f"{value / size:.6g}{unit}"
    if 1e-3 <= abs(largest) < 1e12:
        return f"{value:.6g}"
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def clock_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which to show a duration, and the unit's length in seconds.

    Example:
        >>> clock_unit(90.0), clock_unit(9000.0)
        (('s', 1.0), ('min', 60.0))
    """
    return ("s", 1.0) if seconds < 600 else ("min", 60.0) if seconds < 4 * 3600 else ("h", 3600.0)


def scale_x(ax: Axes, whole: bool) -> None:
    """Set round ticks on a chart's horizontal axis; only integers if `whole`."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # optional

    ax.xaxis.set_major_locator(MaxNLocator(7, integer=whole, steps=[1, 2, 5, 10], min_n_ticks=1))
    ax.xaxis.set_major_formatter(_formatter())


def scale_y(ax: Axes, metric: str, values: Sequence[float], colours: Theme) -> None:
    """Scale a chart's vertical axis: speeds start at zero, wide ranges use a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415  # optional

    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        ax.set_yticks([])
        at: Any = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "no finite value", color=colours.quiet, fontsize=9, **at)
        return
    low, high = min(finite), max(finite)
    if metric == "learning_rate" or metric.endswith("_per_second"):
        ax.set_ylim(bottom=0)
    elif low > 0 and high / low > _LOG_RANGE:
        ax.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(_formatter(each=True))
        return
    ax.yaxis.set_major_formatter(_formatter())


def _formatter(each: bool = False) -> Any:
    """Return a formatter of tick labels, with one unit for the axis or, if `each`, a unit per tick."""
    from matplotlib.ticker import Formatter  # noqa: PLC0415  # optional

    class Ticks(Formatter):
        def __call__(self, value: float, pos: int | None = None) -> str:
            return tick(value, value)

        def format_ticks(self, values: Sequence[float]) -> list[str]:
            largest = max(map(abs, values), default=0.0)
            return [tick(value, value if each else largest) for value in values]

    return Ticks()
