"""Test `ftrain sweep`: its arguments, its members, and the files that it writes."""

from __future__ import annotations

import csv
import json
import math
import pathlib
from typing import Any

import pytest

from ftrain.cli import main
from ftrain.cli._sweep_axes import sweep_axes
from ftrain.config.errors import ConfigError

CONFIG = {
    "model": {"name": "mlp", "inputs": 64, "outputs": 10, "hidden": [8]},
    "data": "digits",
    "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    "schedule": {"name": "warmup_cosine", "warmup_steps": 2},
    "batch_size": 128,
    "max_steps": 10,
    "compile": False,
    "progress": False,
    "threads": 1,
}


@pytest.fixture
def config(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.json").write_text(json.dumps(CONFIG))
    return "digits.json"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4..1e-1:4", [1e-4, 1e-3, 1e-2, 0.1]),
        ("0.1..0.5:3", [0.1, 0.3, 0.5]),
        ("0.01..1:3:linear", [0.01, 0.505, 1.0]),
        ("1..4:3:log", [1.0, 2.0, 4.0]),
        ("0.1,0.3", [0.1, 0.3]),
        ("0.1, 0.3", [0.1, 0.3]),
        ("0..2", [0, 1, 2]),
    ],
)
def test_values_of_a_sweep_are_ranges_or_lists(text: str, values: list[float]) -> None:
    others = ["epochs=3", "model.widths=[1,2]", "optimizer.betas=[0.9, 1, 0.99]", "output_dir=a,1"]
    axes, rest = sweep_axes([*others, f"optimizer.weight_decay={text}"])
    assert axes["optimizer.weight_decay"] == pytest.approx(values, rel=1e-11)
    assert rest == others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epochs=3"], "expected at least one key with several values"),
        (["batch_size=8..16"], "expected to sweep over seed or a number of the optimizer"),
        (["optimizer.learning_rate=0.1..1"], "expected a number of values"),
        (["optimizer.learning_rate=1..0.1:3"], "the smaller number first"),
        (["optimizer.learning_rate=0.1..x:3"], "expected first..last:count"),
        (["optimizer.learning_rate=0.1..1:1"], "at least 2 values"),
        (["optimizer.learning_rate=-1..1:3:log"], "positive numbers for log"),
        (["seed=0..8:3"], "expected whole numbers"),
        (["seed=0..1", "seed=2..3"], "expected one argument for seed"),
        (["optimizer.learning_rate=nan,inf"], "expected finite numbers, got 'nan'"),
        (["optimizer.learning_rate=0.1,-.inf"], "expected finite numbers, got '-.inf'"),
        (["optimizer.learning_rate=0.1,1e400"], "expected finite numbers, got '1e400'"),
        (["optimizer.learning_rate=0.1,"], "expected finite numbers, got ''"),
        (["seed=0,x"], "expected finite numbers, got 'x'. Write `seed=0,1`"),
        (["optimizer.learning_rate=0.1,1e-1"], "expected different values, got 0.1 twice"),
        (["optimizer.learning_rate=1..1.0000000000001:9"], "different values, got 1 twice"),
        (["seed=0,1,01"], "expected different values, got 1 twice"),
        (["seed=0..99999999999"], "expected at most 1000000 members, got 100000000000"),
        (["optimizer.learning_rate=1..9:99999999999"], "at most 1000000 members"),
        (["seed=0..9999", "optimizer.learning_rate=1..9:999"], "1000000 members, got 9990000"),
    ],
)
def test_invalid_values_of_a_sweep_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_axes(arguments)


def rows(path: str) -> list[dict[str, Any]]:
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_sweep_writes_a_picture_and_a_table_and_names_the_best_member(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["optimizer.learning_rate=1e-3..1e-1:3", "seed=0..1", "optimizer.weight_decay=0,1"]
    assert main(["sweep", config, *arguments, "--metric", "accuracy", "--mode", "max"]) == 0
    said = capsys.readouterr().out.splitlines()
    table = rows("runs/digits/sweep.csv")
    assert len(table) == 12
    best = max(table, key=lambda row: row["accuracy"])
    assert said[0].startswith(f"best of 12: accuracy {best['accuracy']:.4g} at ")
    assert pathlib.Path("runs/digits/sweep.png").read_bytes().startswith(b"\x89PNG")
    command = said[-1].removeprefix("train it: ftrain ").split()
    assert command[:2] == ["train", config]
    assert main([*command, "max_steps=4"]) == 0  # a directory with picture and table holds no run


def test_each_sweep_member_has_the_loss_of_the_same_run_by_the_train_command(config: str) -> None:
    """Batches are in the order of the configuration's seed, as in a single run with that seed."""
    assert main(["sweep", config, "optimizer.learning_rate=0.003,0.03", "seed=5"]) == 0
    for row in rows("runs/digits/sweep.csv"):
        rate = row["optimizer.learning_rate"]
        assert (
            main(["train", config, f"optimizer.learning_rate={rate}", "seed=5", "--overwrite"]) == 0
        )
        result = json.loads(pathlib.Path("runs/digits/result.json").read_text())
        loss = _found(result, "loss")
        # Batched matrix products may sum in another order; measured: 2e-7.
        assert math.isclose(row["loss"], loss, rel_tol=1e-4)


def _found(result: dict[str, Any], metric: str) -> float:
    evaluation = [line for line in _lines("runs/digits/metrics.jsonl") if line["split"] == "eval"]
    assert result["status"] == "completed"
    value: float = evaluation[-1][metric]
    return value


def _lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_sweep_errors_name_unknown_arguments_and_metrics(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", config, "optimizer.momentun=0.1,0.9"]) == 2
    assert "momentun" in capsys.readouterr().err
    assert main(["sweep", config, "optimizer.weight_decay=-1,0"]) == 2
    assert "weight_decay" in capsys.readouterr().err
    assert main(["sweep", config, "seed=0..1", "max_steps=4", "--metric", "acc"]) == 2
    assert "accuracy" in capsys.readouterr().err
