"""Process group of a program that torchrun or SLURM started on several ranks.

    with distributed.initialize() as mesh:
        steps = distributed.data_parallel(steps, mesh)

Read next: `_environment.py`, which reads the launcher's variables; `agreement.py`, checks before a run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ftrain.core._torch_stores import Store, hash_store, prefixed, tcp_store
from ftrain.core.errors import ArgumentError
from ftrain.distributed._environment import Launch, launch
from ftrain.distributed._heartbeats import Channel
from ftrain.distributed._world import World, current, set_current
from ftrain.distributed.agreement import is_lost, lost_rank
from ftrain.distributed.errors import RankError, named

__all__ = ["initialize"]

_FORMING = "while the process groups formed"


@contextlib.contextmanager
def initialize(
    *,
    device: torch.device | str | None = None,
    timeout: float = 300.0,
    store: Any = None,
) -> Iterator[DeviceMesh]:
    """Make the process group of all ranks for a `with` block, and yield their mesh.

    Ranks and addresses come from the environment variables of torchrun or of SLURM's `srun`. Without
    them, the process is the only rank. Inside of another `initialize`, or if the program has called
    `torch.distributed.init_process_group`, the existing group is used and kept.

    Args:
        device: the kind of device of the training state, "cpu" or "cuda"; `None`: CUDA if available.
            Each rank uses the CUDA device of its local rank. Collectives use NCCL on CUDA, gloo on the
            CPU.
        timeout: seconds that a rank waits for the others, at the start and in each collective. It
            includes the time in which another rank compiles, evaluates or writes a checkpoint.
        store: the store through which the ranks meet, such as `torch.distributed.FileStore(path, ranks)`
            in a new file of a shared file system; `None`: a `TCPStore` at MASTER_ADDR and MASTER_PORT.

    Yields:
        A mesh with one axis, "data", of all ranks.

    Raises:
        ValueError: an argument is out of range; only some of the launcher's variables are set; the host
            has fewer CUDA devices than ranks.
        RankError: a rank does not start within the time-out, or is lost while the groups form; the port
            of the rendezvous is in use.

    Example:
        >>> with initialize(device="cpu") as mesh:
        ...     mesh.size(), mesh.get_rank(), mesh.mesh_dim_names
        (1, 0, ('data',))
    """
    if not timeout > 0:
        raise ArgumentError(
            "timeout", f"expected seconds above 0, got {timeout!r}", "Write timeout=300.0."
        )
    world = current()
    if world is not None:
        yield world.mesh
        return
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    kind = kind if device is None else torch.device(device).type
    if dist.is_initialized():
        yield init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("data",))
        return
    place = launch()
    if kind == "cuda":
        _use_cuda_device(place)
    serves = store is None and place.rank == 0 and bool(place.address) and not place.hosted
    joined = _joined(_rendezvous(place, timeout) if store is None else store, place, timeout)
    # Opened before the groups form, so that a rank that is lost meanwhile can be named.
    channel = _opened(joined, place) if place.size > 1 else None
    try:
        mesh, control = _formed(kind, joined, place, timeout, channel)
        set_current(World(mesh, control, joined, channel, timeout))
        try:
            yield mesh
        finally:
            set_current(None)
    except BaseException:
        _leave(joined, place, serves, 3.0)  # not long, because a rank that has failed never leaves
        raise
    else:
        _leave(joined, place, serves, 30.0)
    finally:
        if channel is not None:
            channel.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _use_cuda_device(place: Launch) -> None:
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        raise ArgumentError(
            "environment",
            f"expected at most {count} ranks on {socket.gethostname()}, one for each CUDA device, got "
            f"local rank {place.local_rank}",
            f"Write torchrun --nproc-per-node {count}.",
        )
    torch.cuda.set_device(place.local_rank)


def _rendezvous(place: Launch, timeout: float) -> Store:
    """Connect to the launcher's rendezvous store; if the launcher has none, rank 0 starts one.

    Raises:
        RankError: the port is in use, or nothing answers there within the time-out.
    """
    if not place.address:
        return hash_store()
    server, where = place.rank == 0 and not place.hosted, f"{place.address}:{place.port}"
    try:
        return tcp_store(place.address, place.port, server, timedelta(seconds=timeout))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        says = str(error).partition("\n")[0]
        if "EADDRINUSE" in says or "in use" in says:
            raise RankError(
                f"the rendezvous store of rank 0: expected a free port, got {where}, which is in use. "
                "Set MASTER_PORT to another port, or write torchrun --standalone.",
                [0],
            ) from None
        raise RankError(
            f"rank {place.rank} on {socket.gethostname()} got no answer from the rendezvous store at "
            f"{where}, where rank 0 is expected: {says[:300]}. Check that rank 0 has started, and that "
            "its host and port can be reached.",
            [0],
        ) from None


def _joined(store: Store, place: Launch, timeout: float) -> Store:
    """Wait until all ranks have reached the rendezvous store; return a store for this restart only.

    Raises:
        RankError: a rank does not reach the store within the time-out.
    """
    # A restarted job must not read what the ranks of an earlier attempt have written.
    store = prefixed(f"ftrain/{place.attempt}/{place.size}", store)
    store.set(f"here/{place.rank}", f"{socket.gethostname()} {os.getpid()}")
    keys = [f"here/{rank}" for rank in range(place.size)]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError:  # the time-out: DistStoreError
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        if missing:
            raise RankError(
                f"{named(missing)} did not start within {timeout:g} s; {place.size - len(missing)} of "
                f"{place.size} ranks are waiting. Read the output of the missing ranks, or write a "
                "longer timeout.",
                missing,
            ) from None
    return store


def _opened(store: Store, place: Launch) -> Channel:
    """Return the channel of the ranks, with a heartbeat of this rank.

    Raises:
        RankError: the rendezvous store does not answer.
    """
    try:
        return Channel(prefixed("channel", store), place.rank, place.size)
    except RuntimeError as error:
        raise lost_rank(error, _FORMING) from error


def _formed(
    kind: str, store: Store, place: Launch, timeout: float, channel: Channel | None
) -> tuple[DeviceMesh, dist.ProcessGroup]:
    """Form the process groups of all ranks; return the mesh, and the group for Python values.

    Raises:
        RankError: a rank fails, or is lost, before it has formed them.
    """
    limit = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    members = prefixed("group", store)
    try:
        dist.init_process_group(
            backend, store=members, rank=place.rank, world_size=place.size, timeout=limit
        )
        control = dist.new_group(backend="gloo", timeout=limit)
        return init_device_mesh(kind, (place.size,), mesh_dim_names=("data",)), control
    except Exception as error:
        if channel is None:
            raise
        if not is_lost(error):
            channel.report(error, origin=True)
            raise
        raise lost_rank(error, _FORMING, channel) from error


def _leave(store: Store, place: Launch, serves: bool, seconds: float) -> None:
    """Record that this rank ends; if it serves the store, wait up to `seconds` for the other ranks.

    The store ends with the process that serves it, and the other ranks may still need it.
    """
    keys = [f"left/{rank}" for rank in range(place.size)]
    deadline = time.monotonic() + seconds
    with contextlib.suppress(Exception):  # the store may be lost already
        store.set(keys[place.rank], "")
        while serves and time.monotonic() < deadline and not store.check(keys):
            time.sleep(0.05)
