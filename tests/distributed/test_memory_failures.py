"""Test runs in which one rank is out of memory: all ranks end, and name that rank and the cause."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

import ftrain
from ftrain import distributed, optim
from ftrain.checkpoint import Store
from ftrain.core._torch_fake import fake_mode
from ftrain.distributed import _world
from ftrain.loop import Trainer
from tests.distributed import forked
from tests.distributed.test_launch_trainer import with_channel
from tests.distributed.test_sharded_runs import Net, X

RANKS, FAILS_IN = 3, 4  # the step
ENOUGH, TOO_MUCH, OF_CUDA = 0.0, 1.0, 2.0  # values of a batch's `bytes`
SECONDS = 50.0  # below the time-out of collectives, 60 s


def loss_fn(model: Any, batch: Any) -> ftrain.Mean:
    """Return a loss; a batch may say that there is no memory for it."""
    if batch["bytes"].amax() == TOO_MUCH:
        torch.empty(2**50)  # more than a process can address
    if batch["bytes"].amax() == OF_CUDA:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return ftrain.Mean((model(batch["x"]) - 1).square().sum(), torch.tensor(float(len(batch["x"]))))


def fails(mesh: Any, folder: str, strategy: str, cause: float) -> None:
    """Train on this rank until the run fails; write the error to a file."""
    rank = mesh.get_rank()
    world = with_channel(mesh, f"{folder}/store")
    steps = ftrain.make_steps(Net, loss_fn, optim.sgd(0.1))
    steps = getattr(distributed, strategy)(steps, mesh)
    trainer = Trainer(
        steps, compile=False, mesh=mesh, progress=False, store=Path(folder, "run"), save_every=2
    )
    batches = [{"x": X[4 * i : 4 * i + 4], "bytes": torch.full((4,), ENOUGH)} for i in range(6)]
    if rank == 1:
        batches[FAILS_IN - 1]["bytes"] += cause
    try:
        trainer.fit(steps.init_state(0), batches, epochs=1)
    except Exception as error:
        about = [type(error).__name__, str(error), *getattr(error, "__notes__", [])]
        Path(folder, f"{rank}.json").write_text(json.dumps(about))
    finally:
        _world.set_current(None)
        world.channel.close()


@pytest.mark.parametrize("strategy", ["data_parallel", "fully_sharded"])
@pytest.mark.parametrize(
    ("cause", "kind", "says"),
    [
        (TOO_MUCH, "RuntimeError", "can't allocate memory"),
        (OF_CUDA, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=["allocator", "cuda"],
)
def test_rank_that_is_out_of_memory_ends_all_ranks_with_its_number_host_and_cause(
    strategy: str, cause: float, kind: str, says: str, tmp_path: Path
) -> None:
    with fake_mode():
        pass  # its modules are imported here, once, instead of by each rank: 10 s
    with forked.ranks(RANKS, fails, str(tmp_path), strategy, cause) as pids:
        assert forked.exit_codes(pids, SECONDS) == [forked.DONE] * RANKS
    host = socket.gethostname()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    for rank in (0, 2):
        name, message, *_ = found[rank]
        assert name == "RankError"
        assert message.startswith(f"rank 1 on {host} failed at step {FAILS_IN}, phase step"), (
            message
        )
        assert f"with {kind}: " in message
        assert says in message
    name, message, *notes = found[1]
    assert name == kind
    assert says in message
    assert f"This is rank 1 of {RANKS} on {host}." in notes
    # The failed rank has a part of a sharded state, whose last checkpoint is that of every second step.
    last = FAILS_IN - 1 if strategy == "data_parallel" else FAILS_IN - 2
    assert Store(tmp_path / "run").steps()[-1] == last
