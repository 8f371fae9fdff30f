"""Sweep over seeds and hyper-parameters of a configured run: all members in one compiled step."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from ftrain import transforms
from ftrain.config._environment import environment
from ftrain.config.build import Parts, build
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.core import tree
from ftrain.core.compile import check_compiler
from ftrain.loop import FitResult, callbacks, plots

__all__ = ["SweepReport", "sweep"]

Mode = Literal["min", "max"]


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """Results of a sweep: the values and metrics of its members, and the best member.

    Attributes:
        members: the swept values of each member by key, such as `optimizer.learning_rate`.
        metrics: `{name: values}`, one value per member, from the last evaluation or, without held-out
            data, from the last epoch.
        metric: the name of the metric by which members are compared.
        best: the position of the best member in `members`.
        picture: the path of the picture.
        table: the path of the table.
    """

    members: Sequence[Mapping[str, float]]
    metrics: Mapping[str, Sequence[float]]
    metric: str
    best: int
    picture: pathlib.Path
    table: pathlib.Path

    @property
    def best_values(self) -> Mapping[str, float]:
        """Swept values of the best member, by key."""
        return self.members[self.best]

    def __str__(self) -> str:
        values = ", ".join(f"{key}={value:.4g}" for key, value in self.best_values.items())
        value = self.metrics[self.metric][self.best]
        return (
            f"best of {len(self.members)}: {self.metric} {value:.4g} at {values}\n"
            f"picture: {self.picture}\ntable: {self.table}"
        )


def sweep(
    config: Config,
    axes: Mapping[str, Sequence[float]],
    metric: str,
    mode: Mode,
    chunk_size: int | None,
    out: pathlib.Path | None,
) -> SweepReport:
    """Train a run for every combination of values; write a picture and a table; return a report.

    Args:
        config: the configuration that all members share.
        axes: `{key: values}`; a key is `seed`, or an argument of the optimizer such as
            `optimizer.learning_rate`.
        metric: the name of the metric by which members are compared.
        mode: `"min"` if smaller values are better, `"max"` if larger values are.
        chunk_size: members computed at a time; `None`: all.
        out: path of the picture, beside which the table is written; `None`: `sweep.png` in the run's
            directory.

    Raises:
        ConfigError: a value is out of range, or the run does not report the metric.
    """
    out = config.folder / "sweep.png" if out is None else out
    members = transforms.grid(**axes)
    with environment(config):
        parts = build(config)
        if config.compile:
            check_compiler("compile=false on the command line", parts.device.type)
        result = _fit(parts, members, chunk_size)
    last = result.eval or result.train
    found = {} if last is None else dict(last.members)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = out.with_suffix(".csv")
    _write(table, members, found)  # before the metric is checked below
    if metric not in found:
        known = ", ".join(found)
        raise ConfigError.at(
            "--metric", "the command line", f"expected one of {known}, got {metric!r}. Choose one."
        )
    values = torch.tensor(found[metric], dtype=torch.float64)
    best = int(transforms.best({"i": torch.arange(len(members))}, values, mode)["i"])
    short = [{key.removeprefix("optimizer."): x for key, x in row.items()} for row in members]
    title = f"{config.model.name}, {len(members)} members"
    plots.sweep_grid(short, found[metric], out, metric=metric, title=title)
    return SweepReport(members, found, metric, best, out, table)


def _fit(parts: Parts, members: Sequence[Mapping[str, float]], chunk_size: int | None) -> FitResult:
    config = parts.config
    over = [{key.removeprefix("optimizer."): x for key, x in row.items()} for row in members]
    first = {name: float(value) for name, value in over[0].items() if name != "seed"}
    steps = parts.steps_with(first) if first else parts.steps
    swept = transforms.sweep(transforms.stoppable(steps), over=over, chunk_size=chunk_size)
    states = swept.init_state(0 if "seed" in over[0] else config.seed)
    states = tree.map(lambda leaf: leaf.to(parts.device), states)
    trainer = dataclasses.replace(parts, steps=swept).trainer(
        [callbacks.ProgressBar()] if config.progress else [],
        log_every=config.log_every,
        eval_every=config.eval_every,
        compile=config.compile,
        max_skipped=None,  # steps of stopped members count as skipped
    )
    return trainer.fit(
        states, parts.train, parts.held_out, epochs=config.epochs, max_steps=config.max_steps
    )


def _write(
    path: pathlib.Path,
    members: Sequence[Mapping[str, float]],
    metrics: Mapping[str, Sequence[float]],
) -> None:
    """Write the results of a sweep as CSV: a row per member, with its values, then its metrics."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*members[0], *metrics])
        for i, row in enumerate(members):
            found = (values[i] for values in metrics.values())
            table.writerow([*row.values(), *("" if math.isnan(x) else x for x in found)])
