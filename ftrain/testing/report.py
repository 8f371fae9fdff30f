"""Results of checks: reports of the comparisons, and the error for a violated law.

Read next: `laws/__init__.py`, the checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ftrain.testing.difference import Difference

__all__ = ["LawViolation", "Report", "Reports", "Row", "aligned"]


class Row(NamedTuple):
    """One comparison of a check.

    Attributes:
        what: the values that were compared.
        amount: their number: leaves and bytes, calls, operators.
        result: the outcome, such as "same bytes".
    """

    what: str
    amount: str
    result: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of one check, with one row per comparison; prints as a table.

    Attributes:
        law: the law's name, such as "pure".
        passed: True if the law holds.
        rows: what was compared.
        seconds: the time that the check took.
        reason: what was violated, or why the law does not apply; `None` if it holds.
        applies: False if the law does not apply to the subject, which `check_all` reports.

    >>> print(Report("pure", True, (Row("inputs", "3 leaves, 40 bytes", "unchanged"),), 0.25))
    pure: passed in 0.25 s
      inputs  3 leaves, 40 bytes  unchanged
    """

    law: str
    passed: bool
    rows: tuple[Row, ...]
    seconds: float
    reason: str | None = None
    applies: bool = True

    @property
    def outcome(self) -> str:
        """Return "passed", "violated", or "not checked" for a law that does not apply."""
        if not self.applies:
            return "not checked"
        return "passed" if self.passed else "violated"

    def __str__(self) -> str:
        """Return the results as a table."""
        lines = [f"{self.law}: {self.outcome} in {self.seconds:.2f} s"]
        if self.reason is not None:
            lines.append(self.reason)
        return "\n  ".join([*lines, *aligned(self.rows)])


@dataclasses.dataclass(frozen=True)
class Reports:
    """Results of several checks; prints as a table with a line for each law.

    Attributes:
        reports: the reports, in the order of the checks.
        seconds: the time that all checks took.
    """

    reports: tuple[Report, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return True if each law that applies to the subject holds."""
        return all(report.passed or not report.applies for report in self.reports)

    def __iter__(self) -> Iterator[Report]:
        return iter(self.reports)

    def __getitem__(self, law: str) -> Report:
        """Return the report of a law, by its name."""
        for report in self.reports:
            if report.law == law:
                return report
        laws = [report.law for report in self.reports]
        raise KeyError(f"law: expected one of {laws}, got {law!r}. Write one of these names.")

    def __str__(self) -> str:
        """Return the results as a table."""
        rows = [
            (
                r.law,
                r.outcome,
                f"{r.seconds:.2f} s",
                _brief(r.reason) if r.reason else _compared(r.rows),
            )
            for r in self.reports
        ]
        total = ("all", "passed" if self.passed else "violated", f"{self.seconds:.2f} s", "")
        return "\n".join(aligned([*rows, total]))


class LawViolation(AssertionError):
    """Error for a step or function that violates a law; the message says where and why.

    Attributes:
        law: the law's name, such as "pure".
        summary: what was violated, in one line.
        difference: the first leaf that differs; `None` if no values were compared.
        operator: the operator that produced it, such as "aten.add_.Tensor"; `None` if unknown.
        line: file, line and source of the user's code that ran it; `None` if unknown.
        cause: the likely cause.
        remedy: an imperative sentence.
        reports: the results of `check_all`; `None` if one check was called.

    >>> print(LawViolation("pure", "an input changed", remedy="Write w = w + 1."))
    law "pure": an input changed
      remedy: Write w = w + 1.
    """

    def __init__(
        self,
        law: str,
        summary: str,
        *,
        difference: Difference | None = None,
        operator: str | None = None,
        line: str | None = None,
        cause: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.law = law
        self.summary = summary
        self.difference = difference
        self.operator = operator
        self.line = line
        self.cause = cause
        self.remedy = remedy
        self.reports: Reports | None = None
        super().__init__(self._message())

    def under(self, law: str) -> LawViolation:
        """Return this violation under the name of a law that includes the violated law."""
        return LawViolation(
            law,
            self.summary,
            difference=self.difference,
            operator=self.operator,
            line=self.line,
            cause=self.cause,
            remedy=self.remedy,
        )

    def _message(self) -> str:
        parts = [f'law "{self.law}": {self.summary}']
        labelled = {
            "operator": self.operator,
            "line": self.line,
            "cause": self.cause,
            "remedy": self.remedy,
        }
        parts += [f"{label}: {text.strip()}" for label, text in labelled.items() if text]
        return "\n  ".join(parts)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table with columns of equal width."""
    table = [tuple(row) for row in rows]
    if not table:
        return []
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _brief(text: str) -> str:
    """Return the first line of a text, cut at 120 characters."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 120 else f"{line[:117]}..."


def _compared(rows: Iterable[Row]) -> str:
    return _brief("; ".join(f"{row.what} {row.result} ({row.amount})" for row in rows))
