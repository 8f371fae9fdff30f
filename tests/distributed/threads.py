"""Ranks as threads of one process, for many small checkpoints; `ranks.py` has real processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ftrain import tree
from ftrain.checkpoint import Manifest, Shard
from ftrain.checkpoint._draft import collect
from ftrain.checkpoint.shard import full_strides
from ftrain.distributed._peers import Peers
from ftrain.distributed.save import publish

T = TypeVar("T")
Layouts = list[dict[str, Shard]]


def each(ranks: int, fn: Callable[[Peers], T], timeout: float = 20.0) -> list[T | Exception]:
    """Call a function with the peers of each rank, at the same time; return results or exceptions."""
    store, found = dist.HashStore(), [None] * ranks

    def one(rank: int) -> None:
        try:
            found[rank] = fn(Peers(store, rank, ranks, "threads", timeout))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def layouts(state: Any, ranks: int, paths: list[str] | None = None) -> Layouts:
    """Return a layout for each rank: rows as even as possible, of leaves with an axis."""
    leaves = dict(zip(tree.paths(state), tree.leaves(state), strict=True))
    chosen = [path for path, x in leaves.items() if divisible(x)] if paths is None else paths
    return [
        {path: Shard.even(tuple(leaves[path].shape), rank, ranks) for path in chosen}
        for rank in range(ranks)
    ]


def divisible(leaf: torch.Tensor) -> bool:
    """Return True if the rows of a tensor follow one another in memory."""
    return leaf.ndim > 0 and full_strides(leaf[:1], Shard(tuple(leaf.shape), 0, len(leaf[:1]))) == (
        leaf.stride()
    )


def local(state: Any, layout: Mapping[str, Shard]) -> Any:
    """Return the state of a rank: views of the rows of its shards, and all other leaves unchanged."""
    pairs = zip(tree.paths(state), tree.leaves(state), strict=True)
    return tree.unflatten(
        tree.structure(state),
        [
            leaf[layout[path].start :][: layout[path].rows] if path in layout else leaf
            for path, leaf in pairs
        ],
    )


def saved(path: Path, states: list[Any], shards: Layouts, **options: Any) -> list[Any]:
    """Save the states of ranks; return the manifest or the exception of each."""
    keys = ("metadata", "step", "metrics", "fingerprint")
    given = [options.get(key) for key in keys]

    def one(peers: Peers) -> Manifest:
        state, layout = states[peers.rank], shards[peers.rank]
        return publish(lambda: collect(state, *given), layout, str(path), peers)

    return each(len(states), one, options.get("timeout", 20.0))


def blank(state: Any) -> Any:
    """Return a state of zeros with the memory layout of another state."""

    def like(leaf: torch.Tensor) -> torch.Tensor:
        if leaf.numel() == 0:
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True))
        return torch.zeros(extent, dtype=leaf.dtype).as_strided(leaf.shape, leaf.stride())

    return tree.map(like, state)


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Provide a directory in memory if possible, where syncing is free."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="ftrain-test-") as name:
        yield Path(name)
