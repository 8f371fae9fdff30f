"""Write the generated part of docs/versions.md: `python -m tests.matrix.page`."""

from __future__ import annotations

import textwrap

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
    """Return the table and the failures of one processor; usual cells without an outcome, too."""
    known = {(cell.python, cell.torch) for cell in outcomes.cells}
    for python in PYTHONS:
        for torch in TORCHES:
            if (python, torch) not in known:
                outcomes = outcomes.with_cell(Cell(python, torch, "", reason="no outcome recorded"))
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


def generated() -> str:
    """Return the command of the quick tests and a section for each processor."""
    words = [f'"{word}"' if " " in word else word for word in quick.ARGUMENTS]
    command = textwrap.fill(" ".join(["pytest", *words]), 100, break_on_hyphens=False)
    command = textwrap.indent(command.replace("\n", " \\\n  "), "    ") + "\n"
    return "\n".join([command, *map(section, recorded())])


def written(page: str) -> str:
    """Return the page with its generated part up to date."""
    before, rest = page.split(START)
    return before + START + generated() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
