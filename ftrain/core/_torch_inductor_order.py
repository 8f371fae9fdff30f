"""Inductor's operator that makes one node of a graph run after others (private, torch 2.9 and later)."""

from __future__ import annotations

from typing import Any

from torch import fx

try:
    from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering
    from torch.utils._ordered_set import OrderedSet
except ImportError:
    preserve_node_ordering: Any = None  # type: ignore[no-redef]

__all__ = ["run_after"]


def run_after(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    """Make inductor run `node` after `other`, whatever it merges; older versions of torch ignore it."""
    if preserve_node_ordering is not None:
        preserve_node_ordering(graph, {node: OrderedSet([other])})
