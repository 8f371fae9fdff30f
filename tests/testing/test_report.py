"""Test the printed form of reports and violations."""

from __future__ import annotations

import dataclasses

import pytest

from ftrain.testing import LawViolation, Report, Reports, Row

PASSED = Report("pure", True, (Row("inputs", "3 leaves, 40 bytes", "same bytes"),), 0.25)
VIOLATED = Report("keyed", False, (), 1.5, "step draws\nfrom a generator")
SKIPPED = Report("vmap", False, (), 0.0, "no states", applies=False)


def test_reports_print_one_aligned_line_per_law() -> None:
    reports = Reports((PASSED, VIOLATED, SKIPPED), 1.75)
    assert str(reports).splitlines() == [
        "pure   passed       0.25 s  inputs same bytes (3 leaves, 40 bytes)",
        "keyed  violated     1.50 s  step draws",
        "vmap   not checked  0.00 s  no states",
        "all    violated     1.75 s",
    ]
    assert not reports.passed
    assert Reports((PASSED, SKIPPED), 1.0).passed
    assert reports["vmap"] is SKIPPED
    assert [*reports] == [PASSED, VIOLATED, SKIPPED]
    with pytest.raises(KeyError, match="expected one of"):
        reports["pur"]


def test_report_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PASSED.passed = False  # type: ignore[misc]
    assert str(VIOLATED) == "keyed: violated in 1.50 s\n  step draws\nfrom a generator"


def test_violation_message_omits_unknown_fields() -> None:
    found = LawViolation(
        "pure",
        "an input changed",
        operator="aten.add_.Tensor",
        line="  step.py:3 in step\n    w += 1",
        cause="an operator writes.",
        remedy="Write w = w + 1.",
    )
    assert str(found).splitlines() == [
        'law "pure": an input changed',
        "  operator: aten.add_.Tensor",
        "  line: step.py:3 in step",
        "    w += 1",
        "  cause: an operator writes.",
        "  remedy: Write w = w + 1.",
    ]
    assert isinstance(found, AssertionError)
    other = found.under("evaluation")
    assert (other.law, other.summary, other.operator) == (
        "evaluation",
        found.summary,
        found.operator,
    )
