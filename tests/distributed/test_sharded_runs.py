"""Runs whose ranks each have a part of the state: by a Trainer, and by a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import checkpoint, distributed, optim
from ftrain.checkpoint import Store
from ftrain.config import ConfigError, load, load_run
from ftrain.config.build import build
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.core._torch_fake_ranks import fake_mesh
from ftrain.core.state import TrainState
from ftrain.data import Loader
from ftrain.distributed import ShardedStore, _world, sharding_of
from ftrain.loop import Trainer, callbacks
from ftrain.testing import assert_same_bits
from tests.config.tiny import configured
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import NUMBER, distance
from tests.distributed.test_launch_config import initialized
from tests.distributed.test_launch_config import rows as logged
from tests.distributed.test_launch_trainer import with_channel

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
#: Batches of different lengths, which two or four ranks cannot share out evenly.
HELD_OUT = [X[:5], X[5:9], X[9:10], X[10:17], X[17:]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, 5)
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = block(x).tanh()
        return x


def steps_of() -> Any:
    return ftrain.make_steps(
        Net,
        lambda m, b: ftrain.Mean((m(b) - 1).square().sum(), torch.tensor(float(len(b)))),
        optim.ema(optim.adamw(1e-2), 0.9),
    )


def sharded_run(mesh: Any, folder: str, steps_in_all: int, resume: Any, backend: Any) -> Any:
    """Train on this rank, and return the whole state, evaluations, and the digest of the best."""
    steps = distributed.fully_sharded(steps_of(), mesh)
    layout = sharding_of(steps)
    store = ShardedStore(Path(folder), mesh, layout=layout, keep_best=1, metric="eval/loss")
    trainer = Trainer(
        steps,
        [callbacks.EMAEvaluation(), callbacks.Checkpointing(best=1, monitor="eval/loss")],
        compile=False if backend is None else {"backend": backend},
        mesh=mesh,
        progress=False,
        store=store,
        log_every=2,
        eval_every=2,
        save_every=2,
    )
    loader = Loader(X, 4, seed=1, rank=mesh.get_rank(), ranks=mesh.size())
    state = steps.init_state(0)
    fit = {"max_steps": steps_in_all, "resume": resume}
    result = trainer.fit(state, loader, HELD_OUT, **fit)
    best = trainer.fit(state, loader, HELD_OUT, load_best=True, **{**fit, "resume": True})
    store.close()
    losses = {(one.split, one.step): one.loss for one in result.history if "eval" in one.split}
    whole = distributed.unshard(result.state, layout)
    return whole, losses, distributed.unshard(best.state, layout), best.checkpoint


def one_process(folder: Path, steps_in_all: int) -> tuple[TrainState, Any]:
    steps = steps_of()
    trainer = Trainer(
        steps,
        [callbacks.EMAEvaluation()],
        compile=False,
        progress=False,
        log_every=2,
        eval_every=2,
        store=folder,
    )
    result = trainer.fit(
        steps.init_state(0), Loader(X, 4, seed=1), HELD_OUT, max_steps=steps_in_all
    )
    losses = {(one.split, one.step): one.loss for one in result.history if "eval" in one.split}
    return result.state, losses


@pytest.mark.parametrize("backend", [None, "eager"])
def test_sharded_run_resumed_by_other_numbers_of_ranks_equals_one_process(
    tmp_path: Path, backend: str | None
) -> None:
    folder = tmp_path / "many"
    plan = ((2, 3, None), (4, 5, True), (1, 7, True)) if backend is None else ((2, 4, None),)
    for world_size, end, resume in plan:
        found = run(sharded_run, world_size, str(folder), end, resume, backend, timeout=120)
        assert_same_bits([each[0] for each in found], [found[0][0]] * world_size)
        assert all(each[1:2] == found[0][1:2] for each in found)
    whole, losses, best, path = found[0]
    expected, expected_losses = one_process(tmp_path / "one", end)
    assert distance(expected.params, whole.params) <= 4e-7
    assert distance(expected.opt_state, whole.opt_state) <= 4e-7
    for (
        key,
        loss,
    ) in expected_losses.items():  # many has more: one at the end of each part of the run
        assert losses[key] == pytest.approx(loss, rel=NUMBER), key
    saved, _ = Store(folder).load(like=tree.map(torch.zeros_like, expected))
    assert_same_bits(saved, whole)
    loaded, _ = checkpoint.load(path, like=tree.map(torch.zeros_like, expected))
    assert_same_bits(loaded, best)
    if world_size > 1:  # each rank has written
        assert {x.name[:10] for x in Path(path).glob("rank-*")} >= {"rank-00000", "rank-00001"}


def evaluated(mesh: Any, same: bool) -> str:
    steps = distributed.data_parallel(steps_of(), mesh)
    trainer = Trainer(steps, compile=False, mesh=mesh, progress=False)
    own = HELD_OUT if same else HELD_OUT[mesh.get_rank() :]
    try:
        return repr(trainer.evaluate(steps.init_state(0), own).loss)
    except distributed.RankError as error:
        return str(error)


def test_evaluation_divided_over_ranks_equals_one_process_and_refuses_data_that_differs() -> None:
    steps = steps_of()
    expected = Trainer(steps, compile=False).evaluate(steps.init_state(0), HELD_OUT).loss
    assert run(evaluated, 2, True) == [repr(expected)] * 2
    for says in run(evaluated, 2, False):
        assert "eval_data, batch 1: expected the same on all ranks" in says


def refusals(mesh: Any, folder: str) -> dict[str, str]:
    steps = distributed.fully_sharded(steps_of(), mesh)
    replicated = distributed.data_parallel(steps_of(), mesh)
    right = sharding_of(steps)
    stores = {
        "plain store": (steps, Store(folder)),
        "no layout": (steps, ShardedStore(folder, mesh)),
        "layout of whole states": (replicated, ShardedStore(folder, mesh, layout=right)),
    }
    loader = Loader(X, 4, seed=1, rank=mesh.get_rank(), ranks=mesh.size())
    found = {}
    for name, (given, store) in stores.items():
        trainer = Trainer(given, compile=False, mesh=mesh, store=store, progress=False)
        try:
            trainer.fit(given.init_state(0), loader, max_steps=1)
        except ValueError as error:
            found[name] = str(error)
    return found


def test_checkpoint_store_that_does_not_match_the_state_layout_is_refused(tmp_path: Path) -> None:
    for found in run(refusals, 2, str(tmp_path / "run")):
        assert found["plain store"].startswith("store: expected a ShardedStore, since each rank")
        assert "sharding_of(steps)" in found["no layout"]
        assert "expected shape" in found["layout of whole states"]
    assert not (tmp_path / "run").exists()


class Broken:
    """Callback that raises after a step, on some ranks."""

    listens = (ftrain.loop.BatchEnd,)

    def __init__(self, raises: bool) -> None:
        self.raises = raises

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[Any, ...]]:
        if self.raises and event.progress.step == 3:
            raise RuntimeError("the disk of this callback is full")
        return None, ()


def failed(mesh: Any, folder: str, on_all: bool) -> str:
    world = with_channel(mesh, str(Path(folder, f"store-{on_all}")))
    world.channel.interval = (
        0.4  # times 2.5, the seconds for which a failed rank waits for the reports of others
    )
    steps = distributed.fully_sharded(steps_of(), mesh)
    broken = Broken(on_all or mesh.get_rank() == 1)
    trainer = Trainer(
        steps, [broken], compile=False, mesh=mesh, progress=False, store=Path(folder, "run")
    )
    loader = Loader(X, 4, seed=1, rank=mesh.get_rank(), ranks=mesh.size())
    events = trainer.events(
        steps.init_state(0),
        loader,
        max_steps=6 if on_all else 3,
        resume="auto",
        kinds=(ftrain.loop.BatchEnd,),
    )
    try:
        for event in events:
            if not on_all and mesh.get_rank() == 0 and event.progress.step == 3:
                events.close()  # a rank that has not failed, and writes nothing
    except RuntimeError as error:
        return str(error)
    finally:
        _world.set_current(None)
        world.channel.close()
    return ""


def test_run_that_fails_on_all_ranks_alike_saves_the_part_of_each_rank(tmp_path: Path) -> None:
    first, second = run(failed, 2, str(tmp_path), False)
    assert (first, second) == ("", "the disk of this callback is full")
    assert Store(tmp_path / "run").steps() == []
    assert run(failed, 2, str(tmp_path), True) == ["the disk of this callback is full"] * 2
    assert Store(tmp_path / "run").steps() == [3]


SHARDED = {"strategy": "fully_sharded"}


def configured_run(mesh: Any, path: str, overrides: list[str], resume: bool) -> Any:
    with initialized(mesh):
        result = train(load(path, overrides), resume=resume)
    return result.status, result.step


def test_configured_sharded_run_equals_data_parallel_and_loads_in_one_process(
    tmp_path: Path,
) -> None:
    options = {"ema": 0.9, "eval_batch_size": 2, "model": {"name": "project.py:Net", "width": 6}}
    path = configured(tmp_path, distributed=SHARDED, **options)
    many, other = tmp_path / "many", tmp_path / "other"
    for world_size, epochs in ((2, 1), (4, 2), (1, 3)):
        overrides = [f"output_dir={many}", f"epochs={epochs}"]
        found = run(configured_run, world_size, str(path), overrides, world_size != 2)
        assert found == [("completed", 4 * epochs)] * world_size
    names = [each.name for each in (many / "checkpoints" / "step-000000000008").iterdir()]
    assert {f"rank-{rank:05d}-00000.safetensors" for rank in range(4)} <= {*names}
    replicated = ["distributed.strategy=data_parallel", f"output_dir={other}"]
    run(configured_run, 2, str(path), replicated, False)
    for ours, theirs in zip(logged(many), logged(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"ema/duration", "ema/samples_per_second"}:
            value = theirs[name]
            expected = pytest.approx(value, rel=2e-6) if isinstance(value, float) else value
            assert ours[name] == expected, name
    for which in ("best", "latest", "step-000000000008"):
        loaded = [load_run(folder, which) for folder in (many, other)]
        assert loaded[0].checkpoint.name == loaded[1].checkpoint.name
        assert distance(loaded[1].state.params, loaded[0].state.params) <= 4e-7
        predicted = [each.predict(torch.ones(2, 3)) for each in loaded]
        torch.testing.assert_close(predicted[0], predicted[1], rtol=1e-6, atol=1e-6)
    assert json.loads((many / "result.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["distributed.logical_shards=6"], "distributed.logical_shards", "a power of two"),
        (["distributed.logical_shards=1"], "distributed.logical_shards", "of the 2 ranks, got 1"),
        (
            ["distributed.mesh=[3, -1]"],
            "distributed.mesh",
            "is the number of ranks, 2, got [3, -1]",
        ),
        (["distributed.mesh=[-1, -1]"], "distributed.mesh", "got [-1, -1]"),
        (["distributed.mesh=[2, 2]"], "distributed.mesh", "got [2, 2]. Write -1"),
        (
            ["distributed.rules={layers.0: row}"],
            "distributed.rules",
            "expected null with fully_sharded",
        ),
        (["distributed.strategy=tensor_parallel"], "distributed.rules", "got none"),
        (
            ["distributed.strategy=tensor_parallel", "distributed.rules={layers.1: row}"],
            "distributed.rules",
            "got 'layers.1', Dropout",
        ),
        (
            [
                "distributed.strategy=tensor_parallel",
                "distributed.rules={layers.0: row}",
                "distributed.logical_shards=4",
            ],
            "distributed.logical_shards",
            "expected null with tensor_parallel, got 4",
        ),
        (
            ["distributed.strategy=data_parallel", "distributed.mesh=[1, 2]"],
            "distributed.mesh",
            "Write distributed.strategy=fully_sharded",
        ),
        (["log_digests=2"], "log_digests", "rank 0 has a part of each tensor only"),
        (["distributed.units=[encoder.*]"], "distributed.units", "encoder.*"),
        (
            ["distributed.strategy=data_parallel", "distributed.units=[layers.0]"],
            "distributed.units",
            "Write distributed.strategy=fully_sharded",
        ),
    ],
)
def test_configuration_key_that_the_strategy_does_not_support_is_refused(
    overrides: list[str], key: str, says: str, tmp_path: Path
) -> None:
    config = load(configured(tmp_path, distributed=SHARDED), overrides)
    with fake_mesh(2, "cpu") as mesh, pytest.raises(ConfigError) as caught:
        build(config, mesh=mesh)
    assert caught.value.key == key
    assert says in str(caught.value)
