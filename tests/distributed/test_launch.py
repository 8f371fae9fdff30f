"""Test process groups from a launcher's variables, agreement of ranks, and their side channel."""

from __future__ import annotations

import importlib
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ftrain import distributed
from ftrain.core._torch_stores import hash_store
from ftrain.distributed import _world, agreement
from ftrain.distributed._environment import launch
from ftrain.distributed._heartbeats import Channel
from ftrain.distributed.errors import named
from tests.distributed.ranks import run

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"MASTER_PORT": None}, "without MASTER_PORT"),
        ({"WORLD_SIZE": None, "MASTER_ADDR": ""}, "without WORLD_SIZE, MASTER_ADDR"),
        ({"RANK": "2"}, "got RANK=2 and WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "expected a whole number in WORLD_SIZE, got 'two'"),
    ],
)
def test_incomplete_variables_of_a_launcher_are_refused(
    changes: dict[str, str | None], says: str
) -> None:
    environment = {**TORCHRUN, **changes}
    with pytest.raises(ValueError, match="environment: expected") as caught:
        launch({name: value for name, value in environment.items() if value is not None})
    assert says in str(caught.value)


def test_launch_reads_a_batch_script_of_slurm_as_a_single_process() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert launch(batch).size == 1


def test_launch_reads_the_number_of_restarts_of_torchrun() -> None:
    assert launch({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "3"}).attempt == "3"


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranks_in_a_message_are_listed_completely(ranks: set[int]) -> None:
    noun, _, listed = named(ranks).partition(" ")
    found = [part.split("-") for part in listed.split(", ")]
    assert {n for part in found for n in range(int(part[0]), int(part[-1]) + 1)} == ranks
    assert noun == ("rank" if len(ranks) == 1 else "ranks")


