"""Transfer of the metrics of past steps from the device into a run's state."""

from __future__ import annotations

from typing import Any

from ftrain.loop._ensemble_members import ONE, members_of
from ftrain.loop._metric_columns import Columns, read
from ftrain.loop._skipped_steps import Counts, Skip, skipped_in_a_row
from ftrain.loop.events import Progress
from ftrain.loop.state import LoopState

__all__ = ["read_metrics"]


def read_metrics(state: LoopState) -> LoopState:
    """Read the metrics of past steps; return the state with updated totals and counts of skipped steps.

    No other function of a run waits for the device to complete its steps.

    Raises:
        TypeError: a metric is not a number, or is empty.
        ValueError: a metric has a reserved name, or changed its kind.
    """
    metrics: list[Any] = []
    rows: list[int] = []
    tokens, step = 0, state.unread
    while step is not None:
        of_step, samples, of_batch, step = step
        metrics.append(of_step)
        rows.append(samples)
        tokens += of_batch
    if not rows:
        return state
    metrics.reverse()
    rows.reverse()
    chunks = read(metrics, rows, members_of(state.train))
    seen = (len(rows), sum(rows), tokens)
    progress, nonfinite, skipped = state.progress, state.nonfinite, list(state.skipped)
    before = progress._replace(step=progress.step - len(rows), batch=progress.batch - len(rows))
    for columns in chunks:
        nonfinite, more = _skips(columns, nonfinite, before)
        skipped += more
        n = columns.steps
        before = before._replace(step=before.step + n, batch=before.batch + n)
    return state.replace(
        window=state.window.add(chunks, *seen),
        epoch=state.epoch.add(chunks, *seen),
        nonfinite=nonfinite,
        skipped=tuple(skipped),
        unread=None,
    )


def _skips(columns: Columns, nonfinite: Counts, before: Progress) -> tuple[Counts, list[Skip]]:
    """Return the number of steps skipped in a row up to the last step, and a list of skipped steps.

    With loss scaling, skipped steps are expected, and are counted but not listed.
    """
    skipped = columns.columns.get("skipped")
    if skipped is None or not skipped.kind:
        return 0, []
    single = skipped.members == ONE
    earlier = nonfinite if isinstance(nonfinite, tuple) else (nonfinite,)
    if len(earlier) != max(skipped.members, 1):
        earlier = (0,) * max(skipped.members, 1)
    counts: list[int] = []
    listed: list[Skip] = []
    for member, (count, fields) in enumerate(zip(earlier, skipped.of_members(), strict=True)):
        counts.append(skipped_in_a_row(fields[0], count))
        if "loss_scale" not in columns.columns:
            listed += [
                Skip(before.step + i, before.epoch, before.batch + i, None if single else member)
                for i, one in enumerate(fields[0], 1)
                if one
            ]
    return (counts[0] if single else tuple(counts)), listed
