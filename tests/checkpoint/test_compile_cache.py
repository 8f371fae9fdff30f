"""Test that a new process reuses the compile cache of a run, also after the cache was moved."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftrain import checkpoint

CODE = """
import sys, torch, ftrain
from torch._dynamo.utils import counters
ftrain.checkpoint.compile_cache(sys.argv[1])
x = torch.ones(100)
assert float(ftrain.compile(lambda x: (x * 2).sum())(x)) == 200
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
""".replace("ftrain.checkpoint", "__import__('ftrain.checkpoint').checkpoint")


def compiled(cache: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE, str(cache)],
        capture_output=True, text=True, timeout=600, check=True,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    ).stdout  # fmt: skip


@pytest.mark.inductor
def test_a_moved_compile_cache_is_reused(tmp_path):
    assert compiled(tmp_path / "a" / "cache") == "0 1\n"
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert compiled(tmp_path / "b" / "cache") == "1 0\n"


def test_compile_cache_creates_its_directory_and_sets_its_environment_variables(
    tmp_path, monkeypatch
):
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "FTRAIN_CACHE_DIR"):
        monkeypatch.setenv(variable, "before")
    cache = checkpoint.compile_cache(tmp_path / "run" / "compiled")
    assert cache.is_dir()
    assert os.environ["FTRAIN_CACHE_DIR"] == str(cache / "ftrain")
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointWriteError):
        checkpoint.compile_cache(tmp_path / "file" / "cache")
