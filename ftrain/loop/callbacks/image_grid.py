"""Images that a model generates or classifies, drawn during the run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import torch

from ftrain.loop import plots
from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.callbacks._sample_schedule import SampleSchedule
from ftrain.loop.events import Event

__all__ = ["ImageGrid"]


class ImageGrid:
    """Draw the images that a function computes from the state, to files such as `step-00000500.png`.

    Args:
        predict: `state -> images` or `(images, titles)`, as for `plots.image_grid`: images of shape
            (n, height, width) or (n, channels, height, width), and one title per image.
        folder: the output directory; created if missing.
        every: steps between two files; default: one at each evaluation.
        columns: columns of the grid; default: about as many as rows.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `every` is out of range, or the images have an unsupported shape.

    Example:
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
        need("matplotlib", "ImageGrid", "matplotlib")
        self.predict, self.folder, self._schedule = (
            predict,
            pathlib.Path(folder),
            SampleSchedule(every),
        )
        self.columns, self.listens = columns, self._schedule.listens

    def init(self) -> None:
        """Return `None` as the state of this callback: the file names record the steps."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Draw an image file if one is due at this event."""
        if self._schedule.is_due(event) and is_main():
            with torch.no_grad():
                found = self.predict(event.state)
            images, titles = found if isinstance(found, tuple) else (found, None)
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{event.progress.step:08d}.png"
            plots.image_grid(images, titles, out=path, columns=self.columns)
        return None, ()
