"""Note about a resumed run whose length, and therefore learning-rate schedule, has changed."""

from __future__ import annotations

import pathlib

import torch

from ftrain.checkpoint import Store
from ftrain.config._optimizer import schedule_of, total_steps
from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_config

__all__ = ["schedule_note"]


def schedule_note(parts: Parts, folder: pathlib.Path, store: Store) -> str | None:
    """Return a note if a resumed run's learning rate jumps because its length changed; else `None`.

    Args:
        parts: the resumed run.
        folder: its directory, which holds the earlier configuration.
        store: its checkpoints.
    """
    steps, now, course = store.steps(), parts.total_steps, parts.resolved.schedule
    if parts.schedule is None or course is None or now is None or not steps:
        return None
    try:
        before = total_steps(run_config(folder), parts.train)
        if before is None or before == now:
            return None
        earlier = schedule_of(parts.resolved, before, False)
    except ConfigError:  # the earlier file is damaged, or its length does not fit the schedule
        return None
    step = torch.tensor(steps[-1])
    old, new = (float(schedule(step)) for schedule in (earlier, parts.schedule))
    if old == new:
        return None
    longer = "stretched" if now > before else "compressed"
    return (
        f"the schedule {course.component.name} is {longer} from {before} to {now} steps: the learning "
        f"rate after step {steps[-1]} is {new:.4g}, not {old:.4g}. The result is not that of a run of "
        f"{now} steps from the start."
    )
