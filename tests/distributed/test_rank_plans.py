"""Test `ftrain train` and `ftrain resume` on 1, 2, 4 and again 1 rank, against a run of one process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from ftrain.checkpoint import Store
from ftrain.cli import main
from ftrain.config import load_run
from ftrain.core.state import TrainState
from ftrain.testing import assert_close_norm, assert_same_bits
from tests.config.tiny import configured
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import NUMBER, TREE
from tests.distributed.test_launch_config import initialized
from tests.distributed.test_launch_config import rows as logged

PLAN = (1, 2, 4, 1)  # the number of ranks in each epoch
CLOCKS = {"ema/duration", "ema/samples_per_second"}


def command(mesh: Any, *arguments: str) -> tuple[int, str]:
    """Run a command of `ftrain` on this rank; return its exit code and what it prints."""
    output = io.StringIO()
    with initialized(mesh), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(arguments)
    return code, output.getvalue()


def succeed(ranks: int, *arguments: str) -> None:
    for code, says in run(command, ranks, *arguments):
        assert code == 0, says


def state_of(folder: Path) -> TrainState:
    state: TrainState = load_run(folder, "latest").state
    return state


@pytest.mark.parametrize("shards", [4, None])
@pytest.mark.parametrize("strategy", ["data_parallel", "fully_sharded"])
def test_run_on_other_numbers_of_ranks_in_each_epoch_equals_the_run_of_one_process(
    strategy: str, shards: int | None, tmp_path: Path
) -> None:
    options = {"strategy": strategy, "logical_shards": shards}
    path = str(configured(tmp_path, distributed=options, ema=0.9, epochs=len(PLAN)))
    one, many = tmp_path / "one", tmp_path / "many"
    if shards:
        succeed(1, "train", path, f"output_dir={one}")
    else:
        assert main(["train", path, f"output_dir={one}", "distributed.strategy=none"]) == 0
    succeed(PLAN[0], "train", path, f"output_dir={many}", "epochs=1")
    for epochs, ranks in enumerate(PLAN[1:], 2):
        succeed(ranks, "resume", str(many), f"epochs={epochs}")
    found, expected = state_of(many), state_of(one)
    assert int(found.step) == 4 * len(PLAN)
    assert Store(many / "checkpoints").steps() == Store(one / "checkpoints").steps()
    if shards:
        assert_same_bits(found, expected)
    else:
        for field in ("params", "opt_state", "extras"):
            assert_close_norm(getattr(found, field), getattr(expected, field), TREE)
    for ours, theirs in zip(logged(many), logged(one), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - CLOCKS:
            is_exact = shards or not isinstance(theirs[name], float)
            bound = theirs[name] if is_exact else pytest.approx(theirs[name], rel=NUMBER)
            assert ours[name] == bound, name
