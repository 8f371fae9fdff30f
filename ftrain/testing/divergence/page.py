"""Output of a comparison of two runs, as text or as one self-contained HTML page.

The page opens from a disk or an email, and loads nothing (its content security policy forbids it).
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable

from ftrain.core._terminal import printable
from ftrain.testing.divergence.align import align
from ftrain.testing.divergence.divergence import Divergence
from ftrain.testing.divergence.leaves import differing, is_far
from ftrain.testing.divergence.trace import OperatorRecord, StepRecord, Trace
from ftrain.testing.report import aligned

__all__ = ["Section", "page", "text", "trace_sections"]

_MOST = 2000  # largest number of rows of a table
_SHOWN = 6  # largest number of rows of a table in text output

_CSS = """
:root{color-scheme:light dark;--page:#f5f6f8;--panel:#fff;--edge:#e1e4ea;--text:#1f2430;--quiet:#667085;
--wrong:#cf2f2a;--mark:#fdecea}
@media(prefers-color-scheme:dark){:root{--page:#12151c;--panel:#191d26;--edge:#2a303c;--text:#e8eaf0;
--quiet:#9aa3b2;--wrong:#ff7b72;--mark:#3a2226}}
body{margin:0;padding:24px 28px 32px;background:var(--page);color:var(--text);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif}
h1{margin:0 0 12px;font-size:21px}h2{margin:28px 0 8px;font-size:15px}p{margin:4px 0;color:var(--quiet)}
pre,.scroll{overflow-x:auto;background:var(--panel);border:1px solid var(--edge);
border-radius:10px;margin:0}
pre{padding:12px 14px}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:left;white-space:nowrap;vertical-align:top}
th{color:var(--quiet);font-weight:500;border-bottom:1px solid var(--edge)}
tr.differs td{background:var(--mark)}tr.differs td:last-child{color:var(--wrong);font-weight:600}
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<h1>{title}</h1>
<pre>{summary}</pre>
{sections}
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """One table of a comparison, with a title and its outcome.

    Attributes:
        title: what is compared.
        note: the outcome, in one sentence.
        columns: names of the columns.
        rows: the cells.
        marked: positions of the rows that differ.
        is_wide: True if the rows are too wide for text.
    """

    title: str
    note: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    marked: frozenset[int] = frozenset()
    is_wide: bool = False


def text(summary: str, sections: Iterable[Section]) -> str:
    """Return a comparison as plain text, with the first differing rows of each table."""
    lines = [summary]
    for section in sections:
        lines += ["", f"{section.title}: {printable(section.note, one_line=True)}"]
        rows = [
            [printable(cell, one_line=True) for cell in row]
            for i, row in enumerate(section.rows)
            if i in section.marked and not section.is_wide
        ]
        lines += [f"  {line}" for line in aligned(rows[:_SHOWN])]
        if len(rows) > _SHOWN:
            lines.append(f"  ... and {len(rows) - _SHOWN} more (--html shows them)")
    return "\n".join(lines)


def page(title: str, summary: str, sections: Iterable[Section]) -> str:
    """Return a comparison as an HTML page, with equal bytes for equal comparisons."""
    return _PAGE.format(
        title=html.escape(title),
        css=_CSS,
        summary=html.escape(summary),
        sections="\n".join(map(_section, sections)),
    )


def trace_sections(a: Trace, b: Trace, found: Divergence | None, relative: float) -> list[Section]:
    """Return tables that compare two traces: settings, steps, operators of the step that differs."""
    settings = [
        (name, str(a.environment.get(name)), str(b.environment.get(name)))
        for name in dict.fromkeys((*a.environment, *b.environment))
        if a.environment.get(name) != b.environment.get(name)
    ]
    count = f"{len(settings)} differ" if settings else "all are equal"
    columns = ("setting", "A", "B")
    every = frozenset(range(len(settings)))
    sections = [Section("environment", count, columns, tuple(settings), every)]
    mine, theirs = ({step.step: step for step in trace.steps} for trace in (a, b))
    common = sorted(mine.keys() & theirs.keys())
    states = [_step_row(mine[n], theirs[n], relative) for n in common]
    marked = frozenset(i for i, row in enumerate(states) if "differ" in " ".join(row[1:]))
    last = f"of {len(common)} common steps, {len(marked)} differ"
    sections.append(
        Section("steps", last, ("step", "batch", "new state", "metrics"), tuple(states), marked)
    )
    if found is not None and found.step in mine and found.step in theirs:
        sections += _operators(mine[found.step], theirs[found.step], relative)
    return sections


def _step_row(a: StepRecord, b: StepRecord, relative: float) -> tuple[str, ...]:
    parts = ((a.batch, b.batch), (a.state, b.state), (a.metrics, b.metrics))
    counts = (len(differing(*part, relative)) for part in parts)
    return (str(a.step), *(_count(count) for count in counts))


def _count(n: int) -> str:
    return f"{n} {'leaf differs' if n == 1 else 'leaves differ'}" if n else "equal"


def _operators(a: StepRecord, b: StepRecord, relative: float) -> list[Section]:
    if a.operators is None or b.operators is None:
        return []
    alignment = align(a.operators, b.operators)
    rows = [
        (
            _number(i),
            _number(j),
            *_cells(
                one := None if i is None else a.operators[i],
                two := None if j is None else b.operators[j],
            ),
            _status(one, two, relative),
        )
        for i, j in alignment.rows()[:_MOST]
    ]
    n_all = len(alignment.rows())
    n_differ = sum(row[-1].startswith("differs") for row in rows)
    note = (
        f"{len(alignment.pairs)} are aligned, {n_all - len(alignment.pairs)} have no counterpart; "
    )
    note += f"of the first {len(rows)} of {n_all}, {n_differ} differ"
    columns = ("A", "B", "operator", "arguments", "place", "result in A", "result in B", "")
    marked = frozenset(i for i, row in enumerate(rows) if row[-1] != "equal")
    return [Section(f"operators of step {a.step}", note, columns, tuple(rows), marked, True)]


def _status(a: OperatorRecord | None, b: OperatorRecord | None, relative: float) -> str:
    if a is None or b is None:
        return f"only in {'A' if b is None else 'B'}"
    pairs = list(zip(a.outputs, b.outputs, strict=True))
    if not any(is_far(one, two, relative) for one, two in pairs):
        return "equal"
    return f"differs by about {max(one.distance(two) for one, two in pairs):.2g}"


def _cells(a: OperatorRecord | None, b: OperatorRecord | None) -> tuple[str, ...]:
    known = a or b
    assert known is not None
    results = ("; ".join(map(str, each.outputs)) if each is not None else "" for each in (a, b))
    return (known.name, known.arguments, str(known.place), *results)


def _number(position: int | None) -> str:
    return "" if position is None else str(position)


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.note)}</p>"]
    if section.rows:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in section.columns)
        body = "\n".join(
            f"<tr{' class=differs' if i in section.marked else ''}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for i, row in enumerate(section.rows[:_MOST])
        )
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
        parts.append(f'<div class="scroll">{table}</div>')
    return "\n".join(parts)
