"""Agreement of the ranks (processes) of a run on its start, on signals, failures and clock time.

All ranks take the same steps and run the same callbacks; rank 0 alone writes. Decisions that depend on
a clock or a signal are made for all ranks: at a boundary the ranks exchange their signals and the time
of rank 0, and between boundaries `Channel` finds the step after which all of them stop.

Read next: `ftrain/distributed/_heartbeats.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from ftrain import checkpoint
from ftrain.checkpoint import Store
from ftrain.core import tree
from ftrain.core._leaf_digest import leaf_digest
from ftrain.core._torch_collectives import Group
from ftrain.core._words import dtype_and_shape
from ftrain.data import Loader
from ftrain.distributed import ShardedStore, Sharding, agreement
from ftrain.distributed import load as load_parts
from ftrain.distributed._heartbeats import Channel
from ftrain.distributed._world import World, current
from ftrain.distributed.errors import RankError, named
from ftrain.loop._clock import Clock
from ftrain.loop._one_rank import CountSamples, Evaluated, OneRank
from ftrain.loop._signals import Signals
from ftrain.loop.callback import Action
from ftrain.loop.events import Plan
from ftrain.loop.state import LoopState

__all__ = ["ManyRanks"]


class ManyRanks(OneRank):
    """Rank of a run in several processes, which exchanges decisions with the other ranks.

    Args:
        mesh: all ranks, a mesh with one axis.
        sharding: the layout of the state, of which each rank has a part; `None`: each has all of it.
        batch: the ranks that have rows of their own; this rank is one of them, or takes the rows of one.
            `None`: all ranks.
    """

    is_one = False

    def __init__(
        self, mesh: DeviceMesh, sharding: Sharding | None = None, batch: Group | None = None
    ) -> None:
        self._mesh, self._rank, self._count = mesh, mesh.get_rank(), mesh.size()
        self._row_rank, self.size = self._rank, self._count
        if batch is not None:
            self._row_rank, self.size = batch.rank, batch.size
        self._sharding, self.repeats = sharding, sharding is None
        self.is_main = self._rank == 0
        world = current()
        self._world: World | None = world if world is not None and world.mesh is mesh else None
        self._clock, self._signals = RankClock(), RankSignals(self._world)

    def together(self, what: str) -> contextlib.AbstractContextManager[None]:
        return agreement.together(self._mesh, what)

    def agree(self, value: Any, what: str) -> Any:
        return agreement.agree(self._mesh, value, what)

    def counting(self, count_samples: CountSamples) -> CountSamples:
        size = self.size

        def count(batch: Any) -> tuple[int, int]:
            samples, tokens = count_samples(batch)
            return size * samples, size * tokens

        return count

    def shares_rows(self, data: Any) -> bool:
        return isinstance(data, Loader) and data.ranks > 1

    def takes(self, position: int) -> bool:
        return position % self.size == self._row_rank

    def check_turns(self, batch: Any) -> None:
        digests = {f"eval_data, batch 1{path}": x for path, x in _digests(batch).items()}
        remedy = (
            "Each rank evaluates every n-th batch of the same data. For rows of its own, write "
            "data.Loader(..., rank=mesh.get_rank(), ranks=mesh.size())."
        )
        agreement.check_same(self._mesh, digests, remedy)

    def owes_a_call(self, evaluated: int) -> bool:
        last = evaluated % self.size  # batches of the last, incomplete round
        gathers = self._sharding is not None and self.size == self._count
        return gathers and 0 < last <= self._rank

    def in_order(self, evaluated: list[Evaluated]) -> list[Evaluated]:
        mine = [each._replace(metrics=tree.map(_on_host, each.metrics)) for each in evaluated]
        every = agreement.gather(self._mesh, mine, "the metrics of an evaluation")
        found = {each.position: each for of_rank in reversed(every) for each in of_rank}
        return [found[position] for position in sorted(found)]

    def store(self, directory: str | os.PathLike[str], **options: Any) -> Store:
        if self._sharding is None:
            return Store(directory, **options)
        timeout = self._timeout()
        return ShardedStore(directory, self._mesh, layout=self._sharding, **timeout, **options)

    def check_store(self, store: Store, state: Any) -> None:
        expected = {} if self._sharding is None else self._sharding.layout(state)
        if isinstance(store, ShardedStore):
            if store.layout(state) != expected:
                raise ValueError(
                    "store: expected a ShardedStore with the layout of the training step, got another "
                    f"layout. Write ShardedStore({str(store.directory)!r}, mesh, "
                    "layout=distributed.sharding_of(steps))."
                )
        elif expected:
            raise ValueError(
                "store: expected a ShardedStore, since each rank has a part of the state, got "
                f"{type(store).__name__}. Write store={str(store.directory)!r}, or "
                "ShardedStore(directory, mesh, layout=distributed.sharding_of(steps))."
            )

    def load(self, path: str | os.PathLike[str], like: Any, **options: Any) -> tuple[Any, Any]:
        if self._sharding is None:
            return checkpoint.load(path, like, **options)
        timeout = self._timeout()
        return load_parts(path, like, self._mesh, layout=self._sharding, **timeout, **options)

    def load_newest(self, store: Store, like: Any) -> LoopState:
        if store.collective:
            return LoopState.from_metadata(*store.load(like=like))
        found = LoopState.from_metadata(*store.load(like=like)) if self.is_main else None
        step = self.agree(found and found.progress.step, "the checkpoint to resume from")
        return found or LoopState.from_metadata(*store.load(like=like, step=step))

    def check_data(self, data: Any, argument: str) -> None:
        if isinstance(data, Loader) and (data.rank, data.ranks) != (self._row_rank, self.size):
            write = "rank=mesh.get_rank(), ranks=mesh.size()"
            if self.size == 1:
                write = "rank=0, ranks=1"
            elif self.size < self._count:  # ranks that cut the same layers take the same rows
                write = "rank=mesh.get_local_rank(0), ranks=mesh.size(0)"
            raise ValueError(
                f"{argument}: expected a loader with rank={self._row_rank} and ranks={self.size}, which "
                f"gives this rank its rows of each batch, got rank={data.rank} and ranks={data.ranks}. "
                f"Write data.Loader(..., {write})."
            )

    def check_start(self, plan: Plan, state: LoopState) -> None:
        versions = {
            "version of ftrain": _version(),
            "version of torch": torch.__version__,
            "version of Python": platform.python_version(),
        }
        agreement.check_same(self._mesh, versions, "Install the same versions on all hosts.")
        values = dataclasses.asdict(plan)
        del values["devices"]
        values |= {"train_data": repr(state.cursor), "callbacks": [*state.callbacks]}
        agreement.check_same(self._mesh, values, "Pass the same value on every rank.")
        digests = {f"state{path}": leaf_digest(x, path) for path, x in self._shared(state.train)}
        whole = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]
        if len(set(agreement.gather(self._mesh, whole, "digests of the state"))) > 1:
            agreement.check_same(
                self._mesh,
                digests,
                "These are digests of tensors. Write init_state(seed) with the same seed on every "
                "rank, or load the same checkpoint.",
            )

    def check_batch(self, batch: Any) -> None:
        kinds = {
            f"batch{path}": _kind(leaf)
            for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True)
        }
        agreement.check_same(
            self._mesh,
            kinds,
            "Ranks may differ in the number of rows only, written *: give the batches of all ranks the "
            "same keys, dtypes and lengths.",
        )
        if self.size < self._count:
            self._check_shared_rows(batch)

    def _check_shared_rows(self, batch: Any) -> None:
        """Raise unless all ranks that hold parts of the same layers have the same batch."""
        mine = (self._row_rank, _digests(batch))
        every = agreement.gather(self._mesh, mine, "digests of the batch")
        firsts: dict[int, Any] = {}
        for row_rank, digests in every:
            firsts.setdefault(row_rank, digests)
        others = [rank for rank, (row_rank, found) in enumerate(every) if found != firsts[row_rank]]
        if others:
            raise RankError(
                "batch: expected the same rows on all ranks that hold parts of the same layers, got "
                f"different rows on {named(others)}. Give these ranks their batches in the same order, "
                "such as those of data.Loader.",
                others,
            )

    def begin_boundary(self, step: int, pending: Sequence[Any]) -> None:
        mine = (step, [_described(action) for action in pending])
        raw = (self._signals.raw, self._clock.own())
        every = agreement.gather(self._mesh, (mine, raw), f"the work after step {step}")
        host = socket.gethostname()
        if any(of_rank != every[0][0] for of_rank, _ in every):
            names = ("step", f"actions requested after step {step}")
            remedy = f"Make callbacks decide from events, not from clocks or files (on {host})."
            agreement.check_same(self._mesh, dict(zip(names, mine, strict=True)), remedy)
        self._clock.agreed = every[0][1][1]
        signals = [signal for _, (signal, _) in every if signal is not None]
        if signals:
            self._signals.received = signals[0]

    def end_boundary(self, outcome: tuple[Any, ...]) -> None:
        names = ("status", "batches per step", "number of pending actions")
        remedy = "Make callbacks decide from events, not from clocks or files."
        agreement.check_same(self._mesh, dict(zip(names, outcome, strict=True)), remedy)

    def clock(self) -> Clock:
        return self._clock

    def signals(self) -> Signals:
        return self._signals

    def publish(self, phase: Callable[[], str]) -> None:
        if self._world is not None and self._world.channel is not None:
            self._world.channel.phase = phase

    def failure(self, error: Exception, step: int) -> tuple[Exception, bool]:
        if agreement.is_lost(error):
            found = agreement.lost_rank(error, f"after step {step}")
            alive = {*range(self._count)} - {*found.ranks}
            replaces = found.lost and 0 in found.ranks and self._rank == min(alive)
            return found, self._sharding is None and (self.is_main or replaces)
        channel = None if self._world is None else self._world.channel
        if channel is not None:
            channel.report(error, origin=True)
        error.add_note(f"This is rank {self._rank} of {self._count} on {socket.gethostname()}.")
        if self._sharding is None:
            return error, self.is_main
        # Parts of one state can be saved only if all ranks have ended after the same step.
        return error, channel is not None and _ended_alike(channel)

    def _shared(self, state: Any) -> Iterator[tuple[str, Any]]:
        """Yield the path and the leaf for each leaf of the state that is not sharded."""
        if self._sharding is None:
            yield from zip(tree.paths(state), tree.leaves(state), strict=True)
            return
        for path, leaf, shape in self._sharding.leaves(state, is_local=True):
            if shape is None:
                yield path, leaf

    def _timeout(self) -> dict[str, Any]:
        """Return `{"timeout": ...}`, the time-out of the process group; `{}` if it is unknown."""
        return {} if self._world is None else {"timeout": self._world.timeout}


class RankClock(Clock):
    """Clock that returns rank 0's time, so that time-based callbacks act at the same step on all ranks.

    The ranks exchange the time at each boundary: a step after which the run logs, evaluates or saves.

    Attributes:
        agreed: the total of rank 0 at the last boundary, in seconds.
    """

    agreed = 0.0

    def total(self) -> float:
        return self.agreed

    def own(self) -> float:
        """Return the seconds since this rank's clock was created, including pauses."""
        return super().total()


