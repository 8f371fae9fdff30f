"""Test that the text log of a run has the warnings that Python showed during the run."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import pytest
import torch

from ftrain import checkpoint
from ftrain.loop.callbacks import FileLogger
from tests.loop.runs import fit, trainer


class Warns:
    """A callback that warns with one text at each end of an epoch."""

    def on_epoch_end(self, event: Any) -> None:
        warnings.warn("the rate is\x1b[2J 0", UserWarning, stacklevel=1)


def test_file_logger_writes_each_shown_warning_once(tmp_path: pathlib.Path) -> None:
    """Warnings were once printed on the terminal only, and were missing in the log."""
    path, before = tmp_path / "train.log", warnings.showwarning
    with pytest.warns(UserWarning, match="the rate is") as shown:
        fit(trainer(Warns(), FileLogger(path)), epochs=3)
    assert len(shown) == 3
    notes = [line.partition("  ")[2] for line in path.read_text().splitlines() if "note:" in line]
    assert len(notes) == 1
    assert notes[0].startswith(
        "note: the rate is\\x1b[2J 0 (tests/loop/callbacks/test_log_notes.py:"
    )
    assert warnings.showwarning is before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(trainer(Warns(), FileLogger(tmp_path / "ignored.log")), epochs=1)
    assert "note:" not in (tmp_path / "ignored.log").read_text()


def test_file_logger_writes_warnings_from_before_the_first_step(tmp_path: pathlib.Path) -> None:
    path, store = tmp_path / "train.log", tmp_path / "checkpoints"
    fit(trainer(store=store), epochs=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(checkpoint.DeterminismWarning):
            fit(trainer(FileLogger(path), store=store), epochs=2, resume=True)
    finally:
        torch.set_num_threads(threads)
    lines = path.read_text().splitlines()
    assert "  note: resuming from " in lines[0]
    assert lines[3].endswith("resumes after step 7: to epoch 2")


def test_a_run_that_is_refused_at_its_start_writes_no_log_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train.log"

    class Odd:
        def init(self) -> Any:
            warnings.warn("before the refusal", UserWarning, stacklevel=1)
            return object()

        def __call__(self, state: Any, event: Any) -> Any:
            return state, ()

    with (
        pytest.warns(UserWarning, match="before the refusal"),
        pytest.raises(TypeError, match="Odd"),
    ):
        fit(trainer(FileLogger(path), Odd(), store=tmp_path / "checkpoints"), epochs=1)
    assert not path.exists()


def test_warning_after_a_run_is_not_written_to_its_log(tmp_path: pathlib.Path) -> None:
    """Another hook that is installed during the run and kept still calls that of the run."""
    path = tmp_path / "train.log"
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")

        class Hooks:
            def on_train_begin(self, event: Any) -> None:
                show = warnings.showwarning
                warnings.showwarning = lambda *arguments: show(*arguments)

        fit(trainer(Hooks(), FileLogger(path)), epochs=1)
        warnings.warn("afterwards", UserWarning, stacklevel=1)
    assert len(shown) == 1
    assert "afterwards" not in path.read_text()
