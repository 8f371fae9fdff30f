"""Agreement of ranks through a key-value store: every rank sends a value, and rank 0 decides for all.

Messages go through the store of the process group, not through collectives: they may be exchanged in
a thread while the step's collectives run, and a rank that is missing is known by its number.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch.distributed as dist

from ftrain.checkpoint import errors
from ftrain.checkpoint.errors import CheckpointError, CheckpointRankError

__all__ = ["KeyValueStore", "Peers"]

M = TypeVar("M")
D = TypeVar("D")

LEADER = 0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05  # seconds between two reads of the store
_BETWEEN_SIGNS = 0.05  # seconds between two checks of processes on this machine

#: Errors of rank 0 that every rank raises with their own type; others become `CheckpointRankError`.
_SHARED = (
    "CheckpointCorruptError",
    "CheckpointExistsError",
    "CheckpointLockedError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointVersionError",
)


class KeyValueStore(Protocol):
    """Methods of a `torch.distributed.Store` that this file uses."""

    def set(self, key: str, value: str) -> None:
        """Store a value under a key."""

    def get(self, key: str) -> bytes:
        """Return the value of a key that exists."""

    def check(self, keys: list[str]) -> bool:
        """Return True if all keys exist."""

    def add(self, key: str, amount: int) -> int:
        """Add `amount` to the number stored under a key (0 if it is missing); return the sum."""

    def delete_key(self, key: str) -> bool:
        """Delete a key and its value."""


class _Process(NamedTuple):
    """Identity of the process of a rank.

    Attributes:
        host: the name of the machine.
        space: the boot and the PID namespace of the machine, in which `pid` is unique.
        pid: the process ID.
        started: the start of the process in clock ticks, because process IDs are used again.
    """

    host: str
    space: str
    pid: int
    started: str


class Peers:
    """Ranks that exchange values and reach common decisions during one call.

    Args:
        store: a store that all ranks share; `None` for a single rank.
        rank: the number of this rank.
        size: the number of ranks.
        name: the name of these ranks.
        use: the name of the operation; every rank begins the calls of one name in the same order.
        timeout: seconds from the beginning of `agree` to the answer of the slowest rank.
    """

    def __init__(
        self,
        store: KeyValueStore | None,
        rank: int,
        size: int,
        name: str,
        timeout: float,
        use: str = "",
    ) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self._round = 0
        self._here = _this_process()
        self._known: dict[int, _Process] = {}
        self._prefix = self._processes = ""
        if store is not None and size > 1:
            self._store = store
            # The store counts the calls, so that the count of a new process group begins at 0.
            number = store.add(f"ftrain/{name}/calls/{use}/{rank}", 1)
            self._prefix = f"ftrain/{name}/{use}/{number}"
            self._processes = f"ftrain/{name}/process"
            store.set(f"{self._processes}/{rank}", json.dumps(self._here))

    @property
    def leads(self) -> bool:
        """True on rank 0, which decides for all ranks."""
        return self.rank == LEADER

    def agree(self, action: str, work: Callable[[], M], decide: Callable[[list[M]], D]) -> D:
        """Run `work` on every rank and `decide` on rank 0; return the decision on every rank.

        Args:
            action: what the call does, for messages: "save the checkpoint runs/a".
            work: returns a value that JSON can hold.
            decide: maps the values of all ranks, in order, to a value that JSON can hold.

        Raises:
            CheckpointRankError: another rank failed, ended, or did not answer in time.
            Exception: what `work` or `decide` raised on this rank.
        """
        start, own = time.monotonic(), self._round
        self._round += 1
        failure: BaseException | None = None
        message: dict[str, Any] = {"action": action}
        try:
            message["value"] = work()
        except BaseException as error:
            failure = error
            message |= _report(error)
        if self.size == 1:
            if failure is not None:
                raise failure
            return decide([message["value"]])
        try:
            if self.leads:
                return self._lead(action, own, message, failure, decide, start)
            self._store.set(f"{self._prefix}/{own}/{self.rank}", json.dumps(message))
            if failure is not None:
                raise failure
            decision: D = self._follow(action, own, start)
            return decision
        except dist.DistError as error:
            known = self._known.get(LEADER)
            cause = f"the store of the process group, which its machine hosts, is lost: {error}"
            raise CheckpointRankError(
                action, LEADER, known.host if known else "?", cause
            ) from error

    def _lead(
        self,
        action: str,
        own: int,
        message: dict[str, Any],
        failure: BaseException | None,
        decide: Callable[[list[Any]], D],
        start: float,
    ) -> D:
        decision: dict[str, Any] = {"rank": LEADER, "error": "", "text": "it was interrupted"}
        try:
            messages = self._gather(own, start) | {LEADER: message}
            for rank in sorted(messages):
                if "error" in messages[rank]:
                    decision = messages[rank] | {"rank": rank}
                    raise failure or self._error(action, decision)
                if messages[rank]["action"] != action:
                    text = f"expected the same call on every rank, got: {messages[rank]['action']}"
                    decision = {"rank": rank, "error": "", "text": text}
                    raise self._error(action, decision)
            try:
                value = decide([messages[rank]["value"] for rank in range(self.size)])
            except BaseException as error:
                decision = _report(error) | {"rank": LEADER}
                raise
            decision = {"value": value}
            return value
        finally:
            decision["host"] = self.host(decision.get("rank", LEADER))
            self._store.set(f"{self._prefix}/{own}/decision", json.dumps(decision))
            for rank in range(1, self.size):
                self._store.delete_key(f"{self._prefix}/{own}/{rank}")

    def _gather(self, own: int, start: float) -> dict[int, dict[str, Any]]:
        """Return the message of each other rank, or an error message if the rank ended or is late."""
        found: dict[int, dict[str, Any]] = {}
        left = {rank: f"{self._prefix}/{own}/{rank}" for rank in range(self.size) if rank}

        def look() -> bool:
            for rank, key in list(left.items()):
                if self._store.check([key]):
                    found[rank] = json.loads(self._store.get(key))
                    del left[rank]
            return not left

        def signs() -> bool:
            for rank in list(left):
                if self._ended(rank) and not self._store.check([left[rank]]):
                    found[rank] = {"error": "", "text": self._end_of(rank)}
                    del left[rank]
            return not left

        self._poll(look, signs, start + self.timeout)
        late = {"error": "", "text": f"it did not answer within {self.timeout:g} s"}
        return found | dict.fromkeys(left, late)

    def _follow(self, action: str, own: int, start: float) -> Any:
        key = f"{self._prefix}/{own}/decision"
        ended = False

        def signs() -> bool:
            nonlocal ended
            ended = self._ended(LEADER) and not self._store.check([key])
            return ended

        # Somewhat longer than the leader waits: its decision names the rank that is late.
        deadline = start + 1.1 * self.timeout + 1.0
        if not self._poll(lambda: self._store.check([key]), signs, deadline) or ended:
            late = f"it did not answer within {self.timeout:g} s"
            cause = self._end_of(LEADER) if ended else late
            raise CheckpointRankError(action, LEADER, self.host(LEADER), cause)
        decision = json.loads(self._store.get(key))
        if self._store.add(f"{key}/readers", 1) == self.size - 1:
            self._store.delete_key(key)
            self._store.delete_key(f"{key}/readers")
        if "error" in decision:
            raise self._error(action, decision)
        return decision["value"]

    def _error(self, action: str, decision: dict[str, Any]) -> CheckpointError:
        rank, kind, text = decision["rank"], decision["error"], decision["text"]
        if rank == LEADER and kind in _SHARED:
            shared: CheckpointError = getattr(errors, kind)(text)
            return shared
        if rank == LEADER and kind == CheckpointRankError.__name__:
            return CheckpointRankError(action, *decision["about"])
        host = decision.get("host") or self.host(rank)
        cause = f"{kind}: {text}" if kind else text
        return CheckpointRankError(action, rank, host, cause)

    def _poll(self, look: Callable[[], bool], signs: Callable[[], bool], deadline: float) -> bool:
        """Call `look` often and `signs` rarely until one returns True; return False at the deadline."""
        pause, looked = _FIRST_PAUSE, time.monotonic()
        while not look():
            now = time.monotonic()
            if now - looked > _BETWEEN_SIGNS:
                looked = now
                if signs():
                    return True
            if now > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _ended(self, rank: int) -> bool:
        """Return True if the process of a rank ran on this machine and has ended."""
        process = self._process_of(rank)
        return (
            process is not None
            and process.space == self._here.space != ""
            and _started(process.pid) != process.started
        )

    def _process_of(self, rank: int) -> _Process | None:
        key = f"{self._processes}/{rank}"
        if rank == self.rank:
            return self._here
        if rank not in self._known and self._store.check([key]):
            self._known[rank] = _Process(*json.loads(self._store.get(key)))
        return self._known.get(rank)

    def host(self, rank: int) -> str:
        """Return the host name of a rank; `"?"` if the rank never answered."""
        process = self._process_of(rank)
        return "?" if process is None else process.host

    def _end_of(self, rank: int) -> str:
        process = self._process_of(rank)
        return f"its process {process.pid if process else '?'} has ended"


def _report(error: BaseException) -> dict[str, Any]:
    about = (
        (error.rank, error.host, error.cause) if isinstance(error, CheckpointRankError) else None
    )
    text = str(error) or type(error).__name__
    return {"error": type(error).__name__, "text": text, "about": about}


def _this_process() -> _Process:
    pid = os.getpid()
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            space = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: only the time-out shows that a rank has ended
        space = ""
    return _Process(socket.gethostname(), space, pid, _started(pid))


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks; `""` if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
