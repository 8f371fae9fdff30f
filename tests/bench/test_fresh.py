"""Test the environment of fresh processes."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from ftrain.bench import run_fresh

PROGRAM = "import json, sys; print(json.dumps([sys.dont_write_bytecode, sys.pycache_prefix]))"


@pytest.mark.parametrize("is_told", [True, False])
def test_fresh_process_finds_the_bytecode_of_an_earlier_one(
    is_told: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", is_told)
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    if is_told:
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    else:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    found = json.loads(run_fresh([sys.executable, "-c", PROGRAM], tmp_path).output)
    assert found == [False, str(tmp_path / "bytecode") if is_told else None]
