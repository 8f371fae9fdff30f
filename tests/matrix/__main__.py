"""Run the quick tests on several versions of Python and torch, and write docs/versions.md.

    python -m tests.matrix [--python NAME ...] [--torch VERSION ...] [--keep]

Each pair gets a fresh virtual environment in build/matrix, with
the versions in constraints.txt but for torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import shutil
import sys
from collections.abc import Sequence

from benchmarks import measure
from tests.matrix import environment, page, quick
from tests.matrix.cells import PYTHONS, ROOT, TORCHES, Cell, Outcomes, read, write


def run_cell(name: str, torch: str, keep: bool) -> Cell:
    """Return the outcome of one cell.

    Args:
        name: a minor version of Python, or the name or path of an interpreter.
        torch: a minor version of torch, or `newest`.
        keep: keep the virtual environment, and use one that was kept.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    python = environment.find_python(name)
    if python is None:
        return Cell(name, torch, today, reason=f"no python{name} on PATH or in pyenv")
    cell = Cell(python.minor, torch, today, python_version=python.version)
    folder = ROOT / "build" / "matrix" / f"python-{python.minor}-torch-{torch}"
    report = folder.parent / f"{folder.name}.xml"
    report.unlink(missing_ok=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        reason = environment.install(python, torch, folder)
        if reason:
            return dataclasses.replace(cell, reason=f"not installed: {reason}")
        cell = dataclasses.replace(cell, torch_version=environment.torch_version(folder))
        print(f"Python {cell.python_version}, torch {cell.torch_version}", flush=True)
        return dataclasses.replace(cell, **quick.run(folder / "bin" / "python", report))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def record(cell: Cell) -> None:
    """Write the outcome into the file of this processor, and the page."""
    here = measure.machine()
    outcomes = Outcomes(here["cpu"], here["cores"])
    if outcomes.path.exists():
        outcomes = read(outcomes.path)
    write(outcomes.with_cell(cell))
    page.PAGE.write_text(page.written(page.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def main(words: Sequence[str]) -> int:
    """Run every cell in turn; return 1 if a test failed, or a run did not end."""
    arguments = _parse(words)
    for name in arguments.python:
        if not re.fullmatch(r"\d+\.\d+", name) and environment.find_python(name) is None:
            print(f"expected an interpreter of Python that starts, got {name}; name one on PATH")
            return 2
    cells = []
    for name in arguments.python:
        for torch in arguments.torch:
            cells.append(run_cell(name, torch, arguments.keep))
            record(cells[-1])
            print(page.row(cells[-1]), flush=True)
    return int(any(cell.failed or (cell.reason and cell.started) for cell in cells))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"minor versions, names on PATH or paths; {' '.join(PYTHONS)} by default"
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="NAME", help=names)
    versions = f"minor versions, or `newest`; {' '.join(TORCHES)} by default"
    parser.add_argument("--torch", nargs="+", default=TORCHES, metavar="VERSION", help=versions)
    parser.add_argument("--keep", action="store_true", help="keep environments, use kept ones")
    arguments = parser.parse_args(words)
    arguments.python = [re.sub(r"^python(?=\d+\.\d+$)", "", name) for name in arguments.python]
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
