"""Test runs of a configuration on several ranks: `ftrain train` and `ftrain resume` under torchrun."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftrain import distributed
from ftrain.checkpoint import Store
from ftrain.cli._print_warnings import notes
from ftrain.cli._rank_notes import rank_notes
from ftrain.config import ConfigError, load
from ftrain.config._ranks import mesh_of, over_ranks
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.core._leaf_digest import leaf_digest
from ftrain.core.errors import ArgumentError
from ftrain.distributed import RankError, _world
from tests import preloaded
from tests.campaign import CAMPAIGN
from tests.config.tiny import configured
from tests.distributed.ranks import run

SHARDS = {"strategy": "data_parallel", "logical_shards": 4}


@contextlib.contextmanager
def initialized(mesh: Any) -> Iterator[None]:
    """Let `distributed.initialize` return this mesh."""
    _world.set_current(_world.World(mesh, mesh.get_group(), None, None, 60.0))  # type: ignore[arg-type]  # no channel
    try:
        yield
    finally:
        _world.set_current(None)


def digest(state: Any) -> str:
    return "".join(leaf_digest(leaf) for leaf in tree.leaves(state))


def trained(mesh: Any, path: str, overrides: list[str], resume: bool = False) -> Any:
    with initialized(mesh):
        try:
            result = train(load(path, overrides), resume=resume)
        except (ConfigError, RankError) as error:
            return type(error).__name__, str(error), ""
    return result.status, result.step, digest(result.state)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the log, without times."""
    clocks = ("time", "duration", "steps_per_second", "samples_per_second")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if name not in clocks} for row in found]


def test_batch_size_that_ranks_cannot_divide_is_refused_with_its_configuration_key(
    tmp_path: Path,
) -> None:
    path = configured(tmp_path, distributed={"strategy": "data_parallel"}, batch_size=5)
    for kind, says, _ in run(trained, 2, str(path), [f"output_dir={tmp_path / 'run'}"]):
        assert kind == "ConfigError"
        assert "batch_size: expected a multiple of ranks = 2" in says
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_directory_that_holds_a_run_is_refused_on_all_ranks(tmp_path: Path) -> None:
    path = configured(tmp_path, distributed={"strategy": "data_parallel"})
    overrides = [f"output_dir={tmp_path / 'run'}", "epochs=1"]
    assert run(trained, 2, str(path), overrides)[0][0] == "completed"
    before = (tmp_path / "run" / "result.json").read_text()
    for kind, says, _ in run(trained, 2, str(path), overrides):
        assert kind == "ConfigError"
        assert "which holds a run" in says
    assert (tmp_path / "run" / "result.json").read_text() == before


def test_all_ranks_use_the_numbered_directory_that_rank_0_created(tmp_path: Path) -> None:
    path = configured(tmp_path, distributed={"strategy": "data_parallel"}, versions=True)
    for name in ("run", "run-2"):
        found = run(trained, 2, str(path), [f"output_dir={tmp_path / 'run'}", "epochs=1"])
        assert found[0] == found[1]
        assert (tmp_path / name / "result.json").exists()
    assert not (tmp_path / "run-3").exists()


def test_several_ranks_without_a_distributed_strategy_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    config = load(configured(tmp_path))
    with pytest.raises(ConfigError) as caught, mesh_of(config):
        pass
    assert caught.value.key == "distributed.strategy"
    says = "or tensor_parallel, since 2 processes were started, got none"
    assert says in str(caught.value)


def test_incomplete_variables_of_a_launcher_raise_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = load(configured(tmp_path), ["distributed.strategy=data_parallel"])
    with pytest.raises(ConfigError, match="got WORLD_SIZE=2 without RANK"), mesh_of(config):
        pass


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ArgumentError("logical_shards", "expected 4, got 3", "Write 4."),
            "distributed.logical_shards: expected 4, got 3. Write 4.",
        ),
        (
            ValueError("logical_shards is only a word"),
            "distributed.strategy: logical_shards is only",
        ),
    ],
)
def test_data_parallel_error_names_the_key_of_the_invalid_argument_not_of_a_word_in_its_text(
    error: Exception, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(distributed, "data_parallel", refuse)
    with pytest.raises(ConfigError, match=re.escape(says)):
        over_ranks(load(configured(tmp_path)), None, object())  # type: ignore[arg-type]  # not reached


def warned(mesh: Any) -> str:
    output = io.StringIO()
    with contextlib.redirect_stderr(output), initialized(mesh), notes(), rank_notes(mesh):
        warnings.warn("the same on all ranks", UserWarning, stacklevel=1)
        if mesh.get_rank() in (1, 2):
            warnings.warn("something odd", UserWarning, stacklevel=1)
    return output.getvalue()


def test_warnings_of_all_ranks_are_printed_once_by_rank_0() -> None:
    printed = run(warned, 4)
    assert printed[1:] == ["", "", ""]
    first, second = printed[0].splitlines()
    assert "the same on all ranks" in first
    assert "something odd" in second
    assert second.endswith("(on ranks 1-2)")


GUIDE = Path(__file__).parents[2] / "docs" / "launching.md"


def follows_the_guide(mesh: Any, folder: str) -> Any:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    with initialized(mesh), contextlib.chdir(folder):
        exec(compile(snippet, str(GUIDE), "exec"), namespace)
    result = namespace["result"]
    return result.status, result.step, digest(result.state)


def test_snippet_of_the_guide_on_configured_runs_trains_on_ranks(tmp_path: Path) -> None:
    first, second = run(follows_the_guide, 2, str(tmp_path))
    assert first == second
    assert first[:2] == ("completed", 20)
    assert Store(tmp_path / "runs" / "digits" / "checkpoints").steps() == [20]


FAULT = '''
import os, signal
from ftrain.loop import BatchEnd

class Fault:
    """Kill a rank in the first attempt."""
    listens = (BatchEnd,)

    def __init__(self, rank: int, step: int):
        self.place = (step, str(rank), "0")

    def init(self):
        return None

    def __call__(self, state, event):
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if (event.progress.step, os.environ.get("RANK"), attempt) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)
        return state, ()
'''


# A rank is killed within an epoch, after its last step, and after the last step of the run.
KILLS = [(rank, step) for rank in (0, 1) for step in range(1, 13)] if CAMPAIGN else [(1, 7)]


@pytest.mark.parametrize(("rank", "step"), KILLS)
def test_killed_rank_under_torchrun_is_restarted_with_the_same_bytes(
    rank: int, step: int, tmp_path: Path
) -> None:
    (tmp_path / "fault.py").write_text(FAULT)
    shards = {**SHARDS, "timeout": 60}
    fault = {"name": "fault.py:Fault", "rank": rank, "step": step}
    path = configured(tmp_path, distributed=shards, callbacks=[fault], threads=1)
    folder, whole = tmp_path / "run", tmp_path / "whole"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m ftrain"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    arguments = [*torchrun.split(), "train", str(path), f"output_dir={folder}"]
    found = preloaded.run(*arguments, env=environment, timeout=180)
    assert f"rank {rank} on" in found.stderr
    assert "was killed or lost" in found.stderr
    assert found.stdout.count("completed at step 12") == 1
    assert run(trained, 1, str(path), [f"output_dir={whole}"])[0][:2] == ("completed", 12)
    last = "checkpoints/step-000000000012/tensors-00000.safetensors"
    assert (folder / last).read_bytes() == (whole / last).read_bytes()
