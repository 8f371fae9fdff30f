"""Write the generated part of docs/versions.md: `python -m tests.matrix.page`."""

from __future__ import annotations

import itertools
import shlex
import textwrap
from collections.abc import Sequence

from tests.matrix import quick
from tests.matrix.cells import PYTHONS, ROOT, TORCHES, Cell, Outcomes, recorded

PAGE = ROOT / "docs" / "versions.md"
START, END = "<!-- matrix: start -->\n", "<!-- matrix: end -->\n"
HEAD = [
    "| Python | torch | passed | failed | skipped | minutes | date |",
    "|---|---|--:|--:|--:|--:|---|",
]


def row(cell: Cell) -> str:
    """Return the line of one cell."""
    newest = ", the newest" if cell.torch == "newest" and cell.torch_version else ""
    versions = (
        f"| {cell.python_version or cell.python} | {cell.torch_version or cell.torch}{newest} |"
    )
    if not cell.started:
        return f"{versions} not run: {cell.reason} | | | | {cell.date} |"
    failed = f"{cell.failed}; {cell.reason}" if cell.reason else f"{cell.failed}"
    counts = f"{cell.passed} | {failed} | {cell.skipped} | {cell.seconds / 60:.0f}"
    return f"{versions} {counts} | {cell.date} |"


def section(outcomes: Outcomes) -> str:
    """Return the table and the failures of one processor."""
    lines = [
        f"### {outcomes.processor}, {outcomes.cores} cores",
        "",
        *HEAD,
        *map(row, outcomes.cells),
    ]
    for cell in outcomes.cells:
        if cell.failures:
            lines += [
                "",
                f"Failed with Python {cell.python_version} and torch {cell.torch_version}:",
                "",
            ]
            lines += [f"- `{name}`" for name in cell.failures]
    return "\n".join(lines) + "\n"


def without_outcome(every: Sequence[Outcomes]) -> str:
    """Return a line that names the usual cells that no processor has run; empty if there is none."""
    run = {(cell.python, cell.torch) for each in every for cell in each.cells if cell.started}
    usual = itertools.product(PYTHONS, TORCHES)
    missing = [f"Python {cell[0]} with torch {cell[1]}" for cell in usual if cell not in run]
    return f"Not run on any processor: {', '.join(missing)}.\n" if missing else ""


def command() -> str:
    """Return the command of the quick tests, broken into lines for a shell."""
    words = [shlex.quote(word) for word in ("pytest", *quick.ARGUMENTS)]
    # A line may be longer than 100 characters, because the name of a test must not be broken.
    lines = textwrap.wrap(" ".join(words), 100, break_on_hyphens=False, break_long_words=False)
    return " \\\n  ".join(lines)


def generated() -> str:
    """Return the command of the quick tests, a section for each processor, and what is missing."""
    every = recorded()
    parts = [
        textwrap.indent(command(), "    ") + "\n",
        *map(section, every),
        without_outcome(every),
    ]
    return "\n".join(part for part in parts if part)


def written(page: str) -> str:
    """Return the page with its generated part up to date."""
    before, rest = page.split(START)
    return before + START + generated() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
