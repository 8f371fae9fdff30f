"""Metrics of all ranks, merged in rank order inside the graph of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_collectives import Group, all_gather
from ftrain.core._torch_layouts import require_same
from ftrain.core.metrics import Metrics, PerExample, as_metrics
from ftrain.core.state import TrainState
from ftrain.distributed._buckets import gathered

__all__ = ["merged_evaluation", "merged_over_ranks", "same_on_all_ranks"]


def merged_over_ranks(metrics: Metrics, group: Group) -> Metrics:
    """Return the metrics of all ranks, merged in rank order, the same bits on every rank.

    Values of each example, and other metrics that concatenate, must have the same number of entries on
    each rank: their shapes are compared in the graph, which waits for the device if it is not the CPU.
    """
    metrics = as_metrics(metrics.entries, "metrics")  # wraps plain tensors in metrics
    growing = {name: x for name, x in metrics.entries.items() if _grows(x)}
    if growing and group.size > 1:
        sizes = [n for x in tree.leaves(growing) for n in x.shape]
        checked = same_on_all_ranks(
            growing, sizes, group, f"the shapes of the metrics {sorted(growing)}"
        )
        metrics = Metrics({**metrics.entries, **checked})
    stacked = gathered(metrics, group)
    each = [tree.map(lambda x, i=i: x[i], stacked) for i in range(group.size)]
    merged: Metrics = functools.reduce(lambda before, latest: before.merge(latest), each)
    return merged


def merged_evaluation(
    eval_step: Callable[[TrainState, Any], Metrics], group: Group
) -> Callable[[TrainState, Any], Metrics]:
    """Return an `eval_step` that merges the metrics of the batches of all ranks."""
    return lambda state, batch: merged_over_ranks(eval_step(state, batch), group)


def _grows(metric: Any) -> bool:
    return isinstance(metric, PerExample) or bool(getattr(metric, "grows", False))


def same_on_all_ranks(values: Any, numbers: list[int], group: Group, what: str) -> Any:
    """Return a tree of tensors unchanged, after a check that `numbers` are equal on all ranks.

    Args:
        values: the tree; the check is in the graph, and operators that read the result run after it.
        numbers: integers that are constant in the trace, equally many on every rank.
        group: the ranks.
        what: the name of the numbers in the message.
    """
    leaves, structure = tree.flatten(values)
    own = torch.tensor(numbers, dtype=torch.int64, device=leaves[0].device)
    table = all_gather(own, group)
    return tree.unflatten(structure, [require_same(x, table, what) for x in leaves])
