"""Optimizer and learning-rate schedule of a configuration.

Read next: `build.py`, which makes the steps of a run with them.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from ftrain import optim
from ftrain.config._component_errors import made
from ftrain.config.errors import ConfigError
from ftrain.config.resolve import Resolved, Target
from ftrain.config.schema import Config
from ftrain.loop._limits import steps_of

__all__ = ["optimizer_of", "schedule_of", "schedule_steps", "total_steps"]


def schedule_of(resolved: Resolved, total: int | None, evaluation: bool, rate: Any = None) -> Any:
    """Return the learning-rate schedule; `None` if the rate is constant.

    Args:
        resolved: the configuration.
        total: updates in the whole run; `None`: unknown.
        evaluation: True if the run will only be evaluated.
        rate: the peak, a number or 0-d tensor; `None`: the peak of the configuration.
    """
    config, course = resolved.config, resolved.schedule
    if course is None or course.needs.chained:
        return None
    rate = config.optimizer.learning_rate if rate is None else rate
    if evaluation:  # the state is the same for every schedule, and the run's length is not known
        return optim.constant(rate or 0.0)
    arguments = {**course.arguments, **schedule_steps(config, course, total)}
    return made(config, course, functools.partial(course.function, rate, **arguments))


def optimizer_of(resolved: Resolved, rate: Any) -> Any:
    """Return the optimizer with gradient clipping and, if configured, a weight average (EMA)."""
    config, target, course = resolved.config, resolved.optimizer, resolved.schedule
    links = [optim.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []
    links.append(made(config, target, functools.partial(target.function, rate, **target.arguments)))
    if course is not None and course.needs.chained:
        links.append(made(config, course, functools.partial(course.function, **course.arguments)))
    whole = optim.chain(*links)
    return whole if config.ema is None else optim.ema(whole, config.ema)


def total_steps(config: Config, train: Any) -> int | None:
    """Return the number of updates in a run on the batches `train`; `None` if it is unknown."""
    limits = [config.max_steps]
    if config.epochs is not None and hasattr(train, "__len__"):
        with contextlib.suppress(TypeError):  # a stream over data without a length
            limits.append(steps_of(config.epochs, len(train)))
    return min((limit for limit in limits if limit is not None), default=None)


def schedule_steps(config: Config, course: Target, total: int | None) -> dict[str, int]:
    """Return those arguments of a schedule that follow from the number of updates in a run.

    Args:
        config: the configuration.
        course: its schedule.
        total: updates in the whole run; `None`: unknown.

    Raises:
        ConfigError: there are such arguments, and the number of updates is unknown.
    """
    needs = course.needs
    shares = {
        name: value
        for name, value in course.arguments.items()
        if name.endswith("steps") and isinstance(value, float) and 0 < value < 1
    }
    left = [
        name
        for name in (needs.total_steps, needs.remaining_steps)
        if name is not None and course.takes(name) and name not in course.arguments
    ]
    if total is None and (shares or left):
        raise ConfigError.at(
            "max_steps",
            config.places.of(("schedule",)),
            "expected a number of steps for the schedule, got data without a length. Write max_steps.",
        )
    found = {name: int(share * (total or 0)) for name, share in shares.items()}
    others = {**course.arguments, **found}
    taken = sum(
        value
        for name, value in others.items()
        if name != needs.total_steps and name.endswith("_steps") and value
    )
    for name in left:
        found[name] = (total or 0) - (taken if name == needs.remaining_steps else 0)
    return found
