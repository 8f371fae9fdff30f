"""Curves of a run, read from its log `metrics.jsonl`.

Read next: `curves.py`, the image; `page.py`, the page.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftrain.core._regular_files import read_lines
from ftrain.core._terminal import printable
from ftrain.core.errors import DataError
from ftrain.loop._reserved_names import PLACE

__all__ = ["Curve", "Path", "RunLog", "Runs", "read_run", "read_runs", "splits_of"]

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Curve of one metric of one split, in the order of the steps.

    Attributes:
        steps: training steps.
        epochs: epochs, with fractions if the log has rows for the ends of epochs; NaN if the log has no
            epochs.
        times: seconds since the run began; NaN if missing in the log.
        values: values of the metric; NaN if it was not finite (`null` in the log).
    """

    steps: tuple[float, ...]
    epochs: tuple[float, ...]
    times: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """Value of the curve at the last step."""
        return self.values[-1]

    @property
    def lowest(self) -> float:
        """Smallest value of the curve; NaN if no value is finite."""
        return min((value for value in self.values if math.isfinite(value)), default=math.nan)

    @property
    def highest(self) -> float:
        """Largest value of the curve; NaN if no value is finite."""
        return max((value for value in self.values if math.isfinite(value)), default=math.nan)


@dataclasses.dataclass(frozen=True)
class RunLog:
    """Curves of one run.

    Attributes:
        name: the name of the run in legends.
        path: the file that was read.
        curves: metric -> split -> curve.
    """

    name: str
    path: pathlib.Path
    curves: Mapping[str, Mapping[str, Curve]]

    @property
    def step(self) -> int:
        """Last training step with a row in the log."""
        found = (c.steps[-1] for splits in self.curves.values() for c in splits.values())
        return int(max(found, default=0))


Runs = Path | RunLog | Iterable[Path | RunLog]


def read_run(path: Path, name: str | None = None) -> RunLog:
    """Read the curves of a run from its directory, or from a log file in the same format.

    A line that a crash cut short is skipped. If a step was logged twice (a run resumed from an
    earlier checkpoint), the later row counts.

    Args:
        path: a run directory, or a `.jsonl` file of rows `{"step": 100, "split": "train", "loss": 0.5}`.
        name: the name in legends; default: the name of the directory.

    Raises:
        DataError: the log is missing, is not a regular file, or has no row with a step and a metric.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = pathlib.Path(folder) / "metrics.jsonl"
        ...     _ = log.write_text('{"step": 5, "split": "eval", "loss": 2}')
        ...     read_run(folder, "mine").curves["loss"]["eval"].values
        (2.0,)
    """
    given = pathlib.Path(path)
    file = given / "metrics.jsonl" if given.is_dir() else given
    if not file.exists():
        raise DataError(_no_log(given))
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    try:
        for row in _rows(file):
            rows.setdefault((row["split"], row["step"]), {}).update(row)
    except OSError as error:
        says = error.strerror or error
        raise DataError(f"{file}: {says}. Name the directory of a run.") from None
    found: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    ends = sorted(step for split, step in rows if split == "train_epoch")
    for (split, step), row in sorted(rows.items(), key=lambda item: item[0][1]):
        epoch = _passes(step, ends) if ends else _number(row.get("epoch"))
        where = (step, epoch, _number(row.get("time")))
        for metric, value in row.items():
            if metric not in PLACE and (value is None or _is_number(value)):
                found.setdefault(metric, {}).setdefault(split, []).append((*where, _number(value)))
    if not found:
        raise DataError(
            f"{file}: expected a row with a step and a metric, got none. Plot it after the first "
            "`log_every` steps."
        )
    curves = {
        metric: {split: Curve(*zip(*points, strict=True)) for split, points in splits.items()}
        for metric, splits in found.items()
    }
    own = printable(file.resolve().parent.name, one_line=True)
    return RunLog(name or own, file, curves)


def read_runs(runs: Runs) -> tuple[RunLog, ...]:
    """Read the curves of several runs, each under a unique name.

    Raises:
        DataError: a run has no log; no run is given.
    """
    several: Iterable[Path | RunLog]
    several = [runs] if isinstance(runs, (str, os.PathLike, RunLog)) else list(runs)
    logs = [each if isinstance(each, RunLog) else read_run(each) for each in several]
    if not logs:
        raise DataError(
            "runs: expected at least one run, got none. Pass a run directory, such as runs/digits."
        )
    return tuple(
        dataclasses.replace(log, name=name) for log, name in zip(logs, _names(logs), strict=True)
    )


def splits_of(log: RunLog, metric: str) -> dict[str, Curve]:
    """Return one curve per split of a metric; for speeds (`..._per_second`), only training."""
    found = dict(log.curves.get(metric, {}))
    if metric.endswith("_per_second") and "train" in found:
        return {"train": found["train"]}
    return found


def _rows(file: pathlib.Path) -> Iterable[dict[str, Any]]:
    for line in read_lines(file):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and math.isfinite(_number(row.get("step"))):
            yield {**row, "split": str(row.get("split", "train"))}


def _passes(step: float, ends: Sequence[float]) -> float:
    """Return the fractional epoch at a step; an unfinished epoch counts as long as the previous one."""
    done = bisect.bisect_right(ends, step)
    if done == len(ends):
        begin, size = ends[-1], ends[-1] - (ends[-2] if len(ends) > 1 else 0)
    else:
        begin = ends[done - 1] if done else 0
        size = ends[done] - begin
    return done + (step - begin) / size if size else float(done)


#: Larger numbers are drawn as gaps, like infinities: they would overflow the ends of matplotlib's axes.
_LARGEST = 1e300


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return float(value) if _is_number(value) and abs(value) <= _LARGEST else math.nan
    except OverflowError:  # an int of hundreds of digits
        return math.nan


def _names(logs: Sequence[RunLog]) -> list[str]:
    """Return unique names of runs: equal names get parent directories or, if these agree, a number."""
    given = [log.name for log in logs]
    folders = [
        [printable(part, one_line=True) for part in log.path.resolve().parent.parts] for log in logs
    ]
    names = list(given)
    for name in set(given):
        alike = [index for index, other in enumerate(given) if other == name]
        different = {tuple(folders[index]) for index in alike}
        if len(different) > 1:
            depth = 1
            while len({folder[-depth:] for folder in different}) < len(different):
                depth += 1
            for index in alike:
                names[index] = "/".join(folders[index][-depth:])
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names


def _no_log(path: pathlib.Path) -> str:
    if not path.exists():
        around = sorted(path.parent.glob("*/metrics.jsonl")) if path.parent.is_dir() else []
        what = f"{path}: expected a run directory or a log, got no such path"
    else:
        around = sorted(path.glob("*/metrics.jsonl")) or sorted(path.glob("*/*/metrics.jsonl"))
        what = f"{path}: expected a run directory, got one without metrics.jsonl"
    there = ", ".join(printable(file.parent, one_line=True) for file in around[:10])
    return f"{what}. " + (
        f"Choose one of {there}." if there else "Write one with `ftrain train CONFIG`."
    )
