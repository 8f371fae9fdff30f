"""Test that whole runs survive killed ranks; the long form kills 200, half of them under torchrun."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from ftrain.checkpoint import Store
from tests.campaign import CAMPAIGN
from tests.distributed.campaign_runs import Result, Run, _check, campaign


def test_run_with_killed_ranks_loses_no_checkpoint_and_ends_with_the_bytes_of_one_process() -> None:
    kills = 200 if CAMPAIGN else 2
    result = campaign(kills, seed=0)
    assert result.wrong() == {}
    assert result.kills == kills
    assert result.steps > 0


@pytest.mark.parametrize(
    ("saved", "damaged", "count"),
    [(2, False, {}), (3, False, {"lost": 1}), (2, True, {"unreadable": 1})],
)
def test_check_of_a_killed_run_counts_lost_and_unreadable_checkpoints(
    saved: int, damaged: bool, count: dict[str, int], tmp_path: Path
) -> None:
    run, result = Run(tmp_path / "one", "fully_sharded"), Result()
    with Store(run.folder / "checkpoints") as store:
        for step in (1, 2):
            path = store.save({"w": torch.ones(3)}, step=step)
    if damaged:
        file = next(path.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    run.told.write_text(f"step 4 17\nsaved {saved} 17\nsaved 9")
    with (
        pytest.warns(UserWarning, match="failed verification")
        if damaged
        else contextlib.nullcontext()
    ):
        _check(run, result)
    assert result.wrong() == count
