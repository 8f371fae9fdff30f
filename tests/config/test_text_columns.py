"""Test that batches of a compiled run leave out columns of texts, and say so."""

from __future__ import annotations

import pathlib
import random
import warnings
from typing import Any

import pytest
import torch

from ftrain.config import load
from ftrain.config.build import build
from ftrain.loop import LoopWarning

MINE = """
import random, torch

class Rows:
    def __len__(self): return 24
    def __getitem__(self, n):
        random.random()
        return {"text": f"row {n}", "x": torch.ones(3), "y": n % 2}

def rows(): return Rows()
def dicts(): return [Rows()[n] for n in range(24)]
def numbers(): return [{"x": torch.ones(3), "y": n % 2} for n in range(24)]
def broken():
    class Broken(Rows):
        def __getitem__(self, n): raise RuntimeError("no such file")
    return Broken()
"""


def built(folder: pathlib.Path, name: str, **options: Any) -> Any:
    (folder / "mine.py").write_text(MINE)
    config = {
        "model": {"name": "mlp", "inputs": 3, "outputs": 2},
        "data": {"name": f"{folder}/mine.py:{name}", "held_out": 0.25},
        "epochs": 1,
        "batch_size": 6,
    }
    return build(load({**config, **options}))


@pytest.mark.parametrize("name", ["rows", "dicts"])
def test_compiled_run_leaves_out_columns_of_texts_and_names_them(
    tmp_path: pathlib.Path, name: str
) -> None:
    before = random.getstate()
    with pytest.warns(LoopWarning, match="batches leave out 'text'. Turn .* compile=false"):
        parts = built(tmp_path, name)
    assert name == "dicts" or random.getstate() == before
    for batches in (parts.train, parts.held_out):
        batch = next(iter(batches))
        assert set(batch) == {"x", "y"}
        assert torch.equal(batch["x"], torch.ones(6, 3))


def test_columns_of_texts_are_kept_in_eager_runs_and_in_samples_that_are_not_mappings(
    tmp_path: pathlib.Path,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LoopWarning)
        batch = next(iter(built(tmp_path, "dicts", compile=False).train))
        assert set(batch) == {"text", "x", "y"}
        assert set(next(iter(built(tmp_path, "numbers").train))) == {"x", "y"}
        with pytest.raises(RuntimeError, match="no such file"):
            next(iter(built(tmp_path, "broken").train))
