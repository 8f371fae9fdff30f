"""Test reading a run while another process trains it."""

from __future__ import annotations

import errno
import pathlib
from typing import Any

import pytest
import torch

from ftrain import checkpoint
from ftrain.checkpoint import CheckpointCorruptError, CheckpointNotFoundError, Store, _files
from ftrain.cli.evaluate import evaluate
from ftrain.config import ConfigError, _checkpoints, load_run
from ftrain.config.folders import run_config
from tests.checkpoint.test_file_systems import Without
from tests.config.tiny import trained

LOAD = checkpoint.load


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return trained(tmp_path, checkpoint={"keep_last": 1, "keep_best": 0})


class Writer:
    """Replacement of `checkpoint.load` that saves a newer checkpoint first, `count` times."""

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        self.folder, self.count, self.calls = folder, count, 0

    def __call__(self, path: Any, like: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls <= self.count:
            with Store(self.folder / "checkpoints", keep_last=1) as store:
                state, metadata = LOAD(store.latest() or path, like=like)
                params = {name: torch.full_like(x, self.calls) for name, x in state.params.items()}
                step = store.steps()[-1] + 1
                store.save(state.replace(params=params), step=step, metadata=metadata)
        return LOAD(path, like=like, **options)


@pytest.mark.parametrize("which", ["best", "latest"])
def test_load_run_reads_the_newest_checkpoint_if_the_chosen_one_was_deleted(
    folder: pathlib.Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before loads were repeated, 227 of 559 failed beside a writer that keeps one checkpoint."""
    writer = Writer(folder, 3)
    monkeypatch.setattr(_checkpoints.checkpoints, "load", writer)
    run = load_run(folder, which)
    assert writer.calls == 4
    assert run.checkpoint.name == "step-000000000015"
    assert all(bool((x == 3).all()) for x in run.state.params.values())


def test_eval_reads_the_newest_checkpoint_if_the_chosen_one_was_deleted(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checkpoints.checkpoints, "load", Writer(folder, 2))
    path, (result,) = evaluate(run_config(folder), folder)
    assert path.name == "step-000000000014"
    assert result.loss > 0


def test_load_run_raises_for_a_named_checkpoint_that_was_deleted(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checkpoints.checkpoints, "load", Writer(folder, 1))
    with pytest.raises(CheckpointNotFoundError):
        load_run(folder, "step-000000000012")


def test_load_run_raises_for_a_damaged_checkpoint(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged checkpoint, unlike a deleted one, is not replaced by a newer one."""

    def damaged(path: Any, like: Any) -> Any:
        (file,) = pathlib.Path(path).glob("*.safetensors")
        file.write_bytes(bytes(file.stat().st_size))
        return LOAD(path, like=like)

    monkeypatch.setattr(_checkpoints.checkpoints, "load", damaged)
    with pytest.raises(CheckpointCorruptError):
        load_run(folder)


def test_error_on_a_file_system_without_locks_suggests_checkpoint_lock_false(
    tmp_path: pathlib.Path,
) -> None:
    with _files.replaced(Without("lock", errno.ENOLCK)):
        with pytest.raises(ConfigError, match="write checkpoint.lock=false") as error:
            trained(tmp_path)
        assert error.value.key == "output_dir"
        folder = trained(tmp_path, checkpoint={"lock": False})
    assert load_run(folder).state.step == 12
