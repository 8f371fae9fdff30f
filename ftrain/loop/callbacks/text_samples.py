"""Texts that a model generates, written during the run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import _file_output
from ftrain.loop.callback import Action
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.callbacks._sample_schedule import SampleSchedule
from ftrain.loop.events import Event

__all__ = ["TextSamples"]


class TextSamples:
    r"""Write the text that a function computes from the state, to files such as `step-00000500.txt`.

    A resumed run that repeats steps overwrites their files.

    Args:
        generate: `state -> text`, or a sequence of texts; for reproducible files it must be pure: draw
            from a fixed key, `random.key(0)`.
        folder: the output directory; created if missing.
        every: steps between two files; default: one at each evaluation.

    Raises:
        ValueError: `every` is out of range.

    Example:
        >>> import tempfile, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> folder = tempfile.mkdtemp()
        >>> samples = TextSamples(lambda state: ["To be", "or not"], folder, every=2)
        >>> trainer = loop.Trainer(steps, [samples], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=3)
        >>> [(path.name, path.read_text()) for path in pathlib.Path(folder).iterdir()]
        [('step-00000002.txt', 'To be\n\nor not\n')]
    """

    on_error = "warn"

    def __init__(
        self,
        generate: Callable[[Any], str | Sequence[str]],
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
    ) -> None:
        self.generate, self.folder = generate, pathlib.Path(folder)
        self._schedule = SampleSchedule(every)
        self.listens = self._schedule.listens

    def init(self) -> None:
        """Return `None` as the state of this callback: the file names record the steps."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Write a text file if one is due at this event."""
        if self._schedule.is_due(event) and is_main():
            with torch.no_grad():
                found = self.generate(event.state)
            texts = [found] if isinstance(found, str) else found
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{event.progress.step:08d}.txt"
            _file_output.replace(path, "\n\n".join(texts) + "\n")
        return None, ()
