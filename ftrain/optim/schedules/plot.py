"""Plot of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ftrain.optim import _checks
from ftrain.optim._rate import check_learning_rate, rate_at
from ftrain.optim.protocol import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_schedule"]


def plot_schedule(
    schedule: Schedule | Mapping[str, Schedule], steps: int, *, ax: Axes | None = None
) -> Figure:
    """Plot the learning rates of a schedule, or of several given by name, at updates 0 to `steps`.

    Every count is drawn. A new figure is created without pyplot, so that it changes no global state of
    matplotlib and needs no display.

    Args:
        schedule: a schedule, or a dict of names and schedules to compare.
        steps: the last count drawn, >= 1.
        ax: axes to draw into; default: the axes of a new figure.

    Returns:
        The figure: `plot_schedule(...).savefig("schedule.png")`.

    Raises:
        ImportError: matplotlib is not installed; the message says how to get it.
        TypeError: an entry is not a schedule.
        ValueError: a schedule reads the value of its count, so that it cannot be compiled either.

    Example:
        >>> from ftrain import optim
        >>> figure = plot_schedule(optim.warmup_cosine(1e-3, 100, 2000), 2000)
        >>> float(figure.axes[0].get_lines()[0].get_ydata().max())
        0.001
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError(
            "plot_schedule draws with matplotlib, which is not installed. Write "
            "`pip install 'ftrain[examples]'`, or `pip install matplotlib`."
        ) from error
    _checks.positive_int("steps", steps)
    named = schedule if isinstance(schedule, Mapping) else {"": schedule}
    own = ax is None
    if ax is None:
        width = 8.4 if any(named) else 6.4
        ax = Figure(figsize=(width, 3.6), layout="constrained").subplots()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.9")
        ax.set_axisbelow(True)
    counts = torch.arange(steps + 1)
    for name, entry in named.items():
        ax.plot(counts.numpy(), _rates(entry, counts).numpy(), label=name or None, linewidth=2)
    ax.set_xlim(0, steps)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("updates applied")
    ax.set_ylabel("learning rate")
    figure = ax.get_figure(root=True)
    assert figure is not None  # a caller's axes belong to a figure too
    if any(named) and own:
        figure.legend(loc="outside right upper", frameon=False)  # inside, it would hide curves
    elif any(named):
        ax.legend(frameon=False)
    return figure


def _rates(schedule: Schedule, counts: torch.Tensor) -> torch.Tensor:
    check_learning_rate(schedule)
    try:
        rates: torch.Tensor = torch.vmap(lambda count: rate_at(schedule, count))(counts)
        return rates.detach()
    except RuntimeError as error:
        raise ValueError(
            "the schedule cannot be plotted (or compiled), because it reads the value of its argument, "
            "the tensor `count`. Write `torch.where(count < n, a, b)` for `a if count < n else b`."
        ) from error
