"""Outcomes of the quick tests, by versions and processor, and the files that keep them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

PYTHONS = ("3.11", "3.12", "3.13")
TORCHES = ("2.11", "2.13", "newest")


@dataclasses.dataclass(frozen=True)
class Cell:
    """The outcome of the quick tests with one Python and one torch.

    Attributes:
        python: minor version that was requested, as `3.12`.
        torch: minor version that was requested, or `newest`.
        date: day of the run, UTC, as `2026-11-30`.
        reason: why the tests did not run to their end; empty if they did.
        python_version: full version of the interpreter; empty if there is none.
        torch_version: full version of torch; empty if it was not installed.
        passed: number of tests.
        failed: number of tests, errors in fixtures and modules included.
        skipped: number of tests, expected failures included.
        seconds: wall time of the tests, without the installation.
        failures: the name of each failed test.
    """

    python: str
    torch: str
    date: str
    reason: str = ""
    python_version: str = ""
    torch_version: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    failures: tuple[str, ...] = ()

    @property
    def started(self) -> bool:
        """True if tests were run."""
        return self.seconds > 0


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """All cells of one processor.

    Attributes:
        processor: its name, with family and model.
        cores: number of cores that the tests could use.
        cells: one for each Python and torch, in order.
    """

    processor: str
    cores: int
    cells: tuple[Cell, ...] = ()

    @property
    def path(self) -> Path:
        """The file that keeps them."""
        words = re.sub(r"[^a-z0-9]+", "-", self.processor.lower()).strip("-")
        return RESULTS / f"matrix-{words}-{self.cores}-cores.json"

    def with_cell(self, cell: Cell) -> Outcomes:
        """Return the outcomes with `cell` instead of the one with the same Python and torch.

        A cell without a run does not replace one with a run.
        """
        cells = {(each.python, each.torch): each for each in self.cells}
        before = cells.get((cell.python, cell.torch))
        if cell.started or before is None or not before.started:
            cells[cell.python, cell.torch] = cell
        return dataclasses.replace(self, cells=tuple(sorted(cells.values(), key=_order)))


def read(path: Path) -> Outcomes:
    """Return the outcomes in a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [Cell(**cell) for cell in content.pop("cells")]
    cells = [dataclasses.replace(cell, failures=tuple(cell.failures)) for cell in cells]
    return Outcomes(cells=tuple(cells), **content)


def write(outcomes: Outcomes) -> None:
    """Write the file of these outcomes."""
    text = json.dumps(dataclasses.asdict(outcomes), indent=1, ensure_ascii=False)
    outcomes.path.write_text(text + "\n", encoding="utf-8")


def recorded() -> list[Outcomes]:
    """Return the outcomes on every processor, by its name."""
    return sorted(map(read, RESULTS.glob("matrix-*.json")), key=lambda each: each.processor)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as `3.12.1`; none for `newest`."""
    return tuple(map(int, re.findall(r"\d+", version)))


def _order(cell: Cell) -> tuple[tuple[int, ...], bool, tuple[int, ...]]:
    return numbers(cell.python), cell.torch == "newest", numbers(cell.torch)