class RankSignals(Signals):
    """Signal handler of one of several ranks: a signal ends all ranks after the same step.

    Attributes:
        raw: number of the first signal that this process received; `None` before it.
    """

    def __init__(self, world: World | None) -> None:
        super().__init__()
        self.raw: int | None = None
        self._channel = None if world is None else world.channel
        self._timeout = 0.0 if world is None else world.timeout
        self._requested = False

    def after_step(self, step: int) -> int | None:
        channel = self._channel
        if channel is None or self.received is not None:
            return self.received
        if self.raw is not None and not self._requested:
            self._requested = True
            channel.request_stop(self.raw)
        if not channel.continues_after(step, self._timeout):
            assert channel.stop is not None
            self.received = channel.stop[1]
        return self.received

    def _first(self) -> int | None:
        return self.raw

    def _receive(self, number: int) -> None:
        received = self.received
        super()._receive(number)
        self.raw, self.received = number, received


def _ended_alike(channel: Channel) -> bool:
    """Return True if every rank itself raised an exception in the same phase of the same step."""
    here = (channel.step, channel.phase())
    try:
        reports = channel.reports()
    except RuntimeError:  # the store is lost
        return False
    return all(one.origin and (one.step, one.phase) == here for one in reports)


def _on_host(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf


def _described(action: Action) -> str:
    name = getattr(action, "name", "") or getattr(action, "tag", "")
    return f"{type(action).__name__}({name})"


def _digests(batch: Any) -> dict[str, str]:
    """Return a digest of each tensor of a batch, and the text of each other leaf, by path."""
    return {
        path: leaf_digest(x, path) if isinstance(x, torch.Tensor) else repr(x)
        for path, x in zip(tree.paths(batch), tree.leaves(batch), strict=True)
    }


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, torch.Tensor):
        return f"{type(leaf).__name__} {leaf!r}"
    whole = dtype_and_shape(leaf.dtype, leaf.shape)
    return whole.replace(f"[{leaf.shape[0]}", "[*", 1) if leaf.ndim else whole


def _version() -> str:
    return importlib.metadata.version("ftrain")
