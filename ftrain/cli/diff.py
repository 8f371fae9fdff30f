"""Comparison of two runs by the files in their directories.

Compared are, in this order: configuration, data, library versions and settings, digests of states and
batches, metrics, and the leaves of the first checkpoints that differ.

Read next: `ftrain/testing/divergence/compare.py`, which compares two traces.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ftrain.checkpoint._read import open_checkpoint
from ftrain.checkpoint.load import read_dense
from ftrain.checkpoint.manifest import Manifest
from ftrain.cli._runs import rows
from ftrain.config.folders import run_config
from ftrain.core._regular_files import read_json
from ftrain.testing import Trace, compare_traces
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.divergence.leaves import listed, rows_that_differ
from ftrain.testing.divergence.page import Section, page, text, trace_sections

__all__ = ["Comparison", "diff_runs", "diff_traces"]

#: Logged values that depend on the speed of the machine, and differ between equal runs.
_CLOCKS = ("time", "duration")
_MISSING = "(none)"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of a comparison of two runs or traces: their differences, as tables.

    Attributes:
        summary: a sentence on the first difference.
        differs: False if everything that both runs recorded is equal.
        sections: the tables of differences.
    """

    summary: str
    differs: bool
    sections: tuple[Section, ...]

    def text(self) -> str:
        """Return the comparison as plain text."""
        return text(self.summary, self.sections)

    def page(self, title: str) -> str:
        """Return the comparison as an HTML page."""
        return page(title, self.summary, self.sections)


def diff_traces(a: pathlib.Path, b: pathlib.Path, relative: float) -> Comparison:
    """Compare two traces, which are files that `ftrain.testing.record` wrote.

    Raises:
        DataError: a file is not a trace.
    """
    one, two = Trace.load(a), Trace.load(b)
    found = compare_traces(one, two, relative=relative)
    sections = tuple(trace_sections(one, two, found, relative))
    if found is not None:
        return Comparison(str(found), True, sections)
    differs = any(section.marked for section in sections)
    return Comparison("the traces are equal in all common steps", differs, sections)


def diff_runs(a: pathlib.Path, b: pathlib.Path) -> Comparison:
    """Compare two runs by the files in their directories.

    Raises:
        ConfigError: a configuration cannot be read.
        CheckpointError: a checkpoint is damaged.
    """
    digests = [_digest_rows(folder) for folder in (a, b)]
    checkpoints = _Checkpoints(a, b)
    sections = [
        _keys("configuration", *(_configuration(folder) for folder in (a, b))),
        _keys("data", *(_flat(_json(folder / "data.json")) for folder in (a, b))),
        _keys(
            "environment",
            *(
                logged.get(0, {}).get("environment") or checkpoints.environment(side)
                for side, logged in enumerate(digests)
            ),
        ),
        _steps(*digests),
        _metrics(*(list(rows(folder)) for folder in (a, b))),
        checkpoints.section(),
    ]
    differing = [section for section in sections if section.marked]
    if not differing:
        return Comparison(
            "no difference in anything that both runs recorded", False, tuple(sections)
        )
    names = ", ".join(section.title for section in differing)
    return Comparison(f"A and B differ in {names}", True, tuple(sections))


def _configuration(folder: pathlib.Path) -> dict[str, str]:
    found = _flat(run_config(folder).model_dump(mode="json"))
    found.pop("output_dir", None)
    return found


