"""Test runs whose layers are cut over ranks, and runs on a mesh with two axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftrain import distributed
from ftrain.checkpoint import Store
from ftrain.config import load, load_run
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.data import Loader
from ftrain.distributed import sharding_of
from ftrain.loop import Trainer, callbacks
from ftrain.testing import assert_same_bits
from tests.config.tiny import configured
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import NUMBER, distance
from tests.distributed.test_launch_config import initialized
from tests.distributed.test_launch_config import rows as logged
from tests.distributed.test_sharded_runs import HELD_OUT, X, one_process, steps_of

RULES = {"inputs": "column", "blocks.0": "row", "blocks.1": "column"}


def grid_of(mesh: Any, columns: int) -> Any:
    shape = (mesh.size() // columns, columns)
    return torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=("data", "model"))


def steps_on(mesh: Any, kind: str) -> Any:
    """Return sharded steps, and the position and number of the ranks that have rows of their own."""
    if mesh.size() == 1 or kind == "cut":
        return distributed.tensor_parallel(steps_of(), mesh, RULES), (0, 1)
    if kind == "cut on two axes":
        grid = grid_of(mesh, 2)
        rows = grid.get_local_rank(0), grid.size(0)
        return distributed.tensor_parallel(steps_of(), grid, RULES), rows
    own = mesh.get_rank(), mesh.size()
    return distributed.fully_sharded(steps_of(), grid_of(mesh, 2)), own


def meshed_run(mesh: Any, folder: str, kind: str, steps_in_all: int, resume: Any) -> Any:
    """Train on this rank, and return the whole state, evaluations, and that of the best state."""
    steps, (rank, ranks) = steps_on(mesh, kind)
    trainer = Trainer(
        steps,
        [callbacks.EMAEvaluation()],
        compile=False,
        mesh=mesh,
        progress=False,
        store=Path(folder),
        log_every=2,
        eval_every=2,
        save_every=2,
    )
    loader = Loader(X, 4, seed=1, rank=rank, ranks=ranks)
    fit = {"max_steps": steps_in_all, "resume": resume}
    result = trainer.fit(steps.init_state(0), loader, HELD_OUT, **fit)
    losses = {(one.split, one.step): one.loss for one in result.history if "eval" in one.split}
    samples = [one.metrics.get("samples") for one in result.history]
    again = trainer.evaluate(result.state, HELD_OUT).loss
    whole = distributed.unshard(result.state, sharding_of(steps))
    return whole, losses, samples, repr(again)


PLAN = [
    (2, "cut", 3, None),
    (4, "cut on two axes", 5, True),
    (4, "hybrid", 6, True),
    (1, "cut", 7, True),
]


def test_run_on_other_meshes_after_each_restart_equals_one_process(tmp_path: Path) -> None:
    folder, many = tmp_path / "many", {}
    for world_size, kind, end, resume in PLAN:
        found = run(meshed_run, world_size, str(folder), kind, end, resume, timeout=120)
        assert_same_bits([each[0] for each in found], [found[0][0]] * world_size)
        assert all(each[1:] == found[0][1:] for each in found)
        many |= found[0][1]
    expected, losses = one_process(tmp_path / "one", 7)
    assert distance(expected.params, found[0][0].params) <= 4e-7
    assert distance(expected.opt_state, found[0][0].opt_state) <= 4e-7
    assert losses.keys() <= many.keys()
    for key, loss in losses.items():
        assert many[key] == pytest.approx(loss, rel=NUMBER), key
    saved, _ = Store(folder).load(like=tree.map(torch.zeros_like, expected))
    assert_same_bits(saved, found[0][0])


def refusals(mesh: Any) -> dict[str, Any]:
    cut, _ = steps_on(mesh, "cut")
    grid, _ = steps_on(mesh, "cut on two axes")
    own = {"rank": mesh.get_rank(), "ranks": mesh.size()}
    first = X[:4] + mesh.get_rank()
    calls = {
        "own rows": lambda: (cut, mesh, Loader(X, 4, seed=1, **own)),
        "own rows on two axes": lambda: (grid, mesh, Loader(X, 4, seed=1, **own)),
        "other values": lambda: (cut, mesh, [first]),
        "two axes": lambda: (grid, grid_of(mesh, 2), Loader(X, 4, seed=1)),
    }
    found: dict[str, Any] = {}
    for name, make in calls.items():
        steps, given, data = make()
        try:
            trainer = Trainer(steps, compile=False, mesh=given, progress=False)
            trainer.fit(steps.init_state(0), data, max_steps=1)
        except (ValueError, distributed.RankError) as error:
            found[name] = str(error), getattr(error, "ranks", None)
    return found


def test_ranks_that_share_a_cut_layer_refuse_different_rows_of_a_batch() -> None:
    for found in run(refusals, 4):
        assert "rank=0, ranks=1)" in found["own rows"][0]
        assert "mesh.get_local_rank(0)" in found["own rows on two axes"][0]
        says, ranks = found["other values"]
        assert says.startswith("batch: expected the same rows on all ranks")
        assert ranks == (1, 2, 3)
        assert "Pass the mesh of distributed.initialize to the Trainer" in found["two axes"][0]


CUT = {"strategy": "tensor_parallel", "rules": {"layers.0": "column", "layers.2": "row"}}
SHARDED = {"strategy": "fully_sharded", "mesh": [-1, 2]}


def configured_run(mesh: Any, path: str, overrides: list[str], resume: bool) -> Any:
    with initialized(mesh):
        result = train(load(path, overrides), resume=resume)
    return result.status, result.step


@pytest.mark.parametrize(
    ("options", "mesh"),
    [(CUT, "[-1, 2]"), (SHARDED, "[-1, 2]")],
    ids=["tensor_parallel", "hybrid"],
)
def test_configured_run_on_a_mesh_equals_data_parallel_and_loads_in_one_process(
    options: Any, mesh: str, tmp_path: Path
) -> None:
    others = {"ema": 0.9, "eval_batch_size": 2, "model": {"name": "project.py:Net", "width": 6}}
    path = configured(tmp_path, distributed=options, **others)
    many, other = tmp_path / "many", tmp_path / "other"
    for world_size, epochs in ((2, 1), (4, 2), (1, 3)):
        axes = [f"distributed.mesh={mesh}"] if world_size == 4 else ["distributed.mesh=null"]
        overrides = [f"output_dir={many}", f"epochs={epochs}", *axes]
        found = run(configured_run, world_size, str(path), overrides, world_size != 2)
        assert found == [("completed", 4 * epochs)] * world_size
    replicated = [
        "distributed.strategy=data_parallel",
        "distributed.rules=null",
        "distributed.mesh=null",
        f"output_dir={other}",
    ]
    run(configured_run, 2, str(path), replicated, False)
    for ours, theirs in zip(logged(many), logged(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"ema/duration", "ema/samples_per_second"}:
            value = theirs[name]
            expected = pytest.approx(value, rel=2e-6) if isinstance(value, float) else value
            assert ours[name] == expected, name
    loaded = [load_run(folder, "latest") for folder in (many, other)]
    assert distance(loaded[1].state.params, loaded[0].state.params) <= 4e-7
