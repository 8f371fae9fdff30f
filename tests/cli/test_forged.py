"""Test commands on runs whose checkpoint claims to hold hundreds of gigabytes."""

from __future__ import annotations

import json
import pathlib
import resource
import shutil
import time

import pytest

from ftrain.cli import main
from tests.checkpoint.forge import claim, expand
from tests.cli.hostile import COMMANDS, trained

Captured = pytest.CaptureFixture[str]

HUGE = 1 << 37  # float32 elements: 512 GiB


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return trained(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("how", ["claims", "has a hole"])
@pytest.mark.parametrize("command", COMMANDS)
def test_command_refuses_huge_tensors_before_it_allocates_them(
    base: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    command: str,
    how: str,
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(base, folder)
    monkeypatch.chdir(folder)
    for path in (folder / "runs/run/checkpoints").glob("step-*"):
        leaves = json.loads((path / "manifest.json").read_bytes())["leaves"]
        sizes = [len(leaf["shape"]) * (leaf["dtype"] == "float32") for leaf in leaves]
        number = sizes.index(max(sizes))
        if how == "claims":
            claim(path, number, HUGE, 1 << 40)
        else:
            expand(path, number, HUGE)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    names = {"run": "runs/run", "parent": "runs", "other": "other"}
    code = main([part.format(**names) for part in COMMANDS[command]])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    assert time.process_time() - began < 60
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if command in ("runs", "plot", "page", "config", "dry-run"):
        assert code == 0, said
    else:
        assert code in (1, 2)
        damaged = "as written, got" if how == "claims" else "on the disk, got a sparse file"
        assert damaged in said or f"float32[{HUGE}] in the checkpoint" in said, said