def environment(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", **changes}.items():
        monkeypatch.setenv(name, value)


def test_error_names_a_rank_that_never_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment(monkeypatch, WORLD_SIZE="4")
    store = dist.FileStore(str(tmp_path / "store"), 4)
    dist.PrefixStore("ftrain/0/4", store).set("here/2", "another host")
    with (
        pytest.raises(
            distributed.RankError, match=r"ranks 1, 3 did not start within 0.3 s"
        ) as caught,
        distributed.initialize(device="cpu", timeout=0.3, store=store),
    ):
        pass
    assert caught.value.ranks == (1, 3)
    assert not dist.is_initialized()


@pytest.mark.parametrize("host", [None, "node-b"], ids=["no heartbeat", "a heartbeat"])
def test_error_names_a_rank_that_is_lost_while_the_process_groups_form(
    host: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment(monkeypatch, WORLD_SIZE="2")
    store = dist.FileStore(str(tmp_path / "store"), 2)
    joined = dist.PrefixStore("ftrain/0/2", store)
    joined.set("here/1", "another host")
    if host:
        beat = {"n": 1, "step": 0, "phase": "start", "pid": 1, "host": host}
        joined.set("channel/beat/1", json.dumps(beat))
    with (
        pytest.raises(distributed.RankError, match="while the process groups formed") as caught,
        distributed.initialize(device="cpu", timeout=0.3, store=store),
    ):
        pass
    assert str(caught.value).startswith(f"rank 1 on {host or '?'} was killed or lost")
    assert (caught.value.ranks, caught.value.lost) == ((1,), True)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "kind", [dist.DistStoreError, dist.DistNetworkError, dist.DistBackendError]
)
def test_errors_of_torchs_stores_and_backends_show_that_another_rank_does_not_answer(
    kind: type[Exception],
) -> None:
    assert agreement.is_lost(
        kind("wait timeout after 10000ms, keys: /ftrain/0/4/group/0//cpu//0/3")
    )
    assert not agreement.is_lost(RuntimeError("no such interface"))


def test_store_lost_before_the_process_groups_form_ends_in_an_error_about_ranks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(*args: Any) -> Any:
        raise dist.DistNetworkError("Connection reset by peer")

    environment(monkeypatch, WORLD_SIZE="2")
    store = dist.FileStore(str(tmp_path / "store"), 2)
    dist.PrefixStore("ftrain/0/2", store).set("here/1", "another host")
    module = importlib.import_module(
        "ftrain.distributed.initialize"
    )  # the name is the function too
    monkeypatch.setattr(module, "Channel", lost)
    with (
        pytest.raises(distributed.RankError, match="while the process groups formed"),
        distributed.initialize(device="cpu", timeout=5.0, store=store),
    ):
        pass
    assert not dist.is_initialized()


@pytest.mark.parametrize("fails", ["init_process_group", "new_group"])
def test_error_of_this_rank_while_the_process_groups_form_is_told_to_the_others(
    fails: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no such interface")

    environment(monkeypatch, WORLD_SIZE="2")
    store = dist.FileStore(str(tmp_path / "store"), 2)
    joined = dist.PrefixStore("ftrain/0/2", store)
    joined.set("here/1", "another host")
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, fails, broken)
    with (
        pytest.raises(ValueError, match="no such interface"),
        distributed.initialize(device="cpu", timeout=5.0, store=store),
    ):
        pass
    told = json.loads(joined.get("channel/failed/0"))
    assert (told["cause"], told["origin"]) == ("ValueError: no such interface", True)


def test_error_for_a_rendezvous_port_in_use_names_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        environment(monkeypatch, MASTER_PORT=str(port))
        with (
            pytest.raises(distributed.RankError, match=f"127.0.0.1:{port}, which is in use"),
            distributed.initialize(device="cpu", timeout=5.0),
        ):
            pass


def test_initialize_without_a_launcher_makes_a_mesh_of_one_rank() -> None:
    with distributed.initialize(device="cpu") as mesh:
        assert (mesh.get_rank(), mesh.size()) == (0, 1)
        assert distributed.gather(mesh, "a") == ["a"]
        with distributed.initialize() as inner:
            assert inner is mesh
        assert dist.is_initialized()
    assert not dist.is_initialized()


def agreed(mesh: Any) -> Any:
    rank = mesh.get_rank()
    return distributed.gather(mesh, rank * 10), distributed.agree(mesh, f"folder-{rank}")


def test_gather_returns_all_values_in_rank_order_and_agree_returns_that_of_rank_0() -> None:
    for world_size in (1, 2, 4):
        each = ([10 * rank for rank in range(world_size)], "folder-0")
        assert run(agreed, world_size) == [each] * world_size


def differing(mesh: Any, values: list[dict[str, Any]]) -> tuple[str, tuple[int, ...]]:
    try:
        distributed.check_same(mesh, values[mesh.get_rank()], "Use one.")
    except distributed.RankError as error:
        return str(error), error.ranks
    return "", ()


@pytest.mark.parametrize(
    ("values", "ranks", "says"),
    [
        ([{"a": 1}] * 4, (), ""),
        ([{"a": 1, "b": 2}] * 3 + [{"a": 1, "b": 3}], (3,), "b: .* 2 as on ranks 0-2 .*got 3 on"),
        ([{"a": 9}] + [{"a": 1}] * 3, (0,), r"a: expected .* 1 as on ranks 1-3 .*got 9 on rank 0 \("),
        ([{"a": 1}, {}, {"a": 1}, {}], (1, 3), "got nothing on ranks 1, 3"),
    ],
)  # fmt: skip
def test_check_same_raises_on_all_ranks_for_a_value_that_differs(
    values: list[dict[str, Any]], ranks: tuple[int, ...], says: str
) -> None:
    found = run(differing, 4, values)
    assert len(set(found)) == 1
    assert found[0][1] == ranks
    assert re.search(says, found[0][0])


def failing(mesh: Any, inner: bool) -> tuple[str, str]:
    try:
        with distributed.together(mesh, "build the model"):
            if mesh.get_rank() == 1:
                raise OSError("no such file")
            if inner:
                distributed.agree(mesh, 3)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


@pytest.mark.parametrize("inner", [False, True])
def test_error_of_one_rank_in_a_block_of_together_is_raised_on_all_ranks(inner: bool) -> None:
    (first, says), (second, own) = run(failing, 2, inner)
    assert (first, second, own) == ("RankError", "OSError", "no such file")
    assert says.startswith(
        "rank 1 could not build the model; its error is OSError: no such file (on "
    )


def crossed(mesh: Any) -> str:
    with pytest.raises(distributed.RankError) as caught:
        distributed.gather(mesh, 1, "a seed" if mesh.get_rank() else "a path")
    return str(caught.value)


def test_ranks_that_exchange_values_of_different_names_raise() -> None:
    for says in run(crossed, 2):
        assert says.startswith(
            'expected all ranks in the exchange "a path", as rank 0 is, got "a seed" on rank 1.'
        )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 3))
