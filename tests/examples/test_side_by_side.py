"""Test the programs of `docs/side_by_side.md`: they agree, and ftrain needs no more lines than JAX."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any

import numpy as np
import pytest

import ftrain

pytest.importorskip("optax", reason="optax is not installed")

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "side_by_side.md").read_text(encoding="utf-8")
PRELUDE, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


@functools.cache
def prelude() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "side_by_side"}
    exec(compile(blocks(PRELUDE)[0], "side_by_side.md", "exec"), names)
    return names


def result_of(block: str) -> np.ndarray[Any, Any]:
    names = dict(prelude())
    exec(compile(block, "side_by_side.md", "exec"), names)
    return np.asarray(names["result"].detach() if "ftrain\n" in block[:9] else names["result"])


def lines(block: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("#") for line in block.splitlines())


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0])
def test_side_by_side_programs_agree_and_ftrain_needs_no_more_lines_than_jax(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = functools.partial(ftrain.compile, backend="eager")  # without machine code: seconds
    monkeypatch.setattr(ftrain, "compile", eager)
    ours, theirs = blocks(section)
    assert ours.startswith("# ftrain\n")
    assert theirs.startswith("# JAX\n")
    assert lines(ours) <= lines(theirs)
    stated = re.findall(r"agree within (\S+) \(relative\)", section)
    assert len(stated) == 1
    found, expected = result_of(ours), result_of(theirs)
    assert found.shape == expected.shape
    assert np.linalg.norm(expected) > 0
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error <= float(stated[0])


def test_side_by_side_page_has_three_comparisons() -> None:
    assert len(SECTIONS) == 3
