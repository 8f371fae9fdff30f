"""Test what `make demo` prints around the training: what is installed, and the accuracy."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MAKE = shutil.which("make")


@pytest.mark.skipif(MAKE is None, reason="make is not installed")
def test_make_demo_prints_the_packages_to_install_and_ends_with_the_accuracy(
    tmp_path: pathlib.Path,
) -> None:
    options = ["--dry-run", "demo", f"VENV={tmp_path}/new", f"PYTHON={sys.executable}"]
    assert MAKE is not None
    planned = subprocess.run(
        [MAKE, *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    before, train, after = planned.partition("ftrain train examples/configs/digits.yaml")
    assert train
    say = next(line for line in before.splitlines() if line.startswith("echo"))
    assert before.index(say) < before.index("pip")
    assert "installing ftrain, torch" in subprocess.check_output(say, shell=True, text=True)
    history = [
        {"split": "eval", "metrics": {"accuracy": 0.5}, "samples": 360},
        {"split": "train", "metrics": {"accuracy": 0.2}, "samples": 1437},
        {"split": "eval", "metrics": {"accuracy": 0.9944}, "samples": 360},
    ]
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/result.json").write_text(json.dumps({"history": history}))
    command = after.partition("\n")[2].replace(f"{tmp_path}/new/bin/python", sys.executable)
    said = subprocess.check_output(command, shell=True, text=True, cwd=tmp_path)
    assert said == (
        "LeNet-5 recognises 99.4% of 360 handwritten digits that it has not seen in training.\n"
    )
