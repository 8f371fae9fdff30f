"""Tables and pictures of measured cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.cell import Cell
from benchmarks.peers.contenders import CONTENDERS, DONATED, TORCH_PEERS
from ftrain.bench import Difference, compare_turns

__all__ = ["growth_lines", "growth_picture", "lines", "picture"]

COLOURS = {"ftrain": "#0072b2", "hand": "#e69f00", "library": "#009e73", "jax": "#cc79a7"}


def lines(cell: Cell) -> list[str]:
    """Return the table of a cell: the fastest contender first, then those that were not timed."""
    turns, timed = cell.turns, [n for n, one in cell.outcomes.items() if one.seconds]
    found = [f"{cell.workload.title}; {cell.workload.key}"]
    found.append(
        f"  {'a step':>10}  {'time over ftrain-donated':<42} {'first 3 steps':>13}  contender"
    )
    for name in sorted(timed, key=turns.median):
        one = cell.outcomes[name]
        ratio = ""
        if DONATED in timed and name != DONATED:
            ratio = str(compare_turns(one.seconds, cell.outcomes[DONATED].seconds))
        title = f"{CONTENDERS[name].title} ({one.settings})"
        found.append(
            f"  {_time(turns.median(name)):>10}  {ratio:<42} {one.first:>11.1f} s  {title}"
        )
    for name, one in cell.outcomes.items():
        if not one.seconds:
            found.append(f"  {'-':>10}  {one.reason:<57}  {CONTENDERS[name].title}")
    return found + verdicts(cell)


def verdicts(cell: Cell) -> list[str]:
    """Return lines that compare ftrain's fastest program with the fastest peers."""
    ours = cell.best([name for name, one in CONTENDERS.items() if one.kind == "ftrain"])
    found = []
    for what, names in (("PyTorch peer", TORCH_PEERS), ("JAX", ["jax"])):
        peer = cell.best(names)
        if ours is None or peer is None:
            continue
        seconds = {name: cell.outcomes[name].seconds for name in (ours, peer)}
        ratio = compare_turns(seconds[peer], seconds[ours])
        found.append(f"  best {what}: {_verdict(ours, peer, ratio)}")
    return found


def _verdict(ours: str, peer: str, ratio: Difference) -> str:
    if not math.isfinite(ratio.high) or not ratio.is_real:
        return f"{ours} and {peer}: {ratio}"
    if ratio.ratio > 1:
        return f"{ours} wins; {peer} takes {ratio} its time"
    return f"{peer} WINS; {ours} takes {ratio.inverted()} its time"


def growth_lines(axis: str, cells: Mapping[float, Cell]) -> list[str]:
    """Return the table of an axis of growth: a row per contender, a column per value."""
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell.outcomes))
    header = "".join(f"{value:>12g}" for value in cells)
    found = [f"growth with {axis}, a step", f"  {axis:<30}{header}"]
    for name in names:
        times = [cell.turns.seconds.get(name) for cell in cells.values()]
        if not any(times):
            reasons = {
                cell.outcomes[name].reason for cell in cells.values() if name in cell.outcomes
            }
            found.append(f"  {CONTENDERS[name].title:<30}  {'; '.join(sorted(reasons))}")
            continue
        columns = [
            _time(cell.turns.median(name)) if seconds else "-"
            for cell, seconds in zip(cells.values(), times, strict=True)
        ]
        found.append(f"  {CONTENDERS[name].title:<30}" + "".join(f"{each:>12}" for each in columns))
    return found


def picture(cells: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a matplotlib figure of cells (JSON values): times of contenders over ftrain's."""
    figure = _figure(8.5, 0.6 + sum(0.6 + 0.2 * len(_medians(cell)) for cell in cells.values()))
    heights = [1.5 + len(_medians(cell)) for cell in cells.values()]
    axes = figure.subplots(len(cells), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (key, cell) in zip(axes, cells.items(), strict=True):
        medians = _medians(cell)
        base = medians.get(DONATED, min(medians.values(), default=1.0))
        names = sorted(medians, key=lambda name: medians[name])
        colours = [COLOURS[CONTENDERS[name].kind] for name in names]
        bars = ax.barh(range(len(names)), [medians[n] / base for n in names], color=colours)
        ax.bar_label(bars, [_time(medians[name]) for name in names], fontsize=7, padding=2)
        ax.set_yticks(range(len(names)), [CONTENDERS[name].title for name in names], fontsize=7)
        ax.invert_yaxis()
        ax.axvline(1.0, color="#333333", linewidth=0.5)
        ax.margins(x=0.12)
        ax.set_title(f"{key}: time of a step over ftrain's, donated", loc="left", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def growth_picture(axis: str, cells: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a matplotlib figure of cells (JSON values) along an axis, with a line per contender."""
    figure = _figure(8, 5)
    ax = figure.subplots()
    names = list(dict.fromkeys(name for cell in cells.values() for name in _medians(cell)))
    for name in names:
        points = [(float(v), _medians(c)[name]) for v, c in cells.items() if name in _medians(c)]
        x, y = zip(*points, strict=True)
        colour = COLOURS[CONTENDERS[name].kind]
        ax.plot(x, [1e3 * t for t in y], marker=".", color=colour, label=name, linewidth=1)
        ax.annotate(
            name, (x[-1], 1e3 * y[-1]), fontsize=6, xytext=(3, 0), textcoords="offset points"
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(axis, fontsize=8)
    ax.set_ylabel("ms a step", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415  # optional

    return Figure((width, height), layout="constrained", dpi=150)


def _medians(cell: Mapping[str, Any]) -> dict[str, float]:
    rows = cell["contenders"]
    return {name: row["median"] for name, row in rows.items() if "median" in row}


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
