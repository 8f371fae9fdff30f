"""Test that a user can follow the remedies in error messages of the command line."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import torch

from ftrain.checkpoint.locks import Lock
from ftrain.cli import main
from ftrain.cli._training import train_command
from ftrain.config import load
from ftrain.config._directory import LOCK

Captured = pytest.CaptureFixture[str]

CONFIG = """\
model: {name: mlp, inputs: "${data.features}", outputs: "${data.classes}", hidden: [4]}
data: {name: csv, path: flowers.csv, target: kind, held_out: 4}
optimizer: {name: adamw, learning_rate: 0.01}
loss: cross_entropy
epochs: 1
batch_size: 4
compile: false
"""


@pytest.fixture
def flowers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> pathlib.Path:
    """Return the current directory, with a trained run of a table."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{n},{n % 3},{'ab'[n % 2]}\n" for n in range(16))
    (tmp_path / "flowers.csv").write_text(f"width,length,kind\n{rows}")
    (tmp_path / "new.csv").write_text("width,length\n1,2\n")
    (tmp_path / "flowers.yaml").write_text(CONFIG)
    assert main(["train", "flowers.yaml"]) == 0
    capsys.readouterr()
    return tmp_path


def error_of(capsys: Captured, *arguments: str) -> str:
    """Run a command that fails; return its standard error output."""
    assert main([*arguments]) != 0
    return capsys.readouterr().err


def test_error_for_an_argument_that_is_a_file_suggests_data_path(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    for name in ("new.csv", "absent.npz", str(flowers)):
        said = error_of(capsys, "predict", "runs/flowers", name)
        assert f"got '{name}'. Write data.path={name}" in said
    for name in ("flowers.yaml", "epochs"):
        assert "data.path" not in error_of(capsys, "train", "flowers.yaml", name)
    assert main(["predict", "runs/flowers", "data.path=new.csv"]) == 0


def test_train_and_resume_refuse_a_run_that_another_process_is_training(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    with Lock.file(flowers / "runs/flowers" / LOCK) as lock:
        assert lock.held
        for arguments in (("train", "flowers.yaml"), ("resume", "runs/flowers", "epochs=2")):
            said = error_of(capsys, *arguments)
            assert "another process is training in runs/flowers. Wait for that process" in said
            assert "--overwrite" not in said
            assert r"\n" not in said
        assert "output_dir" not in said
    assert "--overwrite" in error_of(capsys, "train", "flowers.yaml")


def test_errors_about_data_on_the_command_line_name_the_command_line(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    (flowers / "new.csv").write_text("width\n1\n")
    for command in ("predict", "eval"):
        said = error_of(capsys, command, "runs/flowers", "data.path=new.csv")
        assert said.startswith("the command line (data.path=new.csv): data: new.csv: ")
    said = error_of(capsys, "predict", "runs/flowers", "data.path=absent.csv")
    assert "the command line (data.path=absent.csv): data: " in said
    (flowers / "flowers.csv").write_text("width\n1\n")
    assert error_of(capsys, "train", "flowers.yaml", "--overwrite").startswith("flowers.yaml:2: ")


def test_eval_error_for_a_file_without_the_target_suggests_predict(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    said = error_of(capsys, "eval", "runs/flowers", "data.path=new.csv")
    assert "expected a column 'kind', got the columns 'width', 'length'" in said
    assert "`ftrain predict` reads files without a target" in said


def test_predict_error_without_data_suggests_data_path(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    assert "Write data.path=FILE" in error_of(capsys, "predict", "runs/flowers")


def test_suggested_training_command_does_not_overwrite_an_existing_run(
    flowers: pathlib.Path,
) -> None:
    """`ftrain sweep` and `ftrain lr-find` print this command."""
    config, rate = load("flowers.yaml"), "optimizer.learning_rate=0.1"
    found = train_command(config, "flowers.yaml", rate)
    assert found == f"ftrain train flowers.yaml {rate} output_dir=runs/flowers-2"
    assert main(found.split()[1:]) == 0
    assert train_command(config, "flowers.yaml").endswith(" output_dir=runs/flowers-3")
    unused = load("flowers.yaml", ["output_dir=runs/unused"])
    assert train_command(unused, "flowers.yaml", rate) == f"ftrain train flowers.yaml {rate}"


def test_error_for_missing_arguments_lists_no_optional_ones(capsys: Captured) -> None:
    for command in ("resume", "eval", "predict"):
        assert "the following arguments are required: run\n" in error_of(capsys, command)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.hidden=64", r"expected a list, got 64. Write \[64\]"),
        ("model.dropout=0,5", r"got '0,5'. Write 0\.5"),
        ("optimizer.learning_rate=0,01", r"got '0,01'. Write 0\.01"),
        ("data.held_out=0,2", r"0,2'?"),
        ("epochs=1,5", r"got '1,5'. Write 1\.5"),
        ("model.hidden=wide", r"expected a list, got 'wide'. Change the value.$"),
    ],
)
def test_error_for_a_decimal_comma_or_a_missing_list_suggests_the_correct_value(
    override: str, says: str, flowers: pathlib.Path, capsys: Captured
) -> None:
    said = error_of(capsys, "train", "flowers.yaml", override, "output_dir=runs/b")
    assert re.search(says, said, re.MULTILINE), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_error_for_a_missing_device_names_the_available_devices(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    for device in ("cuda", "cuda:1"):
        said = error_of(capsys, "train", "flowers.yaml", f"device={device}", "output_dir=runs/b")
        assert said.rstrip().endswith(". Write cpu or auto.")


def test_message_of_a_key_error_is_printed_without_quotes(
    flowers: pathlib.Path, capsys: Captured
) -> None:
    np.savez("data.npz", X=np.ones((8, 2), "float32"), labels=np.zeros(8, "int64"))
    options = ["data={name: arrays, path: data.npz}", "model.inputs=2", "model.outputs=2"]
    said = error_of(capsys, "train", "flowers.yaml", *options, "output_dir=runs/b")
    assert "KeyError: batch: expected the key" in said
