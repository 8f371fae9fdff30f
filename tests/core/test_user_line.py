"""Test the lines of user code that messages show."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

import ftrain
from ftrain.core._user_line import is_foreign, show, show_line, user_line
from ftrain.core.errors import TraceError

LINE = "    total = first + missing(second)"
START, END = LINE.index("missing"), len(LINE)


def frame(folder: Path, line: str, **place: Any) -> traceback.FrameSummary:
    """Return a frame of the second line of a file."""
    file = folder / "users.py"
    file.write_text(f"def f():\n{line}\n")
    return traceback.FrameSummary(str(file), 2, "f", **place)


def marks(folder: Path, line: str, **place: Any) -> str:
    shown = show(frame(folder, line, **place)).splitlines()
    assert shown[0] == f"  {folder / 'users.py'}:2 in f"
    assert shown[1] == f"    {line.strip()}"
    return "\n".join(shown[2:])


def test_failed_expression_is_marked_by_carets_under_its_source_line(tmp_path: Path) -> None:
    found = marks(tmp_path, LINE, end_lineno=2, colno=START, end_colno=END)
    assert found == f"    {' ' * (START - 4)}{'^' * (END - START)}"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (LINE, {}),
        (LINE, {"end_lineno": 2, "colno": START}),
        (LINE, {"end_lineno": 2, "end_colno": END}),
        (LINE, {"end_lineno": 3, "colno": START, "end_colno": END}),  # goes on in the next line
        (LINE, {"end_lineno": 2, "colno": 4, "end_colno": END}),  # the whole line
        (LINE.replace("first", "é"), {"end_lineno": 2, "colno": START, "end_colno": END}),
    ],
    ids=["no columns", "no end", "no start", "two lines", "whole line", "bytes are no columns"],
)
def test_expression_is_not_marked_by_carets_where_they_would_be_wrong(
    tmp_path: Path, line: str, place: dict[str, Any]
) -> None:
    assert marks(tmp_path, line, **place) == ""


def test_user_line_is_the_innermost_one_outside_of_libraries(tmp_path: Path) -> None:
    outer, inner = frame(tmp_path, LINE), frame(tmp_path, "    inner()")
    library = traceback.FrameSummary(str(torch.__file__), 1, "g")
    assert user_line([outer, outer, inner, library]) == show(inner)
    assert user_line([library]) == "  (no frame in user code)"
    assert user_line([]) == "  (no frame in user code)"


def test_files_of_torch_optree_and_ftrain_and_generated_code_are_not_user_code(
    tmp_path: Path,
) -> None:
    import optree

    import ftrain

    assert all(is_foreign(str(module.__file__)) for module in (torch, optree, ftrain))
    assert is_foreign("<eval_with_key>.3")
    assert not is_foreign(str(tmp_path / "users.py"))
    assert not is_foreign(__file__)


def test_line_of_running_code_is_shown_with_its_source() -> None:
    code = test_line_of_running_code_is_shown_with_its_source.__code__
    line = code.co_firstlineno + 1
    assert show_line(code, line) == (
        f"  {__file__}:{line} in {code.co_name}\n"
        "    code = test_line_of_running_code_is_shown_with_its_source.__code__"
    )


def test_code_that_is_typed_or_piped_into_python_is_user_code_and_generated_code_is_not() -> None:
    assert not is_foreign("<stdin>")
    assert not is_foreign("<stdin-3>")
    assert not is_foreign("<python-input-0>")
    assert is_foreign("<eval_with_key>.7")
    assert is_foreign("<string>")


@pytest.mark.parametrize(("file", "place"), [("<stdin>", "<stdin>:2 in loss"), ("<string>", None)])
def test_trace_error_in_code_without_a_file_is_not_attributed_to_a_backward_pass(
    file: str, place: str | None
) -> None:
    names: dict[str, Any] = {}
    exec(compile("def loss(x):\n    return x if x > 0 else -x", file, "exec"), names)
    with pytest.raises(TraceError) as caught:
        ftrain.compile(names["loss"], backend="eager")(torch.tensor(1.0))
    assert "in a backward pass" not in str(caught.value)
    assert (place or "in code without a file") in str(caught.value)
