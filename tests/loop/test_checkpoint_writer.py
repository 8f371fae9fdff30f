"""Test that replacing the checkpoint of a resumed step never leaves a run without one."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftrain import data
from ftrain.checkpoint import Store, _files
from ftrain.loop._checkpoint_writer import CheckpointWriter
from tests.checkpoint.faults import Failing
from tests.loop.runs import STEPS, rows, train_data, trainer


def loop(version: int) -> Any:
    state = {"w": torch.tensor(version)}
    return SimpleNamespace(
        progress=SimpleNamespace(step=1),
        pending=("work",),
        boundary_unfinished=False,
        train=state,
        metadata=lambda: version,
    )


def test_a_resumed_run_keeps_its_starting_checkpoint_until_it_has_saved_another(
    tmp_path: Path,
) -> None:
    """The checkpoint was once deleted before its replacement was written: a full disk left none."""
    for k in range(200):
        directory = tmp_path / str(k)
        with Store(directory) as store:
            assert CheckpointWriter(store, loop(1), resumed=False).save(loop(1), {})
            failing = Failing(k, errno.ENOSPC)
            with _files.replaced(failing):
                saved = CheckpointWriter(store, loop(1), resumed=True).save(loop(2), {})
            found, version = Store(directory).load(like=loop(0).train)
            assert version in ((2,) if saved else (1, 2)), failing.operations[k]
            assert int(found["w"]) == version
        if failing.failed is None:
            break
    assert k > 20
    assert version == 2


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (data.Loader(rows(40), 8), "the data of the checkpoint, 60 samples, got 40 samples"),
        (data.Stream([rows(8)] * 4), "the data of the checkpoint, 60 samples, got a stream of 4"),
        ([rows(8)] * 4, "the data of the checkpoint, 60 samples, got a list of 4 batches"),
    ],
)
def test_resume_with_training_data_of_another_kind_or_length_raises(
    tmp_path: Path, other: Any, says: str
) -> None:
    with Store(tmp_path) as store:
        trainer(store=store).fit(STEPS.init_state(0), train_data(), max_steps=2)
    with Store(tmp_path) as store, pytest.raises(ValueError, match=says):
        trainer(store=store).fit(STEPS.init_state(0), other, epochs=1, resume="auto")
