"""Store of the checkpoints of a run on several ranks, in which rank 0 decides for all ranks.

Read next: `ftrain/checkpoint/store.py`, of one process; `save.py`, how one checkpoint is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint._draft import Collected, collect, step_number
from ftrain.checkpoint._numbered import warn_corrupt
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReadError,
)
from ftrain.checkpoint.load import OnChange, load_with_manifest, verifies
from ftrain.checkpoint.manifest import Manifest
from ftrain.checkpoint.shard import Layout
from ftrain.checkpoint.store import Store
from ftrain.distributed._mesh_peers import peers_of
from ftrain.distributed._peers import Peers
from ftrain.distributed.save import publish
from ftrain.distributed.sharding import Sharding, layout_of

__all__ = ["ShardedStore"]

T = TypeVar("T")
D = TypeVar("D")


class ShardedStore(Store):
    """Directory of checkpoints that the ranks of a mesh write and read together.

    The checkpoints are those of a `checkpoint.Store`, whose methods this class has; one process can
    read them, and its checkpoints can be read here. Every rank must call the same methods in the same
    order, except `steps`, `discard_unused` and `close`: rank 0 locks the directory, numbers, publishes,
    verifies and deletes, and the other ranks get its result, or an error. The directory must be on a
    file system that all ranks share.

    Args:
        directory: the directory; created by the first save.
        mesh: the ranks.
        layout: the rows that this rank holds of each leaf that it does not hold whole, by its path; or
            `sharding_of(steps)`, if the states are those of sharded steps.
        timeout: seconds that a phase of a call may take on the slowest rank, as for `save`.
        **options: as for `checkpoint.Store`.

    Raises:
        ValueError: as `checkpoint.Store`; this process is not in the mesh.

    Example:
        >>> import tempfile, torch, torch.distributed as dist
        >>> from torch.distributed.device_mesh import DeviceMesh
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> with ShardedStore(tempfile.mkdtemp(), DeviceMesh("cpu", [0]), keep_last=2) as store:
        ...     for step in range(4):
        ...         path = store.save({"w": torch.tensor(step)}, step=step)
        ...     store.steps(), store.load(like={"w": torch.tensor(0)})[0]
        ([2, 3], {'w': tensor(3)})
        >>> dist.destroy_process_group()
    """

    collective = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        mesh: DeviceMesh,
        *,
        layout: Layout | Sharding | None = None,
        timeout: float = 600.0,
        **options: Any,
    ) -> None:
        super().__init__(directory, **options)
        self._layout = {} if layout is None else layout

        def begin(use: str) -> Peers:
            return peers_of(mesh, timeout, f"{use} {self.directory}")

        self._begin = begin
        self._leads = begin("store").leads  # raises for a mesh without this process

    def lock(self) -> bool:
        """Lock the directory on rank 0; return True, on every rank, if this call acquired the lock."""
        with self._turns.taken():
            return self._decide(f"lock {self.directory}", self._lock.acquire)

    def discard_unused(self) -> None:
        """Delete the directories that `lock` has created, if they hold nothing but its lock.

        Rank 0 does so without an answer from the others, one of which may have failed.
        """
        if self._leads:
            super().discard_unused()

    def layout(self, state: Any) -> Layout:
        """Return, for each sharded leaf of a state, the rows that this rank holds."""
        return layout_of(self._layout, state)

    def save(
        self,
        state: Any,
        *,
        step: int,
        metadata: Any = None,
        metrics: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> pathlib.Path:
        """Save the checkpoint of a step on all ranks, then delete checkpoints that are not to be kept.

        Args:
            state: this rank's tree of tensors.
            step: as for `checkpoint.Store.save`.
            metadata: JSON, the same on every rank.
            metrics: numbers, the same on every rank.
            replace: as for `checkpoint.Store.save`.

        Returns:
            The path of the checkpoint, which exists when the save, if asynchronous, has ended.

        Raises:
            CheckpointRankError: another rank failed, ended or did not answer in time.
            CheckpointError, TypeError, ValueError: as `checkpoint.Store.save` and `distributed.save`.
        """
        with self._turns.taken():
            failure: BaseException | None = None
            try:
                self._background.wait()
            except BaseException as error:
                failure = error
            found: list[tuple[Collected, int]] = []

            def prepare() -> None:
                if failure is not None:
                    raise failure
                number = step_number(step)
                content = collect(state, metadata, number, metrics, self._fingerprint)
                self._check_metric(metrics or {})
                found.append((content, number))

            def lock(_: Any) -> None:
                self._lock.acquire()

            self._begin("store").agree(f"save step {step} in {self.directory}", prepare, lock)
            content, number = found[0]
            self._start(content, number, replace)
            return self._numbered.path(number)

    def load(
        self,
        like: T,
        *,
        step: int | None = None,
        default: Any = None,
        on_change: OnChange = "warn",
    ) -> tuple[T, Any]:
        """Load the newest state that verifies on all ranks, or the state of a given step.

        Args:
            like: this rank's state, of the same structure, shapes and dtypes.
            step: as for `checkpoint.Store.load`, as are `default` and `on_change`.
            default: the initial metadata, if there is no checkpoint.
            on_change: what to do if this machine may compute other bits.

        Returns:
            `(state, metadata)`.

        Raises:
            CheckpointRankError: another rank failed, ended or did not answer in time.
            CheckpointError: as `checkpoint.Store.load`.
        """
        self.wait()
        peers, action = self._begin("store"), f"load from {self.directory}"
        found: list[tuple[T, Manifest]] = []

        def attempt(path: str) -> None:
            found.clear()

            def work() -> dict[str, str]:
                rows = self.layout(like)
                try:
                    found.append(load_with_manifest(path, like, self._fingerprint, on_change, rows))
                except (CheckpointNotFoundError, CheckpointCorruptError) as error:
                    return {"error": type(error).__name__, "text": str(error)}
                except CheckpointReadError as error:
                    if error.errno != errno.EIO:
                        raise
                    return {"error": CheckpointCorruptError.__name__, "text": str(error)}
                return {"digest": found[0][1].digest}

            try:
                peers.agree(action, work, _check_outcomes)
            except BaseException:
                found.clear()
                raise

        if peers.leads:
            self._propose(peers, action, attempt, step, default is not None)
        else:
            while (path := peers.agree(action, lambda: None, _only_on_leader)) is not None:
                with contextlib.suppress(CheckpointNotFoundError, CheckpointCorruptError):
                    attempt(path)
        if not found:
            return like, default
        state, manifest = found[0]
        return state, manifest.metadata

    def latest(self) -> pathlib.Path | None:
        """Return, on every rank, the path of the newest checkpoint that rank 0 has verified."""
        return self._path(f"find the latest checkpoint in {self.directory}", super().latest)

    def best(self) -> pathlib.Path | None:
        """Return, on every rank, the path of the best checkpoint that rank 0 has verified."""
        return self._path(f"find the best checkpoint in {self.directory}", super().best)

    def delete(self, step: int) -> None:
        """Delete the checkpoint of a step, as `checkpoint.Store.delete` does."""
        self.wait()
        delete = super().delete
        self._decide(f"delete step {step} in {self.directory}", lambda: delete(step))

    def _decide(self, action: str, decide: Callable[[], D]) -> D:
        """Run a function on rank 0 only; return its result, or raise its error, on every rank."""
        return self._begin("store").agree(action, lambda: None, lambda _: decide())

    def _path(self, action: str, find: Callable[[], pathlib.Path | None]) -> pathlib.Path | None:
        def text() -> str | None:
            path = find()
            return None if path is None else str(path)

        found = self._decide(action, text)
        return None if found is None else pathlib.Path(found)

    def _propose(
        self,
        peers: Peers,
        action: str,
        attempt: Callable[[str], None],
        step: int | None,
        optional: bool,
    ) -> None:
        """On rank 0, propose checkpoints to all ranks until each can load one; then end their search."""
        failure: Exception | None = None
        stopped = False

        def candidate(path: pathlib.Path) -> bool:
            nonlocal stopped
            try:
                peers.agree(action, lambda: None, lambda _: str(path))
                attempt(str(path))
            except (CheckpointNotFoundError, CheckpointCorruptError):
                raise
            except BaseException:  # raised on every rank
                stopped = True
                raise
            return True

        try:
            if step is not None:
                found: object = self._numbered.read(step_number(step), candidate)
            else:
                found = self._numbered.first(lambda: reversed(self.steps()), candidate)
            if found is None and not optional:
                raise CheckpointNotFoundError(self._nothing())
        except Exception as error:
            if stopped:
                raise
            failure = error

        def stop(_: Any) -> None:
            if failure is not None:
                raise failure

        peers.agree(action, lambda: None, stop)

    def _publish(self, collected: Collected, step: int, replace: bool) -> None:
        """Publish a checkpoint on all ranks; may run in a background thread."""
        path, action = str(self._numbered.path(step)), f"save step {step} in {self.directory}"

        def content() -> Collected:
            return collected

        def begin(_: Any) -> bool:
            self._settle()
            return replace and os.path.lexists(path)

        replaces = self._begin("publish").agree(action, lambda: None, begin)
        if not replaces:
            try:
                publish(content, self._layout, path, self._begin("publish"))
            except CheckpointExistsError as error:
                exists = error
                self._begin("publish").agree(
                    action, lambda: None, lambda _: _check_damaged(path, exists)
                )
                replaces = True
        if replaces:
            replacement = str(self._numbered.replacement(step))
            publish(content, self._layout, replacement, self._begin("publish"))

        def end(_: Any) -> None:
            if replaces:
                self._take_place(step)
            self._retain(step)

        self._begin("publish").agree(action, lambda: None, end)


def _only_on_leader(_: Any) -> Any:
    raise AssertionError("expected a call on a rank other than 0, which receives rank 0's decision")


def _check_damaged(path: str, error: CheckpointExistsError) -> None:
    """Raise `error` if the existing checkpoint is intact; a damaged one may be replaced."""
    if verifies(path):
        raise error
    warn_corrupt(path, "the next checkpoint of its step replaces it.")


def _check_outcomes(outcomes: list[dict[str, str]]) -> None:
    """Raise on all ranks if one cannot read the checkpoint, or has read a different one than rank 0."""
    for rank, outcome in enumerate(outcomes):
        if "error" in outcome:
            kinds = (CheckpointNotFoundError, CheckpointCorruptError)
            kind = next(kind for kind in kinds if kind.__name__ == outcome["error"])
            raise kind(f"{outcome['text']} (on rank {rank})")
        if outcome["digest"] != outcomes[0]["digest"]:
            raise CheckpointNotFoundError(
                f"rank {rank} read another checkpoint than rank 0. Use a file system that all "
                "ranks share."
            )