def _keys(title: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Section:
    """Return a table of the keys whose values differ between two mappings."""
    if not a or not b:
        lacking = " and ".join(name for name, each in (("A", a), ("B", b)) if not each)
        return Section(title, f"not recorded in {lacking}")
    found = tuple(
        (name, str(a.get(name, _MISSING)), str(b.get(name, _MISSING)))
        for name in dict.fromkeys((*a, *b))
        if a.get(name, _MISSING) != b.get(name, _MISSING)
    )
    note = f"{len(found)} of {len({*a, *b})} keys differ" if found else "equal"
    return Section(title, note, ("key", "A", "B"), found, frozenset(range(len(found))))


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to one dict with dotted keys, such as `optimizer.name`."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value)} if prefix else {}
    found: dict[str, str] = {}
    for key, each in value.items():
        found |= _flat(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def _json(path: pathlib.Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _digest_rows(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Return `{step: row}` for the rows of a run's log that contain digests of state and batch."""
    return {row["step"]: row for row in rows(folder) if row["split"] == "digest"}


def _steps(a: Mapping[int, Any], b: Mapping[int, Any]) -> Section:
    """Return a table of the steps at which both runs logged digests, with the leaves that differ."""
    title, columns = "digests", ("step", "batch", "state")
    common = sorted(a.keys() & b.keys())
    if not common:
        return Section(title, "no step has digests in both runs; train with log_digests=1")
    found: list[tuple[str, ...]] = []
    marked: list[int] = []
    first: int | None = None
    for step in common:
        batch, state = (_differing(a[step].get(k), b[step].get(k)) for k in ("batch", "state"))
        if batch or state:
            marked.append(len(found))
            first = step if first is None else first
        found.append((str(step), _leaves(batch), _leaves(state)))
    if first is None:
        return Section(title, f"equal at all {len(common)} common steps", columns, tuple(found))
    note = _first_step(first, common, a[first], b[first])
    return Section(title, note, columns, tuple(found), frozenset(marked))


def _first_step(step: int, common: list[int], a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Describe the first step at which the digests of two runs differ, and the differing leaves."""
    batch, state = (_differing(a.get(k), b.get(k)) for k in ("batch", "state"))
    before = [other for other in common if other < step]
    if not step:
        return f"the initial states differ at {listed(state)}"
    exact = bool(before) and before[-1] == step - 1
    when = f"at step {step}"
    if before and not exact:
        when = f"after step {before[-1]} and up to step {step} (log_digests=1 finds the step)"
    parts = []
    for path in batch[:1]:
        both = [(row.get("rows") or {}).get(path) or () for row in (a, b)]
        changed = rows_that_differ(*both)
        parts.append(f"batch{path or ''} of step {step}" + (f" ({changed})" if changed else ""))
    if state:
        parts.append(f"state at {listed(state)}" if any(state) else "state")
    return f"first difference {when}: {'; '.join(parts)}"


def _differing(a: Any, b: Any) -> list[str]:
    one, two = (each if isinstance(each, Mapping) else {} for each in (a, b))
    return [path for path in dict.fromkeys((*one, *two)) if one.get(path) != two.get(path)]


def _leaves(paths: list[str]) -> str:
    return f"{len(paths)} differ: {listed(paths)}" if paths else "equal"


def _metrics(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Section:
    """Return a table of the metrics in the first log row that differs between two runs."""
    mine, theirs = ({(row["step"], row["split"]): row for row in each} for each in (a, b))
    common = [key for key in mine if key in theirs and key[1] != "digest"]
    if not common:
        return Section("metrics", "no row of the log is in both runs")
    for step, split in sorted(common, key=lambda key: key[0]):
        one, two = mine[step, split], theirs[step, split]
        names = [
            name
            for name in dict.fromkeys((*one, *two))
            if name.rpartition("/")[2] not in _CLOCKS  # ema/duration: of another evaluation
            and not name.endswith("_per_second")
            and one.get(name) != two.get(name)
        ]
        if names:
            found = tuple((name, repr(one.get(name)), repr(two.get(name))) for name in names)
            note = f"first difference in the row of step {step}, {split}: {listed(names)}"
            return Section(
                "metrics", note, ("metric", "A", "B"), found, frozenset(range(len(found)))
            )
    return Section("metrics", f"equal in all {len(common)} common rows")


class _Checkpoints:
    """Pair of runs whose checkpoints are compared."""

    def __init__(self, a: pathlib.Path, b: pathlib.Path) -> None:
        self._paths = [_by_step(folder / "checkpoints") for folder in (a, b)]

    def environment(self, side: int) -> dict[str, Any]:
        """Return the library versions and settings recorded in the first checkpoint of a run."""
        for _, path in sorted(self._paths[side].items()):
            manifest = _manifest(path)
            return {**manifest.versions, **manifest.determinism}
        return {}

    def section(self) -> Section:
        """Return a table of the leaves that differ, at the first step whose checkpoints differ."""
        title = "checkpoints"
        common = sorted(self._paths[0].keys() & self._paths[1].keys())
        if not common:
            return Section(title, "no step has a checkpoint in both runs")
        for step in common:
            found = tuple(_leaf_differences(*(paths[step] for paths in self._paths)))
            if found:
                count = f"{len(found)} {'leaf' if len(found) == 1 else 'leaves'}"
                note = f"first difference at step {step}: {count}, first {' '.join(found[0])}"
                columns = ("leaf", "difference")
                return Section(title, note, columns, found, frozenset(range(len(found))))
        steps = ", ".join(map(str, common))
        return Section(title, f"equal at all common steps: {steps}")


def _by_step(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    found = {}
    for path in folder.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal():
            found[int(number)] = path
    return found


def _manifest(path: pathlib.Path) -> Manifest:
    with open_checkpoint(path) as source:
        return source.manifest


def _leaf_differences(a: pathlib.Path, b: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield path and difference, as text, of each leaf that differs between two checkpoints."""
    one, two = (_manifest(path) for path in (a, b))
    if one.files == two.files and one.leaves == two.leaves:
        return  # the hashes of all files are equal
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        mine, theirs = (
            read_dense(source, [leaf.path for leaf in source.manifest.leaves])
            for source in (first, second)
        )
    for path in dict.fromkeys((*mine, *theirs)):
        if path not in mine or path not in theirs:
            yield path, f"only in {'A' if path in mine else 'B'}"
            continue
        difference = first_difference(theirs[path], mine[path])
        if difference is not None:
            yield path, _described(difference)


def _described(difference: Difference) -> str:
    if difference.kind != "values":
        return f"{difference.kind} {difference.expected} in A, {difference.got} in B"
    apart = "" if difference.ulps is None else f"{difference.ulps} ulps apart; "
    return (
        f"at {difference.index}: {difference.expected:.9g} in A, {difference.got:.9g} in B ({apart}"
        f"{difference.count} of {difference.total} elements differ)"
    )
