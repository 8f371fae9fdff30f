"""Histograms of gradients by module in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ftrain.core.metrics import Metrics
from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import BatchEnd, Event, TrainBegin, TrainEnd
from ftrain.tasks.metrics import Histogram, log_edges
from ftrain.tasks.metrics.histogram import check_edges

__all__ = ["GradientHistograms"]


class GradientHistograms:
    """Write histograms of a step's gradients to TensorBoard, one for each module.

    The step computes the counts; they are read, in one copy, only at the steps that are written. A
    skipped step has no histogram. For an ensemble, there is one histogram for each module and member.

    Args:
        folder: directory of the event files.
        every: steps between two histograms.
        histogram_edges: the edges of the histograms. In Python, pass the same edges to
            `monitored_steps(..., histogram_edges=...)`; a run from a configuration does so itself.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: an argument is out of range; the step returns no histograms, or has other edges.

    Example:
        >>> from ftrain.loop.callbacks import monitored_steps
        >>> from ftrain.tasks.metrics import log_edges
        >>> edges = log_edges()
        >>> steps = monitored_steps(model, loss_fn, opt, histogram_edges=edges)  # doctest: +SKIP
        >>> callback = GradientHistograms("runs/first/tensorboard", every=50)  # doctest: +SKIP
    """

    listens = (TrainBegin, BatchEnd, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int = 100,
        histogram_edges: Sequence[float] = log_edges(),
    ) -> None:
        self._writer_of = need(
            "torch.utils.tensorboard", "GradientHistograms", "tensorboard"
        ).SummaryWriter
        if not isinstance(every, int) or every < 1:
            raise ValueError(
                f"every: expected a number of steps of at least 1, got {every!r}. Write every=100."
            )
        check_edges(histogram_edges)
        self._folder, self._every = os.fspath(folder), every
        self._edges = tuple(map(float, histogram_edges))
        self._writer: Any = None

    def init(self) -> None:
        """Return `None` as the state of this callback: the event files record the steps."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Write the gradient histograms of a step if they are due at this step."""
        if not is_main():
            return None, ()
        step = event.progress.step
        if isinstance(event, TrainBegin):
            purge = step + 1 if event.resumed else None
            self._writer = self._writer_of(self._folder, purge_step=purge)
        elif isinstance(event, BatchEnd):
            if step % self._every == 0:
                for tag, counts in self._read(event.metrics):
                    self._write(tag, counts, step)
                self._writer.flush()
        elif self._writer is not None:
            self._writer.close()
            self._writer = None
        return None, ()

    def _read(self, metrics: Any) -> Iterator[tuple[str, list[int]]]:
        """Yield the TensorBoard tag and the counts of each histogram that is not empty."""
        entries = metrics.entries if isinstance(metrics, Metrics) else metrics
        found = {name: x.counts for name, x in entries.items() if isinstance(x, Histogram)}
        if not found:
            raise ValueError(
                "GradientHistograms: expected histograms in the metrics of the step, got none. Make the "
                "steps with ftrain.loop.callbacks.monitored_steps(..., histogram_edges=log_edges())."
            )
        rows = torch.stack(list(found.values())).cpu()
        if rows.shape[-1] != len(self._edges) + 1:
            raise ValueError(
                f"GradientHistograms: expected histograms with {len(self._edges)} edges, got "
                f"{rows.shape[-1] - 1}. Pass the same histogram_edges to monitored_steps."
            )
        for name, row in zip(found, rows, strict=True):
            each = (
                {name: row}
                if row.ndim == 1
                else {f"{name}/member_{i}": x for i, x in enumerate(row)}
            )
            for tag, counts in each.items():
                if counts.any():
                    yield tag, counts.tolist()

    def _write(self, tag: str, counts: list[int], step: int) -> None:
        """Write one histogram to TensorBoard, with finite ends for the unbounded outer intervals."""
        edges = self._edges
        used = [i for i, count in enumerate(counts) if count]
        limits = [*edges, edges[-1] if edges[-1] <= 0 else edges[-1] * 10]
        self._writer.add_histogram_raw(
            f"train/{tag}",
            min=edges[max(used[0] - 1, 0)],
            max=limits[used[-1]],
            num=sum(counts),
            sum=0.0,  # unknown; TensorBoard does not draw the sums
            sum_squares=0.0,
            bucket_limits=limits,
            bucket_counts=counts,
            global_step=step,
        )
