"""Test the names of an evaluation's metrics, which are determined before the first step."""

from __future__ import annotations

import logging

import pytest
import torch

from ftrain.loop import callbacks
from tests.loop.runs import STEPS, trainer


def test_error_of_a_trial_evaluation_on_fake_tensors_logs_no_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    wide = [{"x": torch.ones(4, 5), "y": torch.zeros(4, dtype=torch.long)}]
    run = trainer(callbacks.EarlyStopping(1), compile={"backend": "eager"})
    with pytest.raises(RuntimeError, match="reduction dim"):
        run.fit(STEPS.init_state(0), wide, wide, epochs=1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
