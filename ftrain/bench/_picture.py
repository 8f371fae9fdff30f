"""Picture of a benchmark: bars for variants, or lines over a numeric setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftrain.bench._table import swept, threads
from ftrain.bench.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["picture"]

# Colours that colour-blind readers can distinguish (Okabe and Ito, 2008).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")


def picture(rows: Sequence[Measurement], machine: Mapping[str, Any]) -> Any:
    """Return a matplotlib figure of the times of measured variants.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError(
            "the picture of a benchmark requires matplotlib, which is not installed. Run "
            "`pip install 'ftrain[examples]'`, or `pip install matplotlib`."
        ) from error
    figure = Figure((8, 0.4 * len(rows) + 1.6), layout="constrained", dpi=150)
    ax = figure.add_subplot()
    keys = swept(tuple(rows))
    axis = next((key for key in keys if all(_is_number(row.settings[key]) for row in rows)), None)
    if axis is None:
        _bars(ax, rows)
    else:
        figure.set_size_inches(8, 4.5)
        _lines(ax, rows, axis)
    ax.spines[["top", "right"]].set_visible(False)
    where = machine.get("device", machine["cpu"])
    ax.set_title(f"{where}, {threads(machine)}", loc="left", fontsize=8)
    return figure


def _bars(ax: Axes, rows: Sequence[Measurement]) -> None:
    times = [row.median * 1e3 for row in rows]
    places = range(len(rows))
    colours = [_COLOURS[i % len(_COLOURS)] for i in places]
    ax.barh(places, times, color=colours, height=0.6)
    ax.errorbar(times, places, xerr=_whiskers(rows), fmt="none", ecolor="#333333", capsize=3)
    ax.set_yticks(places, [row.name for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("ms a step; whiskers from the 5th to the 95th percentile", fontsize=8)


def _lines(ax: Axes, rows: Sequence[Measurement], axis: str) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # optional

    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        rest = [f"{k}={v}" for k, v in row.settings.items() if k != axis]
        groups.setdefault(", ".join([row.variant, *rest]), []).append(row)
    for i, (name, group) in enumerate(groups.items()):
        ordered = sorted(group, key=lambda row: float(row.settings[axis]))
        x = [float(row.settings[axis]) for row in ordered]
        y = [row.median * 1e3 for row in ordered]
        colour = _COLOURS[i % len(_COLOURS)]
        ax.errorbar(x, y, yerr=_whiskers(ordered), marker="o", capsize=3, label=name, color=colour)
    ax.set_xlabel(axis, fontsize=8)
    ax.set_ylabel("ms a step", fontsize=8)
    ticks = sorted({float(row.settings[axis]) for row in rows})
    if ticks[0] > 0:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()
    times = [row.median * 1e3 for row in rows]
    levels = MaxNLocator(6).tick_values(0.0, max(times))
    levels = [level for level in levels if level >= 0.5 * min(times)]
    ax.set_yticks(levels, [f"{level:g}" for level in levels])
    ax.legend(fontsize=8, frameon=False)


def _whiskers(rows: Sequence[Measurement]) -> list[list[float]]:
    low = [max(row.median - row.p5, 0.0) * 1e3 for row in rows]
    high = [max(row.p95 - row.median, 0.0) * 1e3 for row in rows]
    return [low, high]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
