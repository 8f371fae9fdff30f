"""Interactive page of curves, as one self-contained HTML file.

The page is `_page.html` with `_page.css`, `_page.js` and the curves as JSON inserted. It opens from
a disk or an email and loads nothing else (its content security policy forbids it). The same logs give
the same bytes.
"""

from __future__ import annotations

import html
import importlib.resources
import json
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from ftrain.core import _file_output
from ftrain.core._terminal import printable
from ftrain.loop._ensemble_members import extremes
from ftrain.loop.plots._style import DARK, HIDDEN, LIGHT, Theme, label, ordered
from ftrain.loop.plots.run_log import Curve, Path, RunLog, Runs, read_runs, splits_of
from ftrain.loop.plots.summary import better, summary

__all__ = ["page"]

#: Maximum number of points per curve; more than a screen has columns.
POINTS = 2000

#: Number of distinct colours for runs; `_page.js` uses the same number.
HUES = 24


def page(runs: Runs, out: Path | None = None, *, title: str | None = None) -> str:
    """Write the curves of runs as one HTML file with tooltips, zoom, smoothing and a dark mode.

    Long curves are thinned to the resolution of a screen; the highest and lowest points stay.

    Args:
        runs: run directories, `metrics.jsonl` files or `RunLog`s; one or several.
        out: the file to write; `None`: no file.
        title: title of the page; default: the runs' names.

    Returns:
        The HTML text.

    Raises:
        DataError: a run has no log.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = pathlib.Path(folder) / "metrics.jsonl"
        ...     _ = log.write_text('{"step": 5, "split": "eval", "loss": 2}')
        ...     page(folder, title="first try").count("<title>first try</title>")
        1
    """
    logs = read_runs(runs)
    title = title or _title([log.name for log in logs])
    parts = {
        "TITLE": html.escape(printable(title)),
        "CSS": _colours() + _resource("_page.css"),
        "DATA": _json({"title": title, **_content(logs)}),
        "JS": _resource("_page.js"),
    }
    text = _resource("_page.html")
    pieces = text.split("%%")  # inserted text is not searched for placeholders
    made = "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
    if out is not None:
        _file_output.replace(pathlib.Path(out), made)
    return made


def thinned(curve: Curve, points: int = POINTS) -> list[int]:
    """Return the indices of the points to draw: the first, the last, the extremes of each interval.

    Example:
        >>> thinned(Curve(*[tuple(map(float, range(10)))] * 4), 4)
        [0, 4, 5, 9]
    """
    n = len(curve.values)
    if n <= points:
        return list(range(n))
    kept = {0, n - 1}
    stretches = points // 2
    for i in range(stretches):
        stretch = range(i * n // stretches, (i + 1) * n // stretches)
        finite = [j for j in stretch if math.isfinite(curve.values[j])]
        if len(finite) < len(stretch):
            kept.add(next(j for j in stretch if not math.isfinite(curve.values[j])))
        if finite:
            kept.add(min(finite, key=lambda j: curve.values[j]))
            kept.add(max(finite, key=lambda j: curve.values[j]))
    return sorted(kept)


def _title(names: Sequence[str], most: int = 60) -> str:
    """Return a page title that lists as many run names as fit on a line.

    Example:
        >>> _title(["first", "second"]), _title(["first", "second", "third"], 12)
        ('first, second', 'first and 2 more')
    """
    n = len(names)
    fit = [k for k in range(1, n + 1) if len(", ".join(names[:k])) <= most]
    k = max(fit, default=1)
    more = f" and {n - k} more" if k < n else ""
    return ", ".join(names[:k]) + more


def _content(logs: Sequence[RunLog]) -> dict[str, Any]:
    rows = summary(logs)
    names = ordered(name for log in logs for name in log.curves)
    hidden = {*HIDDEN, *extremes(names)}
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {
        "runs": [log.name for log in logs],
        "metrics": [
            {
                "name": metric,
                "label": label(metric),
                "group": _group(metric, hidden),
                "series": [
                    _series(index, split, curve)
                    for index, log in enumerate(logs)
                    for split, curve in sorted(splits_of(log, metric).items())
                ],
            }
            for metric in names
        ],
        "columns": [{"name": column, "better": better(column)} for column in columns],
        "rows": [[_cell(row.get(column)) for column in columns] for row in rows],
        "last": max(log.step for log in logs),
    }


def _group(metric: str, hidden: Collection[str]) -> str:
    """Return the page section for a metric; `""` is the first section, which is expanded."""
    if "/" in metric:
        return metric.partition("/")[0]
    return "more" if metric in hidden else ""


def _series(run: int, split: str, curve: Curve) -> dict[str, Any]:
    kept = thinned(curve)
    axes = {"step": curve.steps, "epoch": curve.epochs, "time": curve.times, "y": curve.values}
    return {
        "run": run,
        "split": split,
        **{name: [_rounded(values[i]) for i in kept] for name, values in axes.items()},
    }


def _rounded(value: float) -> float | int | None:
    """Round to six digits, more than a screen shows; return `None` for non-finite values."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}") if abs(value) < 1e15 and value != int(value) else value
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _cell(value: Any) -> Any:
    """Return a table cell as JSON: `False` for a non-finite number, `None` for a missing value."""
    return False if isinstance(value, float) and not math.isfinite(value) else value


def _json(content: Any) -> str:
    """Return JSON that is safe inside a `<script>` element: it cannot close the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # surrogates as JSON escapes them
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _colours() -> str:
    """Return the themes as CSS custom properties."""

    def properties(colours: Theme) -> str:
        series = "".join(f"--s{i}:{colours.hue(i)};" for i in range(HUES))
        return (
            f"--page:{colours.page};--panel:{colours.panel};--edge:{colours.edge};--text:{colours.text};"
            f"--quiet:{colours.quiet};--grid:{colours.grid};--accent:{colours.series[0]};{series}"
        )

    dark = f"color-scheme:dark;{properties(DARK)}"
    return (
        f":root{{color-scheme:light;{properties(LIGHT)}}}\n"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
