"""Report of a benchmark: a table, a JSON file, a picture, and the comparison with an earlier report.

Read next: `measurement.py`, one row of a report; `_table.py` and `_picture.py`, which show it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ftrain.bench import _picture, _table
from ftrain.bench.measurement import Measurement
from ftrain.bench.noise import Difference, compare_runs, compare_turns
from ftrain.core._file_output import replace
from ftrain.core._regular_files import read_json
from ftrain.core._words import did_you_mean

__all__ = ["BenchmarkFileError", "BenchmarkReport", "Change", "Comparison", "check_machine"]

_FORMAT = "ftrain benchmark 1"


class BenchmarkFileError(ValueError):
    """Error for a file that is not a report of a benchmark, or is a report of another machine."""


class Change(NamedTuple):
    """Change of the time and memory of one variant since an earlier report.

    Attributes:
        name: the variant and its settings.
        time: the time of a step now over the time in the earlier report.
        memory: the peak memory now over the peak memory in the earlier report.
        is_worse: True if memory exceeds the limit, or if time does and its difference is more than
            noise.
    """

    name: str
    time: Difference
    memory: float
    is_worse: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a report with an earlier report.

    Attributes:
        changes: one for each variant that both reports have.
        missing: names of variants that only the earlier report has.
        limit: the largest ratio that is not worse.
    """

    changes: tuple[Change, ...]
    missing: tuple[str, ...]
    limit: float

    @property
    def is_worse(self) -> bool:
        """True if time or memory of a variant exceeds the limit, or if a variant was not measured."""
        return bool(self.missing) or any(change.is_worse for change in self.changes)

    def __str__(self) -> str:
        lines = [f"against the earlier report (limit {self.limit:g} times):"]
        for change in self.changes:
            memory = f"peak memory {change.memory:.2f} times"
            verdict = "WORSE" if change.is_worse else "ok"
            lines.append(f"  {verdict:<6}{change.name}: time {change.time}; {memory}")
        lines += [f"  WORSE {name}: not measured now" for name in self.missing]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """Measured figures of a step, one measurement for each of its variants and settings.

    `print` shows a table, and the differences that are more than noise.

    Attributes:
        measurements: the figures.
        machine: the machine, as `ftrain.bench.machine` describes it.
        versions: versions of Python and of packages.
        notes: sentences about variants that were not measured, with the reason.

    Example:
        >>> import ftrain, torch
        >>> report = ftrain.benchmark(
        ...     lambda w, x: w - 0.1 * x.mean(0), torch.zeros(3), torch.ones(8, 3),
        ...     variants=["eager"], rounds=2, seconds=0.0,
        ... )
        >>> [row.variant for row in report.measurements], report["eager"].samples
        (['eager'], 8)
    """

    measurements: tuple[Measurement, ...]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measurement:
        """Return the measurement of a variant, by its name: `"compiled"`, `"eager, batch_size=8"`.

        Raises:
            KeyError: the variant was not measured; the message lists the measured variants.
        """
        for each in self.measurements:
            if each.name == name:
                return each
        names = [each.name for each in self.measurements]
        raise KeyError(
            f"name: expected one of {'; '.join(names)}, got {name!r}."
            f"{did_you_mean(name, names) or ' Write one of these names.'}"
        )

    def __str__(self) -> str:
        return _table.table(self.measurements, self.machine, self.versions, self.notes)

    def difference(self, first: str, second: str) -> Difference:
        """Compare the times of two variants, by names as in `report[name]`.

        Returns:
            The time of the first variant over the time of the second.
        """
        return compare_turns(self[first].seconds, self[second].seconds)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "format": _FORMAT,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "measurements": [each.to_json() for each in self.measurements],
            "notes": list(self.notes),
        }

    def save(self, path: str | pathlib.Path) -> None:
        """Write the report to a JSON file."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        replace(pathlib.Path(path), text)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> BenchmarkReport:
        """Read the JSON file of a report.

        Raises:
            BenchmarkFileError: the file cannot be read, or is not a report.
        """
        try:
            found = read_json(path)
            if not isinstance(found, dict) or found.get("format") != _FORMAT:
                got = found.get("format") if isinstance(found, dict) else type(found).__name__
                raise ValueError(f"its format is {got!r}, not {_FORMAT!r}")
            return cls(
                tuple(Measurement.from_json(each) for each in found["measurements"]),
                found["machine"],
                found["versions"],
                tuple(found["notes"]),
            )
        except OSError as error:
            raise BenchmarkFileError(
                f"{path} cannot be read: {error.strerror or error}. Write a report with `ftrain bench "
                "... --out FILE.json`, or report.save(FILE)."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkFileError(
                f"{path}: expected a report of a benchmark, got another or a damaged file ({error}). "
                "Write a report with `ftrain bench ... --out FILE.json`, or report.save(FILE)."
            ) from None

    def compare(
        self, earlier: BenchmarkReport, *, limit: float = 1.1, any_machine: bool = False
    ) -> Comparison:
        """Return the changes from an earlier report of the same step.

        A variant is worse if its time exceeds `limit` times the earlier time and the difference is more
        than noise, or if its peak memory exceeds `limit` times the earlier peak memory.

        Args:
            earlier: the baseline.
            limit: the largest ratio that does not count as worse, at least 1.
            any_machine: True: compare reports of different machines as well.

        Raises:
            BenchmarkFileError: the reports are of different machines, or have no variant in common.
            ValueError: the limit is below 1.
        """
        if not limit >= 1:
            raise ValueError(
                f"limit: expected a ratio of at least 1, got {limit!r}. Write limit=1.1."
            )
        if not any_machine:
            check_machine(earlier.machine, self.machine)
        changes = tuple(self._changes(earlier, limit))
        if not changes:
            raise BenchmarkFileError(
                "expected an earlier report that shares a variant with this report, got "
                f"{', '.join(each.name for each in earlier.measurements) or 'no variant'}. Measure the "
                "same variants and settings."
            )
        here = {each.name for each in self.measurements}
        missing = tuple(each.name for each in earlier.measurements if each.name not in here)
        return Comparison(changes, missing, limit)

    def plot(self, out: str | pathlib.Path | None = None) -> Any:
        """Draw the times of a step as a matplotlib figure, and write it to a file if one is given.

        The figure has bars for variants, or lines over a setting with several numbers, with whiskers
        from the 5th to the 95th percentile.

        Raises:
            ImportError: matplotlib is not installed; the message says how to install it.
        """
        figure = _picture.picture(self.measurements, self.machine)
        if out is not None:
            figure.savefig(out)
        return figure

    def _changes(self, earlier: BenchmarkReport, limit: float) -> Iterator[Change]:
        before = {each.name: each for each in earlier.measurements}
        for now in self.measurements:
            then = before.get(now.name)
            if then is None:
                continue
            time = compare_runs(now.seconds, then.seconds)
            memory = now.peak_bytes / then.peak_bytes if then.peak_bytes else 1.0
            slower = time.ratio > limit and time.is_real
            yield Change(now.name, time, memory, slower or memory > limit)


def check_machine(earlier: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `BenchmarkFileError` if processor, cores, threads or accelerator of two machines differ."""
    differing = [
        f"{key} {earlier.get(key)!r} there, {here.get(key)!r} here"
        for key in ("cpu", "cores", "threads", "device")
        if earlier.get(key) != here.get(key)
    ]
    if differing:
        raise BenchmarkFileError(
            f"expected an earlier report of this machine, got a report of another one: "
            f"{'; '.join(differing)}. Measure the earlier version of the step on this machine, or write "
            "any_machine=True (--any-machine)."
        )
