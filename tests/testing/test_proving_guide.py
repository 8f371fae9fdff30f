"""Test that the code of docs/proving.md runs, and prints the shown output, except for numbers."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "proving.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def masked(text: str) -> str:
    """Return a text without what differs between processors and versions of Python.

    These are numbers, digests, widths of columns, and how comprehensions are shown in tracebacks.
    """
    text = re.sub(r"proving-\d+\.py", "proving.md", text).replace("ulps", "ulp")
    text = re.sub(r" in (<\w+>|\w+)(?=:? *\n|:)", " in _", text)
    text = re.sub(r"^ *\^+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\b[0-9a-f]{16}\b|[\d.,]*\d(e-\d+)?", "_", text)
    return re.sub(r"\s+", " ", text).strip()


def test_code_of_the_proving_guide_prints_the_outputs_shown_in_the_guide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    namespace: dict[str, object] = {"__name__": "proving"}
    shown = 0
    for number, (language, text) in enumerate(BLOCK.findall(PAGE.read_text())):
        if language == "python":
            name = f"proving-{number}.py"
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), namespace)
        else:
            assert masked(capsys.readouterr().out) == masked(text)
            shown += 1
    assert shown == 9
