"""Test how messages of compiled functions describe values, call sites and causes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain.core.compile._errors import (
    call_site,
    causes,
    describe,
    describe_key,
    first_line,
    note_index,
)
from ftrain.core.errors import RecompileWarning


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(8, 3), "float32[8, 3]"),
        (torch.zeros(8, 3).T, "float32[3, 8] with strides [1, 3]"),
        (torch.zeros(0, 3, dtype=torch.int64), "int64[0, 3]"),
        (torch.zeros(2, 1, 5)[:, :, ::2], "float32[2, 1, 3] with strides [5, 5, 2]"),
        (torch.zeros(4, device="meta"), "float32[4] on meta"),
        ("a" * 58, repr("a" * 58)),
        ("a" * 59, repr("a" * 59)[:57] + "..."),
        (3, "3"),
    ],
)
def test_values_are_described_by_dtype_shape_and_layout_or_their_repr(
    value: Any, text: str
) -> None:
    assert describe(value) == text


@pytest.mark.parametrize("value", [0.1, -0.0, float("inf")])
def test_float_in_a_call_signature_is_described_by_its_value(value: float) -> None:
    assert describe_key((float, value.hex())) == repr(value)


def test_tensor_in_a_call_signature_is_described_by_dtype_and_shape_and_an_int_by_its_value() -> (
    None
):
    x = torch.zeros(2, 3)
    assert describe_key((x.shape, x.dtype, x.device, x.stride())) == "float32[2, 3]"
    assert describe_key((int, 3)) == "3"


def test_each_cause_context_and_inner_exception_of_an_error_is_returned_once() -> None:
    error, cause, context, inner = (ValueError(name) for name in "abcd")
    error.__cause__, error.__context__ = cause, context
    cause.inner_exception = inner  # type: ignore[attr-defined]  # as in torch's BackendCompilerFailed
    inner.__context__ = error  # a cycle
    context.__cause__ = cause
    found = list(causes(error))
    assert found[0] is error
    assert sorted(map(str, found)) == ["a", "b", "c", "d"]


def test_first_line_of_an_error_is_its_type_if_it_has_no_message() -> None:
    assert first_line(ValueError("\n  wrong\nreally")) == "wrong"
    assert first_line(ValueError("  ")) == "ValueError"


@pytest.mark.parametrize(
    ("text", "is_noted"),
    [
        ("index 7 is out of bounds for dimension 0 with size 3", True),
        ("index out of range in self", True),
        ("shapes cannot be multiplied", False),
    ],
)
def test_only_errors_about_an_index_out_of_range_get_a_note_to_call_without_compile(
    text: str, is_noted: bool
) -> None:
    error = IndexError(text)
    note_index(error, "step")
    notes = getattr(error, "__notes__", [])
    assert len(notes) == is_noted
    assert all("`step` itself, without ftrain.compile" in note for note in notes)


def test_call_site_has_file_line_function_and_source() -> None:
    code = test_call_site_has_file_line_function_and_source.__code__
    line = code.co_firstlineno + 1
    source = "code = test_call_site_has_file_line_function_and_source.__code__"
    assert call_site(code, line) == f"  {__file__}:{line} in {code.co_name}\n    {source}"
    assert call_site(code, 10**6) == f"  {__file__}:{10**6} in {code.co_name}"


@pytest.mark.parametrize(
    ("first", "second", "remedy"),
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "the same containers with the same keys"),
        (torch.ones(2), torch.ones(3), "One program serves one shape"),
        ("one", "two", "A text is a constant.*Leave batch out"),
        ({"t": ["one"]}, {"t": ["two"]}, r"A text is a constant.*Leave batch\['t'\] out"),
        ({"t": ["one", "x"]}, {"t": ["two", "y"]}, r"A text is a constant.*Leave batch\['t'\] out"),
        (1, 2, r"A Python number is a constant.*torch\.tensor"),
        (torch.float32, torch.float64, "Keep arguments that are not tensors the same"),
    ],
)
def test_warning_about_another_program_proposes_a_remedy_for_what_changed(
    first: Any, second: Any, remedy: str
) -> None:
    compiled = ftrain.compile(lambda batch: torch.ones(2), backend="eager")
    compiled(first)
    with pytest.warns(RecompileWarning, match=f"(?s)compiled again.*{remedy}"):
        compiled(second)
