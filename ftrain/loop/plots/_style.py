"""Style of the plots: colours, safe for colour-blind readers, chart order, fonts and frames."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ftrain.core import _file_output
from ftrain.core._terminal import printable
from ftrain.loop._ensemble_members import extremes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ftrain.loop.plots.run_log import RunLog

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "dress",
    "label",
    "new_figure",
    "ordered",
    "shortened",
    "theme",
]


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of light or dark mode.

    Attributes:
        page: background of the page, around its charts.
        panel: background of a chart, and of an image.
        edge: frames.
        text: titles.
        quiet: axis labels and ticks.
        grid: grid lines behind the curves.
        wrong: wrong predictions.
        series: colours of the runs.
    """

    page: str
    panel: str
    edge: str
    text: str
    quiet: str
    grid: str
    wrong: str
    series: tuple[str, ...]

    def hue(self, index: int) -> str:
        """Return the colour of a run; from the ninth run on, a darker or lighter variant.

        Example:
            >>> LIGHT.hue(0), LIGHT.hue(8), LIGHT.hue(24) == LIGHT.hue(0)
            ('#2f6fde', '#274c8e', True)
        """
        n = len(self.series)
        own, turn = self.series[index % n], index // n % 3
        return own if turn == 0 else _mixed(own, self.text if turn == 1 else self.panel)


def _mixed(one: str, other: str) -> str:
    """Mix two colours, six parts of the first to five of the second."""
    pairs = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + bytes((6 * a + 5 * b) // 11 for a, b in pairs).hex()


LIGHT = Theme(
    page="#f5f6f8",
    panel="#ffffff",
    edge="#e1e4ea",
    text="#1f2430",
    quiet="#667085",
    grid="#e8eaee",
    wrong="#cf2f2a",
    series=(
        "#2f6fde",
        "#e4702e",
        "#1f9d6b",
        "#c43d82",
        "#7a57d1",
        "#b58a00",
        "#1a9fb5",
        "#8c5a3c",
    ),
)
DARK = Theme(
    page="#12151c",
    panel="#191d26",
    edge="#2a303c",
    text="#e8eaf0",
    quiet="#9aa3b2",
    grid="#2a303c",
    wrong="#ff7b72",
    series=(
        "#6ba1ff",
        "#ff9a5c",
        "#4bcf9a",
        "#f07ab3",
        "#ab8eff",
        "#e3bd3f",
        "#4fcbe0",
        "#c99372",
    ),
)

#: Order of charts; other metrics follow by name.
FIRST = (
    "loss",
    "accuracy",
    "perplexity",
    "learning_rate",
    "grad_norm",
    "samples_per_second",
    "tokens_per_second",
)

#: Metrics that get no chart by default.
HIDDEN = (
    "grad_norm_min",
    "grad_norm_max",
    "duration",
    "skipped",
    "samples",
    "steps_per_second",
    "tokens",
    "batch",
)


def theme(dark: bool) -> Theme:
    """Return the colours of dark mode if `dark`, else of light mode."""
    return DARK if dark else LIGHT


def label(metric: str) -> str:
    """Return the title of a metric's chart.

    Example:
        >>> label("grad_norm"), label("memory/peak_bytes")
        ('grad norm', 'memory / peak bytes')
    """
    return printable(metric, one_line=True).replace("_", " ").replace("/", " / ")


def shortened(name: str, most: int = 32) -> str:
    """Shorten a name in the middle for a legend, because names of runs often differ at the end.

    Example:
        >>> shortened("a-rather-long-name-of-a-run-with-learning-rate-01")
        'a-rather-lon…th-learning-rate-01'
    """
    if len(name) <= most:
        return name
    start = (most - 1) * 2 // 5
    return f"{name[:start]}…{name[start + 1 - most :]}"


def ordered(metrics: Iterable[str]) -> list[str]:
    """Sort metrics in chart order: names in `FIRST`, other plain names, then groups (`a/b`)."""

    def rank(name: str) -> tuple[int, bool, str]:
        return (FIRST.index(name) if name in FIRST else len(FIRST), "/" in name, name)

    return sorted(dict.fromkeys(metrics), key=rank)


def shown(logs: Sequence[RunLog]) -> list[str]:
    """Return the metrics that have a chart by default, in chart order.

    Metrics without one: `NAME_min`, `NAME_max`, names with `/`, and `skipped` if it is always zero.
    """
    found = []
    names = ordered(name for log in logs for name in log.curves)
    hidden = {
        *HIDDEN,
        *extremes(names),
    }  # the smallest and largest values are drawn as a band around the mean
    for metric in names:
        values = [v for log in logs for c in log.curves.get(metric, {}).values() for v in c.values]
        counted = metric == "skipped" and any(values)
        if counted or (metric not in hidden and "/" not in metric):
            found.append(metric)
    return found


def new_figure(what: str, width: float, height: float, dark: bool) -> Figure:
    """Return an empty figure that uses neither matplotlib's global state nor a display.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional
        from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"{what} requires matplotlib, which is not installed. Run "
            "`pip install 'ftrain[examples]'`, or `pip install matplotlib`."
        ) from error
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure((width, height), layout=layout, facecolor=theme(dark).panel, dpi=150)


def dress(ax: Axes, dark: bool, title: str) -> None:
    """Set the style of the frame, grid, ticks and title of one chart."""
    colours = theme(dark)
    ax.set_facecolor(colours.panel)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(colours.grid)
    ax.grid(axis="y", color=colours.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=colours.quiet, labelsize=8, length=0, which="both")
    # Without this, a `$` in a name would begin a formula.
    bold: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": colours.text}
    ax.set_title(title, loc="left", parse_math=False, **bold)
    for name in (ax.xaxis.label, ax.yaxis.label):
        name.set_color(colours.quiet)
        name.set_fontsize(8)


def write(figure: Figure, out: Any) -> None:
    """Write a figure to a file, atomically; do nothing if `out` is `None`."""
    if out is None:
        return
    colour = figure.get_facecolor()
    if not isinstance(out, (str, os.PathLike)):
        figure.savefig(out, facecolor=colour)
        return
    path = pathlib.Path(out)
    if not path.suffix:
        path = path.with_name(path.name + ".png")  # as matplotlib does
    with _file_output.draft(path) as draft:
        figure.savefig(draft, facecolor=colour)
