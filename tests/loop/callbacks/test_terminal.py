"""Test that callbacks escape control characters in metric names, and handle full or missing outputs."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import sys

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.loop import Trainer, callbacks
from ftrain.loop.callback import CallbackWarning

NAME = "\x1b]0;title\x07\u202eloss"
ESCAPED = r"\x1b]0;title\x07\u202eloss"


def loss_fn(model: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, dict]:
    loss = model(batch).square().mean()
    return loss, {NAME: loss}


class Full(io.StringIO):
    """Output stream to a file on a full disk."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fit(chosen: list, epochs: int = 1) -> None:
    steps = ftrain.make_steps(torch.nn.Linear(3, 1), loss_fn, optim.sgd(0.1))
    trainer = Trainer(steps, chosen, compile=False, log_every=1, progress=False)
    batches = [torch.ones(4, 3)]
    trainer.fit(steps.init_state(0), batches, batches, epochs=epochs)


def test_console_progress_and_text_log_escape_names_of_metrics(tmp_path: pathlib.Path) -> None:
    console, progress = io.StringIO(), io.StringIO()
    fit(
        [
            callbacks.ConsoleLogger(None, every=0, stream=console),
            callbacks.ProgressBar(every=0, stream=progress),
            callbacks.FileLogger(tmp_path / "train.log"),
        ]
    )
    for said in (console.getvalue(), (tmp_path / "train.log").read_text()):
        assert f"{ESCAPED} " in said
        assert NAME not in said
    assert "\x1b" not in progress.getvalue()


def test_run_completes_with_one_warning_if_the_console_cannot_write() -> None:
    with pytest.warns(CallbackWarning) as found:
        fit([callbacks.ConsoleLogger(None, every=0, stream=Full())], epochs=4)
    assert len(found) == 1
    assert "No space left on device" in str(found[0].message)


def test_callbacks_run_if_sys_stdout_and_sys_stderr_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    fit([callbacks.ConsoleLogger(None, every=0), callbacks.ProgressBar(every=0)])
