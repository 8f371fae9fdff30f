"""Key-value stores of `torch.distributed`, with the types that its stubs leave out.

Tested with torch 2.13. The classes have public names in `torch.distributed` since torch 1.4,
`Store.clone` exists since 2.6, and `_get_default_store`, which torch's own `monitored_barrier` uses,
since 1.7; builds without `torch.distributed` raise ImportError here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

__all__ = ["Store", "clone", "default_store", "hash_store", "prefixed", "tcp_store"]


def hash_store() -> Store:
    """Return a key-value store in the memory of this process."""
    return HashStore()


def prefixed(prefix: str, store: Store) -> Store:
    """Return a view of a key-value store that adds a prefix to every key."""
    return PrefixStore(prefix, store)


def tcp_store(host: str, port: int, server: bool, timeout: timedelta) -> Store:
    """Return a client of a networked key-value store; with `server`, run the store in this process."""
    return TCPStore(host, port, None, server, timeout, wait_for_workers=False)


def clone(store: Store) -> Store:
    """Return another client of a store: one thread that waits on a client blocks its other threads."""
    found: Any = store
    cloned: Store = found.clone()
    return cloned


def default_store() -> Any:
    """Return the key-value store with which the default process group was formed.

    Raises:
        ValueError: no process group was formed.
    """
    return dist.distributed_c10d._get_default_store()
