"""A tiny run of 12 steps in a directory of its own, for tests of run directories."""

from __future__ import annotations

import pathlib
from typing import Any

from ftrain.config import load
from ftrain.config.run import train
from tests.config.formats import write

HERE = pathlib.Path(__file__).parent


def configured(folder: pathlib.Path, extra: str = "", **options: Any) -> pathlib.Path:
    """Write the user's files of a tiny run, with `extra` code; return its configuration."""
    source = (HERE / "project.py").read_text().replace('@register("model", "test-net")\n', "")
    (folder / "project.py").write_text(source + extra)
    config = {
        "model": "project.py:Net",
        "data": {"name": "project.py:data", "held_out": 0.25},
        "epochs": 3,
        "batch_size": 4,
        "compile": False,
        "log_every": 2,
        "progress": False,
        **options,
    }
    (folder / "tiny.yaml").write_text(write(config, "yaml"))
    return folder / "tiny.yaml"


def trained(folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """Train a tiny run; return its directory."""
    found = folder / "runs" / "run"
    train(load(configured(folder, **options), [f"output_dir={found}"]))
    return found
