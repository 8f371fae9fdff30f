"""Test that text from elsewhere cannot control the terminal, and outputs that cannot be written."""

from __future__ import annotations

import ast
import io
import os
import pathlib
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain.core._terminal import OutputClosedError, printable, reserve_streams, say


@given(st.text())
def test_printable_text_has_no_control_characters_and_keeps_the_others(text: str) -> None:
    shown = printable(text)
    for character in shown:
        kind = unicodedata.category(character)
        assert character in "\n\t" or kind not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in [
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        ]
    shown.encode("utf-8")
    assert shown == "".join(map(printable, text))
    assert printable(shown) == shown
    assert "\n" not in printable(text, one_line=True)


def test_printable_text_of_other_languages_is_unchanged() -> None:
    text = "naïve 模型 مثال שלום 👩‍👩‍👧 →\u00a0e\u0301\n\tx"
    assert printable(text) == text


def test_escapes_of_control_characters_are_those_of_python_and_yaml() -> None:
    assert printable("\x1b]0;x\x07\r\x9b2J\udcff\u202e") == r"\x1b]0;x\x07\r\x9b2J\udcff\u202e"
    assert printable("a\nb\tc", one_line=True) == r"a\nb\tc"


def test_say_escapes_raw_lines_only_if_it_writes_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for is_terminal, expected in ((False, "\x1b\n"), (True, "\\x1b\n")):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stdout", out)
        say("\x1b", raw=True)
        assert out.getvalue() == expected
        say("\x1b")
        assert out.getvalue() == expected + "\\x1b\n"


def test_say_escapes_characters_that_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("naïve →")
    assert raw.getvalue() == b"na\\xefve \\u2192\n"


def test_say_without_a_standard_output_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("text")
    say("text", error=True)


def test_say_raises_for_a_full_output_and_ignores_a_full_error_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        say("text", error=True)
        with pytest.raises(OutputClosedError, match="No space left on device"):
            say("text")
        say("more")  # is discarded


def test_commands_and_configurations_print_only_by_the_function_that_escapes_control_characters() -> (
    None
):
    """`print` and direct writes would pass control characters to the terminal."""
    root = pathlib.Path(ftrain.__file__).parent
    found = []
    for path in [*(root / "cli").rglob("*.py"), *(root / "config").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                found.append(f"{path}:{node.lineno}")
    assert not found


def test_null_device_takes_the_place_of_missing_streams_in_child_processes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present = os.fstat(0)

    def fstat(number: int) -> os.stat_result:
        if number == 1:
            raise OSError
        return present

    seen: list[tuple[int, bool]] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        patch.setattr(os, "set_inheritable", lambda *arguments: seen.append(arguments))
        reserve_streams()
    ((number, is_inheritable),) = seen
    try:
        assert os.path.samestat(os.fstat(number), os.stat(os.devnull))
    finally:
        os.close(number)
    assert is_inheritable
