"""Test layouts of sharded states, their checkpoints, and the snippet of the reference."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ftrain import checkpoint, distributed, testing
from ftrain.checkpoint.shard import Shard
from ftrain.core import tree
from ftrain.core._torch_collectives import Group
from ftrain.core.state import TrainState
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import Setup, batch_of, own_rows, steps_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "distributed_sharded.md"


def follows_the_page(mesh: Any) -> Any:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "initialize", lambda: contextlib.nullcontext(mesh))
        exec(compile(snippet, str(PAGE), "exec"), namespace)
    return namespace["whole"]


def test_snippet_on_sharded_states_runs_on_ranks() -> None:
    first, second = run(follows_the_page, 2)
    testing.assert_same_bits(first, second)
    assert int(first.step) == 1


def saved(mesh: Any, path: str) -> Any:
    sharded = distributed.fully_sharded(steps_of(Setup()), mesh)
    layout = distributed.sharding_of(sharded)
    state, _ = sharded.train_step(sharded.init_state(0), own_rows(batch_of(0), layout.group))
    distributed.save(path, state, mesh, layout=layout.layout(state))
    start = tree.map(torch.zeros_like, state)
    again, _ = distributed.load(path, start, mesh, layout=layout.layout(start))
    testing.assert_same_bits(again, state)
    return distributed.unshard(state, sharded)


def test_checkpoint_saved_from_sharded_parts_holds_the_whole_state(tmp_path: Path) -> None:
    whole, _ = run(saved, 2, str(tmp_path / "saved"))
    found, _ = checkpoint.load(tmp_path / "saved", tree.map(torch.zeros_like, whole))
    testing.assert_same_bits(found, whole)


def test_layout_of_a_sharding_has_the_rows_of_each_rank() -> None:
    state = TrainState(
        torch.tensor(0), {"w": torch.arange(10.0).view(5, 2)}, {}, (), (), torch.zeros(2), {}
    )
    parts = []
    for rank, (start, rows) in enumerate([(0, 2), (2, 2), (4, 1), (5, 0)]):
        sharding = distributed.Sharding({".params['w']": (5, 2)}, Group("", rank, 4))
        part = distributed.shard(state, sharding)
        assert sharding.layout(part) == {".params['w']": Shard((5, 2), start, rows)}
        parts.append(part.params["w"])
    testing.assert_same_bits(torch.cat(parts)[:5], state.params["w"])
    testing.assert_same_bits(torch.cat(parts)[5:], torch.zeros(3, 2))
