"""Every Python snippet of the README runs, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.inductor
def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 2
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), namespace)


def test_commands_exist() -> None:
    """Every `make` target and every script that the README names is there."""
    text = README.read_text()
    targets = re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`?make (\w+)", text):
        assert target in targets, target
    for path in re.findall(r"(?:examples|benchmarks|tests)/[\w/]+\.py", text):
        assert (README.parent / path).exists(), path
    for module in re.findall(r"python -m (benchmarks[\w.]*)", text):
        path = README.parent / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
