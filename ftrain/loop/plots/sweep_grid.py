"""Figure of a sweep: one value per member, over the hyper-parameters that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftrain.loop.plots._style import Theme, dress, label, new_figure, theme, write
from ftrain.loop.plots.run_log import Path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["sweep_grid"]

Row = Mapping[str, float]


def sweep_grid(
    members: Sequence[Row],
    values: Sequence[float],
    out: Path | None = None,
    *,
    metric: str = "loss",
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw a metric of all members of a sweep over the hyper-parameters that differ.

    For two hyper-parameters, the figure is a map of the means over the seeds. For any other number, it
    has one chart for each hyper-parameter, with a dot for each member and a line through the means.

    Args:
        members: the values of each member, such as `transforms.grid(...)`, numbers by name.
        values: the metric of each member; means leave out values that are not finite.
        out: the file to write, `.png`, `.svg` or `.pdf`; `None`: no file.
        metric: name of the metric, for labels.
        title: title of the figure; default: the metric.
        dark: draw light on dark.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
        ValueError: there is no member, or the numbers of members and values differ.

    Example:
        >>> members = [{"learning_rate": rate, "seed": i} for rate in (0.01, 0.1) for i in range(2)]
        >>> figure = sweep_grid(members, [0.5, 0.6, 0.2, 0.3])
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['learning rate']
    """
    if not members or len(members) != len(values):
        raise ValueError(
            f"values: expected one number per member, got {len(values)} for {len(members)} members. "
            "Pass the metric of every member."
        )
    names = [n for n in members[0] if n != "seed" and len({row[n] for row in members}) > 1]
    names = names or ["seed" if "seed" in members[0] else next(iter(members[0]))]
    colours = theme(dark)
    if len(names) == 2:
        figure = new_figure("a picture of a sweep", 6.4, 4.4, dark)
        ax = figure.subplots()
        dress(ax, dark, title or label(metric))
        _map(figure, ax, members, values, names, colours, metric)
    else:
        figure = new_figure("a picture of a sweep", max(4.8, 3.6 * len(names)), 3.8, dark)
        for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            dress(ax, dark, title or label(metric) if name == names[0] else "")
            _line(ax, members, values, name, colours, metric)
    write(figure, out)
    return figure


def _line(
    ax: Axes,
    members: Sequence[Row],
    values: Sequence[float],
    name: str,
    colours: Theme,
    metric: str,
) -> None:
    """Draw a dot for each member, and a line through the means at each value of one hyper-parameter."""
    xs = [row[name] for row in members]
    places = sorted(set(xs))
    means = [_mean([v for x, v in zip(xs, values, strict=True) if x == place]) for place in places]
    if _is_geometric(places):
        ax.set_xscale("log")
    if name != "seed":
        ax.plot(places, means, color=colours.series[0], linewidth=2)
    ax.plot(xs, values, ".", color=colours.series[1], alpha=0.6, ms=6)
    ax.set_xlabel(label(name))
    ax.set_ylabel(label(metric))


def _map(
    figure: Figure,
    ax: Axes,
    members: Sequence[Row],
    values: Sequence[float],
    names: Sequence[str],
    colours: Theme,
    metric: str,
) -> None:
    """Draw a map over two hyper-parameters, with the mean over the seeds in each cell."""
    down, across = ([*dict.fromkeys(sorted(row[n] for row in members))] for n in names)
    at: dict[tuple[float, float], list[float]] = {}
    for row, value in zip(members, values, strict=True):
        at.setdefault((row[names[0]], row[names[1]]), []).append(value)
    table = [[_mean(at.get((y, x), [])) for x in across] for y in down]
    ax.grid(visible=False)
    image = ax.imshow(table, aspect="auto", origin="lower", cmap="viridis")
    ax.set_xticks(range(len(across)), [f"{x:.3g}" for x in across])
    ax.set_yticks(range(len(down)), [f"{y:.3g}" for y in down])
    ax.set_xlabel(label(names[1]))
    ax.set_ylabel(label(names[0]))
    bar = figure.colorbar(image, ax=ax)
    bar.set_label(label(metric), color=colours.quiet, fontsize=8)
    bar.ax.tick_params(colors=colours.quiet, labelsize=8)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _is_geometric(places: Sequence[Any]) -> bool:
    """Return True if values are positive and span at least a factor of ten."""
    return bool(places[0] > 0 and places[-1] >= 10 * places[0])
