"""Curves of one or several runs in one image.

Read next: `page.py`, the interactive page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ftrain.core.errors import DataError
from ftrain.loop.plots._axes import clock_unit, scale_x, scale_y
from ftrain.loop.plots._style import dress, label, new_figure, shortened, shown, theme, write
from ftrain.loop.plots.run_log import Curve, Path, RunLog, Runs, read_runs, splits_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "smoothed"]

Axis = Literal["step", "epoch", "time"]

_AXES = {"step": "steps", "epoch": "epochs", "time": "times"}
_MANY = 8  # number of runs above which lines are thinner
_LETTER, _MARK = 0.078, 0.6  # inches in a legend: a letter; the marker before a name


def curves(
    runs: Runs,
    out: Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    x: Axis = "step",
    smooth: float = 0.0,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw one chart per metric, with a colour per run and dots for evaluations.

    For an ensemble, a band around the mean covers the range from its smallest to its largest member.

    Args:
        runs: run directories, `metrics.jsonl` files or `RunLog`s; one or several.
        out: the file to write, `.png`, `.svg` or `.pdf`; `None`: no file.
        metrics: the metrics to draw, in this order; default: all logged metrics without groups such as
            `layers/...`, at most eight.
        x: the horizontal axis: "step", "epoch" or "time" (seconds).
        smooth: weight of the past in a running average of training curves, in [0, 1); the logged values
            stay visible behind it.
        title: title of the figure.
        dark: draw light on dark.

    Returns:
        The figure.

    Raises:
        DataError: a run has no log; no run has logged one of `metrics`.
        ImportError: matplotlib is not installed; the message says how to install it.
        ValueError: an option is out of range.

    Example:
        >>> import json, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = [{"step": n, "split": "train", "loss": 1 / n} for n in (1, 2, 4)]
        ...     text = "".join(json.dumps(row) + chr(10) for row in rows)
        ...     _ = (pathlib.Path(folder) / "metrics.jsonl").write_text(text)
        ...     figure = curves(folder, pathlib.Path(folder) / "curves.png")
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['loss']
    """
    if x not in _AXES:
        raise ValueError(f"x: expected one of {', '.join(_AXES)}, got {x!r}. Write x='step'.")
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth: expected a number in [0, 1), got {smooth!r}. Write smooth=0.9.")
    logs = read_runs(runs)
    chosen = _chosen(logs, metrics)
    columns = min(len(chosen), 3 if len(chosen) > 4 else 2)
    rows = -(-len(chosen) // columns)
    width = 7.2 if columns == 1 else 4.8 * columns
    entries = _entries(logs, chosen, dark)
    widest = max((len(entry["label"]) for entry in entries), default=0)
    across = min(len(entries), max(1, int(width / (_LETTER * widest + _MARK))))
    below = 0.2 * -(-len(entries) // across) if entries else 0.0
    figure = new_figure("plots.curves", width, 3.1 * rows + 0.3 + below, dark)
    grid = figure.subplots(rows, columns, squeeze=False)
    low, high = _reach(logs, chosen, x)
    unit, length = clock_unit(high) if x == "time" else ("", 1.0)
    for index, ax in enumerate(grid.flat):
        if index >= len(chosen):
            ax.set_visible(False)
            continue
        metric = chosen[index]
        dress(ax, dark, label(metric))
        _draw(ax, logs, metric, x, length, 0.0 if metric == "learning_rate" else smooth, dark)
        if index + columns >= len(chosen):
            ax.set_xlabel(f"time ({unit})" if x == "time" else x)
        ax.set_xlim(low / length, high / length)
        scale_x(ax, whole=x == "step")
    if entries:
        _legend(figure, entries, across, dark)
    if title is not None:
        place = {"x": 0.01, "ha": "left", "parse_math": False}
        figure.suptitle(title, color=theme(dark).text, fontsize=12, **place)
    write(figure, out)
    return figure


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return a bias-corrected exponential moving average with decay `weight`.

    Non-finite values become NaN, and do not change the average.

    Example:
        >>> smoothed([1.0, 1.0, float("nan"), 3.0], 0.5)
        [1.0, 1.0, nan, 2.142857142857143]
    """
    found, total, mass = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total = weight * total + value
            mass = weight * mass + 1
        found.append(total / mass if math.isfinite(value) else math.nan)
    return found


def _chosen(logs: Sequence[RunLog], metrics: Sequence[str] | None) -> list[str]:
    there = shown(logs)
    if metrics is None:
        every = list(dict.fromkeys(name for log in logs for name in log.curves))
        return (there or every)[:8]
    known = {name for log in logs for name in log.curves}
    for name in metrics:
        if name not in known:
            raise DataError(
                f"metric: expected one of {', '.join(sorted(known))}, got {name!r}. Choose one of these."
            )
    return list(metrics)


def _draw(
    ax: Axes,
    logs: Sequence[RunLog],
    metric: str,
    x: Axis,
    length: float,
    smooth: float,
    dark: bool,
) -> None:
    values: list[float] = []
    width = 1.6 if len(logs) <= _MANY else 1.1
    for index, log in enumerate(logs):
        for split, curve in _splits(log, metric).items():
            colour, style = _look(logs, index, split, dark)
            at = [place / length for place in getattr(curve, _AXES[x])]
            values += curve.values
            band = _band(log, metric, split, curve)
            if band is not None:
                ax.fill_between(at, *band, color=colour, alpha=0.15, linewidth=0)
                values += [*band[0], *band[1]]
            if split == "train" and smooth:
                ax.plot(at, curve.values, color=colour, alpha=0.25, linewidth=0.6 * width)
                ax.plot(at, smoothed(curve.values, smooth), color=colour, linewidth=width)
            elif split == "train":
                marker = "o" if len(at) == 1 else None
                ax.plot(at, curve.values, color=colour, linewidth=width, marker=marker, ms=4)
            else:
                few = len(at) <= 60
                ax.plot(
                    at, curve.values, style, color=colour, linewidth=width, ms=2.2 * width * few
                )
    scale_y(ax, metric, values, theme(dark))


def _band(
    log: RunLog, metric: str, split: str, curve: Curve
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the smallest and largest values over the ensemble members; `None` for a single run."""
    low, high = (log.curves.get(f"{metric}_{which}", {}).get(split) for which in ("min", "max"))
    members = any(name.startswith(f"{metric}/member_") for name in log.curves)
    if not members or low is None or high is None or not low.steps == high.steps == curve.steps:
        return None
    return low.values, high.values


def _reach(logs: Sequence[RunLog], chosen: Sequence[str], x: Axis) -> tuple[float, float]:
    """Return the range of the horizontal axis that all charts share."""
    at = [
        value
        for log in logs
        for metric in chosen
        for curve in _splits(log, metric).values()
        for value in getattr(curve, _AXES[x])
        if math.isfinite(value)
    ]
    low, high = min(at, default=0.0), max(at, default=1.0)
    low = 0.0 if 0 < low < 0.2 * high else low
    room = 0.015 * (high - low) or 0.5
    return low - room, high + room


def _splits(log: RunLog, metric: str) -> dict[str, Curve]:
    """Return a metric's curves by split, training first; omit `train_epoch` if `train` exists."""
    found = splits_of(log, metric)
    if "train" in found:
        found.pop("train_epoch", None)
    return dict(sorted(found.items(), key=lambda item: item[0] not in ("train", "train_epoch")))


def _look(logs: Sequence[RunLog], index: int, split: str, dark: bool) -> tuple[str, str]:
    """Return a curve's colour and line style: one colour per run or, for a single run, per split."""
    if len(logs) == 1:
        every = [s for s in _all_splits(logs) if s != "train"]
        return theme(dark).hue(0 if split == "train" else 1 + every.index(split)), "o-"
    return theme(dark).hue(index), "o--"


def _all_splits(logs: Sequence[RunLog]) -> list[str]:
    names = {split for log in logs for splits in log.curves.values() for split in splits}
    return sorted(names, key=lambda name: (name != "train", name))


def _entries(logs: Sequence[RunLog], chosen: Sequence[str], dark: bool) -> list[dict[str, Any]]:
    """Return the lines of the legend: the runs, and the splits if there are several."""
    used = {split for log in logs for metric in chosen for split in _splits(log, metric)}
    splits = [name for name in _all_splits(logs) if name in used]
    entries: list[dict[str, Any]] = []
    if len(logs) > 1:
        for index, log in enumerate(logs):
            colour, _ = _look(logs, index, "train", dark)
            entries.append({"color": colour, "lw": 2.5, "label": shortened(log.name)})
    for split in splits if len(splits) > 1 else ():
        colour, style = _look(logs, 0, split, dark)
        colour = colour if len(logs) == 1 else theme(dark).quiet
        marker, dash = ("", "-") if split == "train" else (style[0], style[1:])
        said = "train (epoch mean)" if split == "train_epoch" else split
        line = {"color": colour, "lw": 1.8, "ls": dash, "marker": marker, "ms": 4}
        entries.append({**line, "label": said})
    return entries


def _legend(figure: Figure, entries: list[dict[str, Any]], across: int, dark: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415  # optional

    legend = figure.legend(
        handles=[Line2D([], [], **entry) for entry in entries],
        loc="outside lower center",
        ncols=across,
        frameon=False,
        fontsize=9,
        labelcolor=theme(dark).text,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
