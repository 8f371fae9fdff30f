"""Process group that `initialize` made for this process."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from ftrain.core._torch_stores import Store
from ftrain.distributed._heartbeats import Channel

__all__ = ["World", "control_group", "current", "set_current"]


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Process group of all ranks, with its mesh, its rendezvous store and its heartbeat channel.

    Attributes:
        mesh: the mesh of all ranks, with one axis.
        control: a gloo group of all ranks for Python values, whose collectives cannot be mixed up with
            those of a step.
        store: the rendezvous store.
        channel: the heartbeats and stop requests of the ranks; `None` for a single rank.
        timeout: seconds after which a collective fails.
    """

    mesh: DeviceMesh
    control: ProcessGroup | None
    store: Store
    channel: Channel | None
    timeout: float


_current: World | None = None


def current() -> World | None:
    """Return the process group that `initialize` made; `None` outside of its `with` block."""
    return _current


def set_current(world: World | None) -> None:
    """Set the process group that `current` returns."""
    global _current  # noqa: PLW0603  # one process group a process, as in torch
    _current = world


def control_group(mesh: Any) -> Any:
    """Return the process group through which the ranks of a mesh exchange Python values."""
    world = _current
    if world is not None and mesh is world.mesh:
        return world.control
    return mesh.get_group()
