"""Run a function on several ranks: a pool of persistent processes, one for each pytest process.

    def reduced(mesh, number):                     # at module level, named by module and name
        return all_reduce(torch.tensor(number), group_of(mesh))

    first, second = run(reduced, 2, 1.0)           # the results of ranks 0 and 1

The pool starts at the first call, as forming a process group takes a second. It has four forks of the
server of `tests/preloaded.py` with one thread each, on gloo with a file as rendezvous, and a mesh for
1, 2 and 4 ranks. A call of fewer ranks uses the first ones.

An exception on a rank is raised here with its traceback. The other ranks may then wait in a collective
for that rank: they get a few seconds to return, after which the pool is ended, and the next call starts
another one.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from tests import preloaded

WORLD_SIZES = (1, 2, 4)
RANKS = max(WORLD_SIZES)
START_SECONDS = 300.0  # an import of torch on a busy machine
GRACE_SECONDS = 5.0


class RankError(AssertionError):
    """Exception or time-out of one rank, with the traceback on that rank."""


def run(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Call `fn(mesh, *args)` on the first ranks of the pool; return the results in rank order.

    Args:
        fn: a function at module level, which ranks import by its module and qualified name.
        world_size: the number of ranks: 1, 2 or 4. `mesh` has one axis, `"ranks"`, of this size.
        *args: picklable arguments, the same on every rank. Tensors are copied.
        timeout: seconds for the whole call, without the start of the pool.

    Raises:
        RankError: a rank raised, ended, or did not return in time.
    """
    if world_size not in WORLD_SIZES:
        raise ValueError(f"world_size: expected one of {WORLD_SIZES}, got {world_size}")
    global _pool  # noqa: PLW0603
    if _pool is None:
        _pool = Pool()
    try:
        return _pool.run(fn, world_size, args, timeout)
    except RankError:
        if not _pool.usable:
            end()
        raise


class Pool:
    """Processes of all ranks, with a pipe to each."""

    def __init__(self) -> None:
        self.usable = True
        self._folder = tempfile.mkdtemp(prefix="ftrain-test-ranks-")
        preloaded.ensure_server()
        self._processes, self._pipes = [], []
        for rank in range(RANKS):
            ours, theirs = preloaded.CONTEXT.Pipe()
            process = preloaded.CONTEXT.Process(
                target=_serve, args=(rank, self._folder, theirs), name=f"rank {rank}"
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        try:
            self._results(range(RANKS), "the start of the pool", START_SECONDS)
        except RankError:
            self.end()
            raise

    def run(
        self, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        """Call a function on the first ranks of the pool; return the results in rank order."""
        order = pickle.dumps((fn.__module__, fn.__qualname__, world_size, args))
        for pipe in self._pipes[:world_size]:
            pipe.send_bytes(order)
        return self._results(range(world_size), f"{fn.__module__}.{fn.__qualname__}", timeout)

    def _results(self, ranks: range, what: str, timeout: float) -> list[Any]:
        """Receive the result of a call from each rank; raise if a rank raised, ended or is late."""
        pending = {self._pipes[rank]: rank for rank in ranks}
        results: dict[int, Any] = {}
        errors: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        while pending:
            left = deadline - time.monotonic()
            ready = wait(list(pending), timeout=max(left, 0.0))
            if not ready:
                self.usable = False
                late = sorted(pending.values())
                errors |= dict.fromkeys(late, "did not return in time\n")
                break
            for pipe in ready:
                rank = pending.pop(pipe)  # type: ignore[call-overload]
                try:
                    is_good, payload = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    self.usable = False
                    self._processes[rank].join(timeout=1.0)
                    is_good, payload = False, f"ended, exit code {self._processes[rank].exitcode}\n"
                if is_good:
                    results[rank] = payload
                else:
                    errors[rank] = payload
                    # Other ranks may wait for this rank in a collective.
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if errors:
            found = "\n".join(f"rank {rank} of {what}: {errors[rank]}" for rank in sorted(errors))
            raise RankError(f"{found}(time limit {timeout:.0f} s)")
        return [results[rank] for rank in ranks]

    def end(self) -> None:
        """End all processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


_pool: Pool | None = None


@atexit.register
def end() -> None:
    """End the pool, if there is one; the next call of `run` starts another."""
    global _pool  # noqa: PLW0603
    if _pool is not None:
        _pool.end()
        _pool = None


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    """Answer calls until the pipe is closed; the main function of a rank."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        meshes = _meshes(rank, folder)
        pipe.send_bytes(pickle.dumps((True, None)))
        while True:
            module, qualname, world_size, args = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(_answer(module, qualname, meshes[world_size], args))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
    os._exit(0)  # without waiting for threads of gloo


def _answer(module: str, qualname: str, mesh: Any, args: tuple[Any, ...]) -> bytes:
    import torch

    try:
        fn: Any = importlib.import_module(module)
        for part in qualname.split("."):
            fn = getattr(fn, part)
        torch.manual_seed(0)
        return pickle.dumps((True, fn(mesh, *args)))
    except Exception:
        return pickle.dumps((False, traceback.format_exc()))


def _meshes(rank: int, folder: str) -> dict[int, Any]:
    """Form the process groups, and return the mesh of each world size that contains this rank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # The machine's name may have no address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), RANKS)
    limit = timedelta(seconds=600)  # above the time limit of any call: the pool names the rank
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
    # Forming a group is a collective of all ranks.
    meshes = {
        size: DeviceMesh("cpu", list(range(size)), mesh_dim_names=("ranks",))
        for size in WORLD_SIZES
    }
    return {size: mesh for size, mesh in meshes.items() if rank < size}


def _end_with_parent() -> None:
    """End this process as soon as its parent process has ended for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
