"""Pictures that a model makes, or judges, on the way."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.callbacks._when import When
from ftrain.loop.events import Event

__all__ = ["ImageGrid"]


class ImageGrid:
    """Draws what a function makes of the state into `step-00000500.png`, a file each time.

    Args:
        predict: `state -> images` or `(images, titles)`. Images: shape (n, height, width) or
            (n, channels, height, width) with 1 or 3 channels, from 0 to 1; a title each.
        folder: where to; it is made.
        every: steps; default: at each evaluation.
        columns: of the grid; default: as many as make it a square.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `every` or a shape is out of its range.

    >>> import tempfile, ftrain
    >>> from ftrain import loop, optim
    >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
    >>> folder = tempfile.mkdtemp()
    >>> grid = ImageGrid(lambda state: (torch.rand(3, 8, 8), ["a", "b", "c"]), folder, every=2)
    >>> trainer = loop.Trainer(steps, [grid], compile=False)
    >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=3)
    >>> [path.name for path in pathlib.Path(folder).iterdir()]
    ['step-00000002.png']
    """

    on_error = "warn"

    def __init__(
        self,
        predict: Callable[[Any], Any],
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        columns: int | None = None,
    ) -> None:
        self._figure = need("matplotlib.figure", "ImageGrid", "matplotlib").Figure
        self.predict, self.folder, self._when = predict, pathlib.Path(folder), When(every)
        self.columns, self.listens = columns, self._when.listens

    def init(self) -> None:
        """Nothing: the files have their steps' names."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Draw a file, if it is time."""
        if self._when.is_due(event) and is_main():
            with torch.no_grad():
                found = self.predict(event.state)
            images, titles = found if isinstance(found, tuple) else (found, None)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{event.progress.step:08d}.png"
            self._draw(images, titles, path)
        return None, ()

    def _draw(self, images: torch.Tensor, titles: Sequence[str] | None, path: pathlib.Path) -> None:
        pictures = _pixels(images)
        if titles is not None and len(titles) != len(pictures):
            raise ValueError(f"{len(pictures)} images need as many titles, found {len(titles)}")
        columns = min(self.columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
        rows = -(-len(pictures) // columns)
        height = 1.0 if titles is None else 1.25
        figure = self._figure(figsize=(1.1 * columns, 1.1 * height * rows), layout="constrained")
        for i, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            ax.set_axis_off()
            if i < len(pictures):
                ax.imshow(pictures[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if titles is not None:
                    ax.set_title(str(titles[i]), fontsize=8)
        figure.savefig(path, dpi=110)


def _pixels(images: torch.Tensor) -> Any:
    """Shape (n, height, width) or (n, height, width, 3), from 0 to 1."""
    if images.ndim == 4 and images.shape[1] in (1, 3) and len(images):
        images = images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)
    elif images.ndim != 3 or not len(images):
        raise ValueError(
            "images have the shape (n, height, width) or (n, channels, height, width) with 1 or 3 "
            f"channels; found {tuple(images.shape)}"
        )
    return images.detach().to("cpu", torch.float32).clamp(0, 1).numpy()
