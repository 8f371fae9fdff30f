"""Functional collectives of torch: operators that a trace records, on plain tensors.

The operators of the library `_c10d_functional` are called directly, followed by a wait for the result.
Functions of `torch.distributed._functional_collectives` return a tensor subclass in eager mode, which
`torch.func.vjp` and optree do not see as a plain tensor. Inductor moves the wait to the first use.

Tested with torch 2.13. The import registers the shapes of the results, for traces. Builds without
`torch.distributed` raise ImportError here, so only `ftrain.distributed` imports this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as _registers_shapes  # noqa: F401
from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "Group",
    "all_gather",
    "all_reduce",
    "all_reduce_each",
    "all_to_all",
    "broadcast",
    "group_of",
    "reduce_scatter",
    "start_all_gather",
    "waited",
    "whole_group",
]

_OPERATORS = torch.ops._c10d_functional

Reduction = Literal["sum", "max", "min"]


@dataclass(frozen=True)
class Group:
    """Group of ranks that take part in a collective, as constants of a trace.

    Attributes:
        name: the name under which torch has registered the process group.
        rank: the position of this process in the group.
        size: the number of processes in the group.
    """

    name: str
    rank: int
    size: int


def group_of(mesh: DeviceMesh, axis: str | int | None = None) -> Group:
    """Return the group of this process along one axis of a mesh.

    Args:
        mesh: a mesh that contains this process.
        axis: the name or position of the axis; not needed for a mesh with one axis.

    Raises:
        ValueError: the mesh has several axes and none is given; this process is not in the mesh.
    """
    if axis is None and mesh.ndim != 1:
        raise ValueError(
            f"mesh: expected a mesh with one axis, got {mesh.ndim} axes {mesh.mesh_dim_names}. Pass one "
            "axis: mesh['name']."
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"mesh: expected a mesh that contains this process, rank {dist.get_rank()}, got ranks "
            f"{mesh.mesh.flatten().tolist()}. Call the step on these ranks only."
        )
    group = mesh.get_group(axis)
    return Group(group.group_name, dist.get_rank(group), dist.get_world_size(group))


def whole_group(mesh: DeviceMesh) -> Group:
    """Return the group of all processes of a mesh, in the order of the flattened mesh.

    Every process of the mesh must call it (`DeviceMesh._flatten`, torch 2.4 and later).
    """
    return group_of(mesh if mesh.ndim == 1 else mesh._flatten())


def all_reduce(tensor: torch.Tensor, group: Group, op: Reduction = "sum") -> torch.Tensor:
    """Return the elementwise sum (or maximum, minimum) of a tensor over the ranks of a group."""
    return waited(_OPERATORS.all_reduce(tensor.contiguous(), op, group.name))


def all_reduce_each(
    tensors: list[torch.Tensor], group: Group, op: Reduction = "sum"
) -> list[torch.Tensor]:
    """Return `all_reduce` of each tensor; all are sent before the first result is waited for."""
    sent = [_OPERATORS.all_reduce(x.contiguous(), op, group.name) for x in tensors]
    return [waited(x) for x in sent]


def all_gather(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the tensors of all ranks, stacked in rank order: `[...]` becomes `[ranks, ...]`."""
    flat = tensor.contiguous().reshape(-1)  # a 0-d tensor has no axis to concatenate along
    gathered = waited(_OPERATORS.all_gather_into_tensor(flat, group.size, group.name))
    return gathered.reshape(group.size, *tensor.shape)


def start_all_gather(tensors: list[torch.Tensor], group: Group) -> list[torch.Tensor]:
    """Start to gather several tensors from all ranks at once; `waited` completes each result.

    Args:
        tensors: contiguous, of the same shapes on every rank, `[n, ...]`.
        group: the ranks.

    Returns:
        The rows of all ranks of each tensor, in rank order: `[ranks * n, ...]`, without an autograd
        graph.
    """
    with _below_autograd():
        started: list[torch.Tensor] = _OPERATORS.all_gather_into_tensor_coalesced(
            tensors, group.size, group.name
        )
    return started


def reduce_scatter(tensor: torch.Tensor, group: Group, op: Reduction = "sum") -> torch.Tensor:
    """Return this rank's entry of the sum of a tensor over ranks: `[ranks, ...]` becomes `[...]`."""
    flat = tensor.contiguous().reshape(-1)
    scattered = _OPERATORS.reduce_scatter_tensor(flat, op, group.size, group.name)
    return waited(scattered).reshape(tensor.shape[1:])


def all_to_all(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Send entry `i` to rank `i`, and return the entries received, in rank order.

    Args:
        tensor: `[ranks, ...]`, of the same shape on every rank.
        group: the ranks.
    """
    given = tensor.contiguous()
    sizes = [1] * group.size
    return waited(_OPERATORS.all_to_all_single(given, sizes, sizes, group.name))


def broadcast(tensor: torch.Tensor, group: Group, source: int = 0) -> torch.Tensor:
    """Return the tensor of one rank of the group on every rank.

    Args:
        tensor: of the same shape and dtype on every rank.
        group: the ranks.
        source: the position in the group of the rank whose values are sent.
    """
    return waited(_OPERATORS.broadcast(tensor.contiguous(), source, group.name))


def waited(tensor: Any) -> torch.Tensor:
    """Return the result of a collective that has been started, once it is complete."""
    if tensor.requires_grad:
        done: torch.Tensor = _OPERATORS.wait_tensor(tensor)
        return done
    with _below_autograd():
        done = _OPERATORS.wait_tensor(tensor)
    return done


def _below_autograd() -> Any:
    """Return a context in which operators skip autograd (torch 1.10 and later).

    The derivatives of these operators are Python functions: a wait takes 7 µs with them, 1 µs without.
    """
    return torch._C._AutoDispatchBelowAutograd()
