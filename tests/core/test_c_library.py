"""The cache key of compiled C sources, which machines with one home folder may share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from ftrain.core import _c_library

CORE = "processor\t: {}\nmodel name\t: {}\nflags\t\t: {}\n\n"


def fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str) -> str:
    source = tmp_path / "source.c"
    source.touch()

    def read(*_: Any, **__: Any) -> io.StringIO:
        return io.StringIO(cpuinfo)

    monkeypatch.setattr(_c_library, "open", read, raising=False)
    return _c_library._fingerprint([source], _c_library.compiler(), ("-march=native",))


def test_processors_that_differ_in_model_or_flags_share_no_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [
        CORE.format(0, "A", "sse avx"),
        CORE.format(0, "B", "sse avx"),
        CORE.format(0, "A", "sse avx avx512f"),
    ]
    assert len({fingerprint(monkeypatch, tmp_path, file) for file in files}) == len(files)


def test_number_of_cores_does_not_change_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = CORE.format(0, "A", "avx"), CORE.format(0, "A", "avx") + CORE.format(1, "A", "avx")
    assert fingerprint(monkeypatch, tmp_path, one) == fingerprint(monkeypatch, tmp_path, two)
