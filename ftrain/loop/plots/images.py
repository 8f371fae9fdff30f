"""Grids of images with the predictions of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ftrain.loop.plots._style import Theme, new_figure, shortened, theme, write
from ftrain.loop.plots.run_log import Path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image_grid"]

_LINE = 20  # maximum number of letters in a label


def image_grid(
    images: torch.Tensor,
    predictions: Sequence[Any] | torch.Tensor | None = None,
    targets: Sequence[Any] | torch.Tensor | None = None,
    out: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    columns: int | None = None,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Draw a batch of images with their predictions; wrong predictions are red and name the target.

    Args:
        images: any dtype, `(n, height, width)`, `(n, channels, height, width)` or
            `(n, height, width, channels)`, with 1, 3 or 4 channels. Bytes are divided by 255. An image
            with other values outside of [0, 1] is scaled so that its smallest is 0 and its largest 1.
        predictions: labels, or scores of shape `(n, classes)`, of which the argmax is the label.
        targets: the true labels.
        out: the file to write, `.png`, `.svg` or `.pdf`; `None`: no file.
        names: names of the labels 0, 1, ...
        columns: number of columns; default: about as many as rows.
        title: title of the figure.
        dark: draw light on dark.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
        ValueError: the shape is not that of images, or lengths differ.

    Example:
        >>> figure = image_grid(torch.rand(6, 1, 8, 8), torch.eye(6), [0, 1, 2, 3, 4, 0])
        >>> [ax.get_title() for ax in figure.axes][4:6]
        ['4', '5 (is 0)']
    """
    pictures = _as_pictures(images)
    n = len(pictures)
    said = _labels(predictions, "predictions", n, names)
    right = _labels(targets, "targets", n, names)
    colours = theme(dark)
    captions = [_caption(said, right, i, colours) for i in range(n)]
    lines = [line for text, *_ in captions for line in text.split("\n")]
    # Width in inches: 0.075 for a bold letter of 8 points, 0.1 for a letter of the title.
    cell = max(1.05, 0.075 * max(map(len, lines)) + 0.15)
    shape = pictures.shape[1] / pictures.shape[2]
    tall = max(0.3, min(cell, 1.05) * min(shape, 2.0)) + 0.2 * (1 + len(lines) // (n + 1))
    columns = min(n, columns or math.ceil(math.sqrt(1.6 * n * tall / cell)))
    rows = -(-n // columns)
    wide = max(cell * columns, 0.1 * len(title) + 0.2 if title else 0.0)
    figure = new_figure("plots.image_grid", wide, tall * rows + (0.35 if title else 0.0), dark)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, ax in enumerate(grid.flat):
        ax.set_axis_off()
        if i >= n:
            ax.set_visible(False)
            continue
        flat = pictures[i].shape[-1] == 1
        ax.imshow(
            pictures[i, ..., 0] if flat else pictures[i],
            cmap="gray" if flat else None,
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        text, colour, weight = captions[i]
        ax.set_title(text, fontsize=8, color=colour, pad=2, fontweight=weight)
    if title is not None:
        figure.suptitle(title, color=colours.text, fontsize=11, x=0.01, ha="left")
    write(figure, out)
    return figure


def _caption(
    said: list[str] | None, right: list[str] | None, i: int, colours: Theme
) -> tuple[str, str, str]:
    """Return text, colour and font weight of the caption of image i; long labels take two lines."""
    if not said or not right:
        return shortened((said or right or [""] * (i + 1))[i], _LINE), colours.quiet, "normal"
    one, other = shortened(said[i], _LINE), shortened(right[i], _LINE)
    if said[i] == right[i]:
        return one, colours.series[2], "normal"
    between = " " if len(one) + len(other) <= 10 else "\n"
    return f"{one}{between}(is {other})", colours.wrong, "bold"


def _as_pictures(images: torch.Tensor) -> Any:
    """Return images as a NumPy array of shape `(n, height, width, channels)` with values in [0, 1]."""
    if images.ndim == 3:
        images = images.unsqueeze(-1)
    elif images.ndim == 4 and images.shape[1] in (1, 3, 4):
        images = images.movedim(1, -1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or not len(images):
        raise ValueError(
            "images: expected shape (n, height, width), (n, channels, height, width) or (n, height, "
            f"width, channels) with 1, 3 or 4 channels, got {tuple(images.shape)}. Permute or reshape "
            "them."
        )
    is_bytes = images.dtype == torch.uint8
    values = images.detach().cpu().to(torch.float32).nan_to_num()
    if is_bytes:
        values = values / 255
    low, high = values.amin((1, 2, 3), True), values.amax((1, 2, 3), True)
    stretched = (values - low) / (high - low).clamp_min(1e-12)
    inside = (low >= 0) & (high <= 1)
    return torch.where(inside, values, stretched).numpy()


def _labels(
    given: Sequence[Any] | torch.Tensor | None, what: str, n: int, names: Sequence[str] | None
) -> list[str] | None:
    if given is None:
        return None
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.argmax(1) if given.ndim == 2 else given).tolist()
    if len(given) != n:
        raise ValueError(
            f"{what}: expected {n} entries, one per image, got {len(given)}. Pass one entry per image."
        )
    return [
        names[each]
        if names is not None and isinstance(each, int) and each < len(names)
        else str(each)
        for each in given
    ]