def test_stop_request_ends_all_ranks_after_the_same_step(leads: list[int], by: int) -> None:
    """Ranks that have begun different numbers of steps stop after the last step that any rank began."""
    store = hash_store()
    channels = [Channel(store, rank, len(leads), interval=0.002) for rank in range(len(leads))]
    try:
        for channel, lead in zip(channels, leads, strict=True):
            for step in range(lead + 1):
                assert channel.continues_after(step, 5.0)  # has begun step lead + 1
        channels[by % len(leads)].request_stop(15)
        ended: list[int] = [0] * len(leads)

        def follow(rank: int) -> None:
            step = leads[rank] + 1
            while channels[rank].stop is None:  # a step takes longer than a heartbeat
                pass
            while channels[rank].continues_after(step, 5.0):
                step += 1
            ended[rank] = step

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(len(leads))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10.0)
        assert ended == [max(leads) + 1] * len(leads)
    finally:
        for channel in channels:
            channel.close()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("raised", "failed at step 7, phase step with ValueError: a value below zero. This rank"),
        ("followed", "failed at step 7, phase step (likewise rank 3) with ValueError: a value"),
        (
            "killed",
            "was killed or lost after its heartbeat at step 7, phase step. This rank ended in step 7",
        ),
        ("stalled", "is stalled at step 7, phase step. This rank ended in step 7"),
    ],
)
def test_error_names_the_failed_rank_with_host_and_cause(case: str, says: str) -> None:
    store = hash_store()
    channels = [Channel(store, rank, 4, interval=0.02) for rank in range(4)]
    mesh: Any = None
    channels[0].phase = lambda: "step"
    channels[0].step = 8
    try:
        for channel in channels[1:]:
            channel.step, channel.phase = 7, lambda: "step"
            channel._beat()
        for rank in (2, 3):  # these ranks found a failed collective, as this rank does
            channels[rank].report(RuntimeError("Connection closed by peer"), origin=False)
        if case in ("raised", "followed"):
            channels[1].report(ValueError("a value below zero"), origin=True)
        if case == "followed":
            channels[3].report(ValueError("another"), origin=True)
        if case == "killed":
            channels[1].close()
        _world.set_current(_world.World(mesh, None, store, channels[0], 5.0))
        error = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]")
        assert agreement.is_lost(error)
        found = agreement.lost_rank(error, "in step 7")
    finally:
        _world.set_current(None)
        for channel in channels:
            channel.close()
    assert str(found).startswith(f"rank 1 on {socket.gethostname()} {says}")
    assert found.ranks == ((1, 3) if case == "followed" else (1,))
    assert found.lost == (case != "stalled")


def test_error_of_this_rank_itself_is_not_reported_as_a_lost_rank() -> None:
    assert not agreement.is_lost(RuntimeError("shape mismatch"))
    assert not agreement.is_lost(ValueError("Timed out waiting"))
