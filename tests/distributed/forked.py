"""Ranks as forked processes, which may be killed: they start in milliseconds, on gloo.

A rank is a child of this process; `fn(mesh, *args)` runs in it, and its exit code says how it ended.
Another child serves their store, on a free port of the loopback: torch's `FileStore` makes all ranks
wait forever if one is killed while it writes to the file. This process has no threads of the store,
which a fork could leave with a lock held. `ranks.py` has a pool of processes for tests
that kill none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint import CheckpointRankError

DONE, RANK_ERROR, OTHER_ERROR = 0, 3, 4


@contextlib.contextmanager
def ranks(size: int, fn: Callable[..., Any], *args: Any) -> Iterator[list[int]]:
    """Start `fn(mesh, *args)` on forked ranks; yield their process ids; kill them at the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    server, port = _served()
    pids: list[int] = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _child(port, rank, size, fn, args)
        pids.append(pid)
    try:
        yield pids
    finally:
        for pid in [*pids, server]:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def _served() -> tuple[int, int]:
    """Fork a process that serves a store; return its process id and the port."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        server = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        os.write(writer, struct.pack("q", server.port))
        while True:
            signal.pause()
    os.close(writer)
    (port,) = struct.unpack("q", os.read(reader, 8))
    os.close(reader)
    return pid, port


def _child(port: int, rank: int, size: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    code = OTHER_ERROR
    faulthandler.register(signal.SIGUSR1)
    try:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name may have no address
        limit = timedelta(seconds=60)
        store = dist.TCPStore("127.0.0.1", port, None, False, limit, wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        fn(DeviceMesh("cpu", list(range(size))), *args)
        code = DONE
    except CheckpointRankError:
        code = RANK_ERROR
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_codes(pids: list[int], seconds: float) -> list[int | None]:
    """Wait for processes; return exit codes: -signal if killed, `None` if still running."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            if pid not in found:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    found[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    late = [pid for pid in pids if pid not in found]
    for pid in late:  # each process prints its stack
        os.kill(pid, signal.SIGUSR1)
    if late:
        time.sleep(0.5)
    return [found.get(pid) for pid in pids]
