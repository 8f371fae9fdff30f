"""Graph pass that sends gradients to other ranks during the backward pass.

A step computes all gradients, then copies them into buckets that the ranks sum. This pass moves each
sum, with the copies into its bucket, up to the place where the bucket's last gradient is known. The rest
of the backward pass then runs while the sum is under way; its wait stays where it was. The operators and
their inputs stay the same, and so do the bits.
"""

from __future__ import annotations

from operator import getitem

import torch
from torch import fx

from ftrain.core._torch_dispatch import schema_of
from ftrain.core.compile._graph import written_by

__all__ = ["SUM", "WAIT", "collective", "start_reductions_early"]

#: The library of the collectives that a graph holds, and the one that sums (torch 2.1 and later).
_LIBRARY = "_c10d_functional::"
SUM, WAIT = f"{_LIBRARY}all_reduce", f"{_LIBRARY}wait_tensor"

aten = torch.ops.aten
_COPIES = (
    aten.cat.default,
    aten.clone.default,
    aten.full.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten._to_copy.default,
)


def start_reductions_early(graph: fx.Graph) -> None:
    """Move each sum over ranks up to where the values that it needs are known.

    Nothing moves across an operator that writes to memory, or across another collective: all ranks
    start these in one order.
    """
    floor: fx.Node | None = None  # nothing moves above this node
    for node in list(graph.nodes):
        name = collective(node)
        if name == SUM:
            _move_up(node, floor)
        if written_by(node) or name not in ("", WAIT):
            floor = node


def collective(node: fx.Node) -> str:
    """Return the name of the collective, or wait for one, that a node is, or an empty string."""
    schema = schema_of(node.target) if node.op == "call_function" else None
    return schema.name if schema is not None and schema.name.startswith(_LIBRARY) else ""


def _move_up(reduction: fx.Node, floor: fx.Node | None) -> None:
    """Move a reduction up to the last product, or other large operator, that its values need.

    Views, elementwise operators and copies that it needs and that are below that operator move with it.
    """
    needed, moved = set(reduction.all_input_nodes), [reduction]
    place = reduction.prev
    while place is not floor and place.op == "call_function":
        if place in needed:
            if not _is_light(place):
                break
            moved.append(place)
            needed.update(place.all_input_nodes)
        place = place.prev
    for node in reversed(moved):
        if node is not place.next:
            place.append(node)
        place = node


def _is_light(node: fx.Node) -> bool:
    """Return True for a view, an elementwise operator, a copy or a constant, which may run earlier."""
    operator, schema = node.target, schema_of(node.target)
    if operator in _COPIES or schema is None:
        return operator in _COPIES or operator is getitem
    is_view = any(x.alias_info is not None for x in schema.returns)
    return is_view or torch.Tag.pointwise in getattr(operator, "tags", ())
