"""Test the lines that a training command prints at its end."""

from __future__ import annotations

import pathlib

import pytest

from ftrain.cli import main
from tests.config.tiny import configured

Captured = pytest.CaptureFixture[str]


def closing(folder: pathlib.Path, capsys: Captured, *overrides: str) -> list[str]:
    configuration = configured(folder, checkpoint={"keep_last": 1})
    assert main(["train", str(configuration), f"output_dir={folder}/run", *overrides]) == 0
    return capsys.readouterr().out.partition("completed at")[2].splitlines()


def test_train_command_prints_the_best_epoch_and_its_checkpoint_at_the_end(
    tmp_path: pathlib.Path, capsys: Captured
) -> None:
    lines = closing(tmp_path, capsys, "optimizer.learning_rate=3.0", "epochs=6")
    (best,) = [line for line in lines if "best" in line]
    words = best.split()
    step = int(words[words.index("step") + 1])
    assert step == 4 * int(words[words.index("epoch") + 1])
    assert f"checkpoint {tmp_path}/run/checkpoints/step-{step:012d}" in best
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:012d}").is_dir()


def test_train_command_prints_the_paths_of_checkpoints_as_the_output_directory_was_given(
    tmp_path: pathlib.Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = closing(tmp_path, capsys, "output_dir=here")
    paths = [line.partition("checkpoint ")[2] for line in lines if "checkpoint " in line]
    assert len(paths) == 2
    assert all(path.startswith("here/checkpoints/step-0000") for path in paths)


def test_train_command_names_the_best_epoch_by_the_monitored_metric(
    tmp_path: pathlib.Path, capsys: Captured
) -> None:
    lines = closing(
        tmp_path, capsys, "checkpoint.monitor=train/loss", "checkpoint.keep_best=0", "epochs=2"
    )
    (best,) = [line for line in lines if "best" in line]
    assert best.startswith("  best: epoch ")
    assert "  train/loss 0." in best


def test_train_command_names_no_best_epoch_without_held_out_data(
    tmp_path: pathlib.Path, capsys: Captured
) -> None:
    assert not [x for x in closing(tmp_path, capsys, "data.held_out=0") if "best" in x]
