"""Test a trainer on several ranks: rank 0 writes one run, which stops and fails on all ranks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import ftrain
from ftrain import distributed, optim
from ftrain.checkpoint import Store
from ftrain.core import tree
from ftrain.core._torch_collectives import all_reduce, group_of
from ftrain.data import Loader
from ftrain.distributed import _world
from ftrain.distributed._heartbeats import Channel
from ftrain.loop import Trainer, callbacks
from ftrain.loop.callback import Stop
from ftrain.loop.events import BatchEnd
from tests.distributed.ranks import run

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


def steps_on(mesh: Any) -> Any:
    group = group_of(mesh)

    def reduce(totals: Any, weight: Any) -> tuple[Any, Any]:
        return tree.map(lambda x: all_reduce(x, group), totals), all_reduce(weight, group)

    return ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1),
        lambda m, b: ftrain.Mean(m(b).square().sum(), torch.tensor(float(len(b)))),
        optim.sgd(0.1),
        grad_reduce=reduce,
    )


def trainer_on(mesh: Any, **options: Any) -> tuple[Any, Trainer, Loader]:
    steps = steps_on(mesh)
    trainer = Trainer(steps, compile=False, mesh=mesh, progress=False, **options)
    loader = Loader(X, 4, seed=1, rank=mesh.get_rank(), ranks=mesh.size())
    return steps, trainer, loader


def trained(mesh: Any, folder: str, steps_in_all: int, resume: Any = None) -> Any:
    logger = callbacks.JSONLLogger(Path(folder) / "metrics.jsonl")
    steps, trainer, loader = trainer_on(
        mesh, callbacks=[logger], store=Path(folder) / "checkpoints", log_every=2
    )
    result = trainer.fit(steps.init_state(0), loader, max_steps=steps_in_all, resume=resume)
    return result.status, result.step, result.state.params["weight"].numpy()


def test_ranks_write_one_run_and_another_number_of_ranks_resumes_it(tmp_path: Path) -> None:
    for world_size, end, resume in ((2, 3, None), (4, 5, True), (1, 8, True)):
        found = run(trained, world_size, str(tmp_path), end, resume)
        assert [each[:2] for each in found] == [("completed", end)] * world_size
        assert all((each[2] == found[0][2]).all() for each in found)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len([row for row in rows if '"train"' in row]) == 4


def test_resumed_ranks_reach_the_state_of_one_process(tmp_path: Path) -> None:
    (alone,) = run(trained, 1, str(tmp_path / "a"), 8)
    for world_size, end, resume in ((2, 3, None), (1, 5, True), (4, 8, True)):
        found = run(trained, world_size, str(tmp_path / "b"), end, resume)
    # Sums of 4 rows in another order: a few ulp of float32 over 8 steps.
    assert abs(found[0][2] - alone[2]).max() < 1e-6


def refused(mesh: Any, case: str) -> tuple[str, tuple[int, ...]]:
    last = mesh.get_rank() == mesh.size() - 1
    steps, trainer, loader = trainer_on(mesh)
    state, epochs = steps.init_state(0), 1
    if case == "epochs" and last:
        epochs = 2
    elif case == "state" and last:
        state = steps.init_state(1)
    elif case == "loader" and last:
        loader = Loader(X, 4, seed=1)
    elif case == "seed" and last:
        loader = dataclasses.replace(loader, seed=2)
    elif case == "log_every" and last:
        trainer = dataclasses.replace(trainer, log_every=7)
    elif case == "steps" and last:
        loader = Loader(X[:12], 4, seed=1, rank=mesh.get_rank(), ranks=mesh.size())
    elif case == "dtype":
        return dtype_refused(mesh, trainer, state)
    try:
        trainer.fit(state, loader, epochs=epochs)
    except (ValueError, distributed.RankError) as error:
        return f"{type(error).__name__}: {error}", getattr(error, "ranks", ())
    return "", ()


def dtype_refused(mesh: Any, trainer: Trainer, state: Any) -> tuple[str, tuple[int, ...]]:
    x = X[:4].double() if mesh.get_rank() else X[:2]
    with pytest.raises(distributed.RankError) as caught:
        trainer.fit(state, [x], epochs=1)
    return f"RankError: {caught.value}", caught.value.ranks


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("epochs", "epochs: expected the same on all ranks, 1 as on rank"),
        ("state", "state.params['bias']: expected the same on all ranks"),
        ("loader", "expected a loader with rank=1 and ranks=2"),
        ("seed", "train_data: expected the same on all ranks, "),
        ("log_every", "log_every: expected the same on all ranks, 50 as on rank 0"),
        ("steps", "steps_per_epoch: expected the same on all ranks, 6 as on rank 0"),
        ("dtype", "batch: expected the same on all ranks, 'float32[*, 3]' as on rank 0"),
    ],
)
def test_run_that_differs_between_ranks_is_refused_on_all_of_them(case: str, says: str) -> None:
    found = run(refused, 2, case)
    assert says in found[0][0] or says in found[1][0]
    assert "rank 1" in found[0][0]
    assert all(message for message, _ in found)
    assert found[0][1] == (1,)


class StopOn:
    """Callback that stops the run on one rank only."""

    listens = (ftrain.loop.WindowEnd,)

    def __init__(self, stops: bool) -> None:
        self.stops = stops

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[Any, ...]]:
        return None, (Stop("enough"),) if self.stops else ()


def stopped_alone(mesh: Any) -> str:
    steps, trainer, loader = trainer_on(mesh, callbacks=[StopOn(mesh.get_rank() == 1)], log_every=2)
    try:
        trainer.fit(steps.init_state(0), loader, max_steps=6)
    except distributed.RankError as error:
        return str(error)
    return ""


def test_callback_that_stops_one_rank_is_an_error_on_all_ranks() -> None:
    for message in run(stopped_alone, 2):
        assert message.startswith("status: expected the same on all ranks, None as on rank 0")
        assert "'stopped' on rank 1" in message


def timed(mesh: Any, folder: str) -> Any:
    def slow(batch: Any) -> tuple[int, int]:
        if mesh.get_rank() == 0:
            time.sleep(0.02)
        return len(batch), 0

    limit = callbacks.TimeLimit(seconds=0.1)
    steps, trainer, loader = trainer_on(mesh, callbacks=[limit], log_every=2, count_samples=slow)
    result = trainer.fit(steps.init_state(0), loader, max_steps=500)
    return result.status, result.step, result.reason


def test_time_limit_stops_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    first, second = run(timed, 2, str(tmp_path))
    assert first == second
    assert first[0] == "stopped"
    assert first[1] < 50


def with_channel(mesh: Any, path: str) -> _world.World:
    store = dist.FileStore(path, mesh.size())
    channel = Channel(store, mesh.get_rank(), mesh.size(), interval=0.05)
    world = _world.World(mesh, mesh.get_group(), store, channel, 20.0)
    _world.set_current(world)
    return world


def interrupted(mesh: Any, path: str) -> Any:
    world = with_channel(mesh, path)
    steps, trainer, loader = trainer_on(mesh, log_every=10**6, save_every=10**6)
    try:
        events = trainer.events(
            steps.init_state(0), loader, max_steps=100_000, kinds=(ftrain.loop.BatchEnd,)
        )
        for event in events:
            if event.progress.step == 20 and mesh.get_rank() == 1:
                handler = trainer_signals(events)
                handler._receive(15)
            if event.progress.step > 5000:
                return "too late"
            last = event.progress.step
    finally:
        _world.set_current(None)
        world.channel.close()
    return last


def trainer_signals(events: Any) -> Any:
    """Return the signal handler of a run, which is a variable in the frame of its generator."""
    return events.gi_frame.f_locals["self"].runtime.signals


def test_signal_on_one_rank_ends_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    first, second = run(interrupted, 2, str(tmp_path / "store"))
    assert first == second
    assert 20 <= first < 5000


def left_alone(mesh: Any, folder: str) -> Any:
    """Train until rank 0 exits without an error after step 5, which rank 1 notices in step 6."""
    rank, taken = mesh.get_rank(), []

    def step(state: Any, batch: Any) -> Any:
        if rank == 1 and len(taken) == 5:
            while not gone.exists():
                time.sleep(0.01)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]")
        taken.append(batch)
        return {"x": state["x"] + batch.sum()}, {"loss": batch.mean()}

    gone = Path(folder, "gone")
    world = with_channel(mesh, str(Path(folder, "store")))
    trainer = Trainer(step, compile=False, mesh=mesh, log_every=100, store=Path(folder, "run"))
    events = trainer.events(
        {"x": torch.tensor(0.0)}, [torch.ones(2)] * 20, max_steps=9, kinds=(BatchEnd,)
    )
    says = ""
    try:
        for event in events:
            if rank == 0 and event.progress.step == 5:
                break
    except distributed.RankError as error:
        says = str(error)
    events.close()
    _world.set_current(None)
    world.channel.close()
    gone.touch()
    return says


def test_checkpoint_is_written_by_rank_1_if_rank_0_is_lost(tmp_path: Path) -> None:
    first, says = run(left_alone, 2, str(tmp_path))
    assert first == ""
    assert "rank 0 on" in says
    assert "was killed or lost" in says
    store = Store(tmp_path / "run")
    assert store.steps() == [5]
    assert store.load(like={"x": torch.tensor(0.0)})[0]["x"] == 10
