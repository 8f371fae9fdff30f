"""Optimizer whose parameters, gradients and state are divided by rows over several ranks.

Read next: `_sharded_tensor.py`, by which every optimizer computes what it computes in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_collectives import Group
from ftrain.core._torch_fake import fake_mode
from ftrain.core._torch_wrapper import plain
from ftrain.core.optimizer import Optimizer
from ftrain.distributed import _sharded_reductions  # noqa: F401  # registers its rules
from ftrain.distributed._sharded_tensor import ShardedTensor, local_rows, rows_of

__all__ = ["Rows", "ShardedOptimizer", "global_tensors", "local_tensors", "sharded_rows"]

#: For each leaf of a tree, the number of rows of the whole tensor; `None` for a replicated leaf.
Rows = Sequence[int | None]


def sharded_rows(shape: Sequence[int], group: Group) -> int | None:
    """Return the number of rows of a tensor to shard; `None` if it has too few rows to be sharded.

    A tensor is sharded if it has at least as many rows as there are ranks.
    """
    if group.size == 1 or not shape or shape[0] < group.size:
        return None
    return shape[0]


def global_tensors(values: Any, rows: Rows, group: Group) -> Any:
    """Convert a tree of this rank's rows to a tree of `ShardedTensor`s with the whole shapes.

    Args:
        values: a tree of tensors; those that are `ShardedTensor`s already stay unchanged.
        rows: the number of rows of each whole leaf.
        group: the ranks.
    """
    leaves, treedef = tree.flatten(values)
    pairs = zip(leaves, rows, strict=True)
    return tree.unflatten(
        treedef,
        [
            x if n is None or isinstance(x, ShardedTensor) else ShardedTensor(x, n, group)
            for x, n in pairs
        ],
    )


def local_tensors(values: Any, rows: Rows, group: Group) -> Any:
    """Return this rank's rows of each tensor in a tree of sharded or whole tensors, padded by zeros."""
    leaves, treedef = tree.flatten(values)
    return tree.unflatten(treedef, [_local(x, n, group) for x, n in zip(leaves, rows, strict=True)])


def _local(x: Any, rows: int | None, group: Group) -> Any:
    if rows is None:
        return plain(x)
    if not isinstance(x, ShardedTensor):
        return local_rows(plain(x), group)
    n, real = rows_of(rows, group)
    if real == n:
        return x.local
    # An update may change the zeros of the padding, but a state must depend on its whole tensors only.
    return torch.cat([x.local.narrow(0, 0, real), x.local.new_zeros((n - real, *x.shape[1:]))])


class ShardedOptimizer:
    """Optimizer that keeps this rank's rows of its state, and updates this rank's parameter rows.

    Args:
        optimizer: the optimizer of one process.
        params: the whole parameters; only shapes and dtypes are read.
        rows: the whole number of rows of each parameter; `None` for a replicated one.
        group: the ranks.

    Attributes:
        param_rows: the number of rows of each whole parameter.
        state_rows: the number of rows of each whole leaf of the optimizer's state. A leaf is sharded if
            it is computed from sharded parameters by elementwise operators and reductions within rows.
        state_paths: the path of each leaf of the optimizer's state.
        state_shapes: the whole shape of each leaf of the optimizer's state.
    """

    def __init__(self, optimizer: Optimizer, params: Any, rows: Rows, group: Group) -> None:
        self.optimizer, self.group = optimizer, group
        self.param_rows = rows
        try:
            with torch.no_grad(), fake_mode():
                state = optimizer.init(self._wrapped(_locals(params, self.param_rows, group)))
        except Exception as error:
            error.add_note("while finding which leaves of the optimizer's state are sharded")
            raise
        self.state_rows = [
            x.shape[0] if isinstance(x, ShardedTensor) else None for x in tree.leaves(state)
        ]
        self.state_paths = tree.paths(state)
        self.state_shapes = [tuple(x.shape) for x in tree.leaves(state)]

    def init(self, params: Any) -> Any:
        """Return this rank's rows of the optimizer's state, from its rows of the parameters."""
        state = self.optimizer.init(self._wrapped(params))
        return local_tensors(state, self.state_rows, self.group)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """Return this rank's rows of the updates and of the new optimizer state."""
        updates, new = self.optimizer.update(
            self._wrapped(grads),
            global_tensors(state, self.state_rows, self.group),
            None if params is None else self._wrapped(params),
            **{name: self._extra(name, value) for name, value in extra.items()},
        )
        return (
            local_tensors(updates, self.param_rows, self.group),
            local_tensors(new, self.state_rows, self.group),
        )

    def _wrapped(self, params: Any) -> Any:
        return global_tensors(params, self.param_rows, self.group)

    def _extra(self, name: str, value: Any) -> Any:
        if name == "grad_fn":
            return self._grad_fn(value)
        return _no_value_fn if name == "value_fn" else value

    def _grad_fn(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def grad_fn(params: Any) -> Any:
            return self._wrapped(fn(local_tensors(params, self.param_rows, self.group)))

        return grad_fn


def _no_value_fn(params: Any) -> Any:
    raise NotImplementedError(
        "fully_sharded: expected an optimizer that does not differentiate the loss itself, got one that "
        "calls `value_fn`, such as optim.sophia or optim.lbfgs with a line search. Use data_parallel "
        "for this optimizer, or another optimizer."
    )


def _locals(params: Any, rows: Rows, group: Group) -> Any:
    """Return uninitialized tensors in the shapes of this rank's rows of the parameters."""
    leaves, treedef = tree.flatten(params)
    shapes = [
        x.shape if n is None else (rows_of(n, group)[0], *x.shape[1:])
        for x, n in zip(leaves, rows, strict=True)
    ]
    return tree.unflatten(
        treedef,
        [torch.empty(shape, dtype=x.dtype) for shape, x in zip(shapes, leaves, strict=True)],
    )
