"""Test that whole runs survive killed ranks; the long form kills 200, half of them under torchrun."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import torch

from ftrain.checkpoint import Store
from tests.campaign import CAMPAIGN
from tests.distributed.campaign_runs import END, Result, Run, _check, _kill_one, campaign


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


OLD, NEW = 2**30, 2**30 + 1  # numbers of processes that cannot exist


class Agent:
    """torchrun with one rank and a clock: the killed rank ends, and the next one takes a step later."""

    pid = 2**30 + 2

    def __init__(self, ends: float, steps: float) -> None:
        self.now, self.ends, self.steps, self.code = 0.0, ends, steps, None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def children(self, pid: int) -> list[int]:
        return [OLD if self.now < self.ends else NEW]

    def lines(self) -> list[tuple[str, int, int]]:
        return [("step", 1, OLD)] + [("step", 1, NEW)] * (self.now >= self.steps)

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.code = -number


@pytest.mark.parametrize(
    ("ends", "steps", "counts"),
    [(5.0, 5.0 + 2 * END, (1, 0)), (2 * END, 3 * END, (0, 1)), (5.0, 1e9, (0, 1))],
    ids=["slow start", "no end", "no start"],
)
def test_interpreters_that_start_slowly_after_a_kill_are_not_counted_as_hung(
    ends: float, steps: float, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, result = Agent(ends, steps), Result(kills=1)
    monkeypatch.setattr("tests.distributed.campaign_runs.time", agent)
    monkeypatch.setattr("tests.distributed.campaign_runs._children", agent.children)
    _kill_one(agent, [agent], 1, True, random.Random(0), 0.0, 1, result)  # type: ignore[arg-type]
    assert (result.restarts, result.hung) == counts
