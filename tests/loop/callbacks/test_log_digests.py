"""Test digests of states and batches in the log of a run."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

import ftrain
from ftrain import loop, optim
from ftrain.loop import callbacks


def fit(folder: pathlib.Path, resume: bool = False, max_steps: int = 8) -> list[dict[str, Any]]:
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).square().mean(), optim.adamw(1e-2)
    )
    log = callbacks.JSONLLogger(folder / "metrics.jsonl", log_digests=3)
    trainer = loop.Trainer(steps, [log], compile=False, log_every=4, store=folder / "checkpoints")
    data = [torch.full((4, 3), float(i)) for i in range(4)]
    trainer.fit(steps.init_state(0), data, max_steps=max_steps, resume="auto" if resume else None)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_digest_rows_contain_the_digests_of_state_and_batch_at_every_nth_step(
    tmp_path: pathlib.Path,
) -> None:
    rows = [row for row in fit(tmp_path) if row["split"] == "digest"]
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert "torch" in rows[0]["environment"]
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).square().mean(), optim.adamw(1e-2)
    )
    state = steps.init_state(0)
    assert rows[0]["state"] == ftrain.tree.digests(state)
    for i in range(3):
        state, _ = steps.train_step(state, torch.full((4, 3), float(i)))
    assert rows[1]["state"] == ftrain.tree.digests(state)
    assert rows[1]["batch"] == ftrain.tree.digests(torch.full((4, 3), 2.0))
    assert len(rows[1]["rows"][""]) == 4


def test_resumed_run_neither_repeats_nor_loses_a_digest_row(tmp_path: pathlib.Path) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", max_steps=5)
    parts = fit(tmp_path / "parts", resume=True)
    clocks = ("time", "duration", "samples_per_second")
    for row in (*whole, *parts):
        for name in clocks:
            row.pop(name, None)
    assert parts == whole


def test_digests_do_not_change_a_run(tmp_path: pathlib.Path) -> None:
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1), lambda m, b: m(b).square().mean(), optim.adamw(1e-2)
    )
    found = []
    for every in (None, 1):
        log = callbacks.JSONLLogger(tmp_path / "metrics.jsonl", log_digests=every)
        trainer = loop.Trainer(steps, [log], compile={"backend": "eager"})
        result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)] * 5, epochs=1)
        found.append(ftrain.tree.digest(result.state))
    assert found[0] == found[1]


@pytest.mark.parametrize("every", [0, -1, True, 2.5])
def test_log_digests_that_is_not_a_positive_integer_is_refused(
    tmp_path: pathlib.Path, every: Any
) -> None:
    with pytest.raises(ValueError, match="log_digests: expected an integer of at least 1"):
        callbacks.JSONLLogger(tmp_path / "log", log_digests=every)
