"""Inductor settings, and graph passes that keep donated values correct and merge equal expressions.

This module is imported only when a program is compiled, because torch's compiler takes a second to load.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ftrain.core._recomputation import START
from ftrain.core._torch_dispatch import OpOverload, schema_of
from ftrain.core._torch_inductor import onednn_product
from ftrain.core._torch_inductor_order import run_after
from ftrain.core._torch_inductor_split import inline_small_splits
from ftrain.core._torch_passes import CustomGraphPass
from ftrain.core._torch_tensors import storage_id
from ftrain.core.compile._early_reductions import SUM, WAIT, collective
from ftrain.core.compile._products import LoopSmallProducts, OneDNNProducts
from ftrain.core.random._threefry import PARITY, ROTATIONS

__all__ = ["MergeEqual", "ReadBeforeWrite", "passes"]

copy_ = torch.ops.aten.copy_.default


def passes(donates: bool) -> dict[str, Any]:
    """Return inductor's settings with ftrain's passes; `donates`: the graph writes to its inputs."""
    inline_small_splits(torch.ops.ftrain.threefry_split.default, PARITY, ROTATIONS)
    first = _InTurn(MergeEqual(), LoopSmallProducts())
    last = _InTurn(OneDNNProducts(), *([ReadBeforeWrite()] if donates else []), WaitLate())
    return {
        "post_grad_custom_pre_pass": first,
        "post_grad_custom_post_pass": last,
        # Waking a second thread takes 10 µs, so each thread must get at least this number of elements of
        # a loop. With the default (512), the layers of a step on 8 rows of 16 ran on two threads, in 59
        # µs per step instead of 49 µs.
        "cpp.min_chunk_size": 4096,
    }


class _InTurn(CustomGraphPass):  # type: ignore[misc]  # untyped in torch
    def __init__(self, *passes: Callable[[fx.Graph], None]) -> None:
        self.passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        for each in self.passes:
            each(graph)

    def uuid(self) -> Any:
        """Return what the machine code depends on besides the graph: a part of inductor's cache key."""
        names = "+".join(type(each).__name__ for each in self.passes)
        return f"ftrain {names} {_sources()} oneDNN={onednn_product() is not None}"


@functools.cache
def _sources() -> str:
    """Return a hash of the files that decide how ftrain's graphs become machine code."""
    core = Path(__file__).parents[1]
    files = [
        *Path(__file__).parent.glob("*.py"),
        *core.glob("_torch_inductor*.py"),
        core / "_recomputation.py",
        core / "random" / "_threefry.py",
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class MergeEqual:
    """Pass that merges equal expressions, such as the gradient norms for the metrics and for clipping.

    AOTAutograd does this only when it partitions a graph into forward and backward, which it does not do
    for a whole step. The pass runs on the functional graph, whose only writes come last, so that equal
    expressions stay equal.
    """

    def __call__(self, graph: fx.Graph) -> None:
        seen: dict[Any, fx.Node] = {}
        for node in list(graph.nodes):
            if node.target is START:
                seen = {}
            if node.op != "call_function" or not _is_pure(node.target):
                continue
            first = seen.setdefault(_expression(node), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)


class WaitLate:
    """Inductor pass that keeps waits for sums over ranks after the last sum that starts before them.

    Otherwise an operator on a received gradient may be merged with one of the backward pass, which then
    waits.
    """

    def __call__(self, graph: fx.Graph) -> None:
        latest: fx.Node | None = None
        for node in list(graph.nodes):
            name = collective(node)
            if name == SUM:
                latest = node
            elif name == WAIT and latest is not None:
                (sent,) = node.all_input_nodes
                if collective(sent) == SUM and sent is not latest:
                    run_after(graph, node, latest)


class ReadBeforeWrite:
    """Pass that clones old values needed for the new state before any of them is overwritten.

    With `new.target = old.params`, the graph ends in `params.copy_(new_params)` and
    `target.copy_(params)`. In the trace, the second source is a clone made before the first copy.
    Inductor removes clones as no-ops, so that the target would get the new parameters. Similarly,
    `w.copy_(view)`, with a view of a tensor that is lazily computed from `w`, would read and write `w`
    in one loop in undefined order. (Both in torch 2.13.) A clone in between prevents both. This pass
    runs after the removal of clones; inductor removes clones that are not needed.
    """

    def __call__(self, graph: fx.Graph) -> None:
        writes = list(graph.find_nodes(op="call_function", target=copy_))
        for write in writes:
            source = write.args[1]
            if isinstance(source, fx.Node) and (source.op == "placeholder" or _is_view(source)):
                with graph.inserting_before(writes[0]):
                    clone = graph.call_function(torch.ops.aten.clone.default, (source,))
                clone.meta["val"] = source.meta["val"].clone()
                write.update_arg(1, clone)


def _is_pure(target: Any) -> bool:
    """Return True for an operator without writes, random draws or uninitialized memory."""
    if not isinstance(target, OpOverload) or schema_of(target).is_mutable:
        return False
    name = schema_of(target).name
    return torch.Tag.nondeterministic_seeded not in target.tags and "empty" not in name


def _expression(node: fx.Node) -> Any:
    def hashable(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return tuple(hashable(y) for y in x)
        # Compared by repr, since 0.0 == -0.0 and 1 == True.
        return x if isinstance(x, fx.Node) else (type(x), repr(x))

    kwargs = sorted(node.kwargs.items())
    return node.target, hashable(node.args), tuple((k, hashable(v)) for k, v in kwargs)


def _is_view(node: fx.Node) -> bool:
    return any(_storage(source) == _storage(node) for source in node.all_input_nodes)


def _storage(node: Any) -> int | None:
    value = node.meta.get("val")
    return storage_id(value) if isinstance(value, torch.Tensor) else None
