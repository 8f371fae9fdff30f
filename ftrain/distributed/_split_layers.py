"""Linear and embedding layers whose weight is cut over ranks, and the activations between them.

Column-wise, a rank computes some of the output features; row-wise, it multiplies with some of the
input features, and the products are summed over ranks. Inputs and outputs are whole and the same on
every rank, so each collective of the forward pass has another one as its derivative:

    column    copied (backward: all-reduce)    -> product -> gathered (backward: own columns)
    row       own columns (backward: gathered) -> product -> all-reduce (backward: copied)

A column-wise layer returns a `SplitActivation`, which is gathered by the first function that is not
elementwise: a row-wise layer after it takes the columns as they are, and neither gathers.

Read next: `_split_model.py`, which puts these in the place of a model's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._torch_collectives import Group, all_gather, all_reduce, all_to_all
from ftrain.core._torch_wrapper import wrap
from ftrain.distributed._lazy_tensor import LazyTensor
from ftrain.distributed._sharded_tensor import ShardedTensor, local_rows, rows_of, whole

__all__ = ["FORWARDS", "LayerParameter", "SplitActivation"]


class LayerParameter(LazyTensor, ShardedTensor):
    """Parameter of a layer that is cut over ranks; a torch function that reads it gathers it.

    Code outside of the layer that reads it, such as a penalty over `model.parameters()` or a layer with
    a tied weight, gets the whole parameter, with its gradient.
    """

    what = "a parameter of a layer that is cut over ranks"

    @staticmethod
    def of(local: torch.Tensor, rows: int, group: Group) -> LayerParameter:
        """Return the parameter with `rows` rows in total; `local` has those of this rank."""
        local = local.contiguous()
        self: LayerParameter = _Unread.apply(local, rows, group)  # type: ignore[no-untyped-call]
        self.local = local  # with its graph
        return self

    def gathered(self) -> torch.Tensor:
        """Return the whole parameter, gathered; all ranks must compute the same gradient of it."""
        found: torch.Tensor = _Whole.apply(self.local, self.shape[0], self.group)  # type: ignore[no-untyped-call]
        return found


class _Whole(torch.autograd.Function):
    """Autograd function that gathers the rows of all ranks; the backward returns this rank's rows."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, rows: int, group: Group) -> torch.Tensor:
        ctx.group = group
        return whole(local, rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return local_rows(grad, ctx.group), None, None


class _Unread(_Whole):
    """Autograd function that returns this rank's rows as a `LayerParameter`, without gathering.

    A gradient that reaches the `LayerParameter` itself is whole; the backward takes this rank's rows.
    """

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, rows: int, group: Group) -> torch.Tensor:
        ctx.group = group
        return LayerParameter(local, rows, group)


class SplitActivation(LazyTensor):
    """Activation that is cut along its last axis: this rank has some of the columns.

    Attributes:
        local: these columns, the last ones padded: `[..., n]`.
        group: the ranks.
    """

    what = "the output of a column-wise layer"
    local: torch.Tensor
    group: Group

    @staticmethod
    def __new__(cls, local: torch.Tensor, size: int, group: Group) -> SplitActivation:
        """Return the activation with `size` columns in total; `local` has those of this rank."""
        shape = (*local.shape[:-1], size)
        strides = torch.empty(shape, device="meta").stride()
        self: SplitActivation = wrap(cls, shape, local, strides)
        self.local, self.group = local, group
        return self

    @staticmethod
    def of(local: torch.Tensor, size: int, group: Group) -> SplitActivation:
        """Return the activation with `size` columns, differentiable in this rank's columns `local`."""
        self: SplitActivation = _UnreadColumns.apply(local, size, group)  # type: ignore[no-untyped-call]
        self.local = local
        return self

    def gathered(self) -> torch.Tensor:
        """Return the whole activation, gathered; all ranks must compute the same gradient of it."""
        found: torch.Tensor = _AllColumns.apply(self.local, self.shape[-1], self.group)  # type: ignore[no-untyped-call]
        return found

    def plain(self) -> torch.Tensor:
        """Return the whole activation, gathered from all ranks without an autograd graph."""
        return _joined(self.local.detach(), self.shape[-1], self.group)

    def memory(self) -> torch.Tensor:
        """Return this rank's columns, the part of the activation that this process has in memory."""
        return self.local

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch gives a default
        """Return a text with the shape and the rank, without reading values."""
        rank = f"rank={self.group.rank} of {self.group.size}"
        return f"SplitActivation(shape={tuple(self.shape)}, {rank})"

    @classmethod
    def __torch_function__(  # type: ignore[override]  # torch gives defaults
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in ELEMENTWISE:
            leaves = torch_pytree.tree_leaves((args, kwargs or {}))
            tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
            first = tensors[0]
            if all(
                type(x) is cls and x.shape == first.shape and x.group == first.group  # type: ignore[attr-defined]
                for x in tensors
            ):
                local_args, local_kwargs = torch_pytree.tree_map_only(
                    cls, lambda x: x.local, (tuple(args), kwargs or {})
                )
                result = func(*local_args, **local_kwargs)
                return cls.of(result, first.shape[-1], first.group)  # type: ignore[attr-defined]
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch gives defaults
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = torch_pytree.tree_map_only(cls, cls.plain, (tuple(args), kwargs or {}))
        return func(*args, **kwargs)


_UNARY = ["abs", "exp", "relu", "sigmoid", "square", "tanh"]
_BINARY = ["add", "mul", "sub"]
_FUNCTIONS = ["celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish"]
_FUNCTIONS += ["relu", "relu6", "selu", "silu", "softplus", "softsign", "tanhshrink"]

#: Functions of torch that compute each entry of an activation from the same entry of their arguments.
ELEMENTWISE: frozenset[Any] = frozenset(
    [getattr(torch, name) for name in _UNARY + _BINARY]
    + [getattr(torch.Tensor, name) for name in _UNARY + _BINARY]
    + [getattr(torch.Tensor, f"__{name}__") for name in _BINARY]
    + [getattr(F, name) for name in _FUNCTIONS]
)


def _part(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Return this rank's entries of a whole tensor's last axis, padded with zeros."""
    n, _ = rows_of(x.shape[-1], group)
    missing = n * group.size - x.shape[-1]
    padded = F.pad(x, (0, missing)) if missing else x
    return padded.narrow(-1, group.rank * n, n)


def _joined(local: torch.Tensor, size: int, group: Group) -> torch.Tensor:
    """Return all `size` entries of the last axis, gathered from the entries `local` of each rank."""
    padded = all_gather(local, group).movedim(0, -2).flatten(-2)
    return padded if padded.shape[-1] == size else padded.narrow(-1, 0, size).contiguous()


def _summed(x: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the sum over ranks, computed in float32 or wider, so that it is rounded only once."""
    return all_reduce(x.to(torch.promote_types(x.dtype, torch.float32)), group).to(x.dtype)


class _AllColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, size: int, group: Group) -> torch.Tensor:
        ctx.group = group
        return _joined(local, size, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _part(grad, ctx.group), None, None


class _UnreadColumns(_AllColumns):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, size: int, group: Group) -> torch.Tensor:
        ctx.group = group
        return SplitActivation(local, size, group)


class _OwnColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group, ctx.size = group, x.shape[-1]
        return _part(x, group).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _joined(grad, ctx.size, ctx.group), None


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _summed(grad, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Group) -> torch.Tensor:
        return _summed(part, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return grad, None


class _Columns(torch.autograd.Function):
    """Autograd function from this rank's rows of a matrix to this rank's columns of it."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, rows: int, group: Group) -> torch.Tensor:
        ctx.group, ctx.columns = group, local.shape[1]
        n, _ = rows_of(local.shape[1], group)
        padded = F.pad(local, (0, n * group.size - local.shape[1]))
        blocks = padded.reshape(-1, group.size, n).movedim(1, 0)  # [rank, own rows, its columns]
        return all_to_all(blocks, group).flatten(0, 1).narrow(0, 0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        group = ctx.group
        n, _ = rows_of(grad.shape[0], group)
        padded = F.pad(grad, (0, 0, 0, n * group.size - grad.shape[0]))
        blocks = all_to_all(
            padded.reshape(group.size, n, -1), group
        )  # [rank, own rows, its columns]
        return blocks.movedim(0, 1).flatten(1).narrow(1, 0, ctx.columns), None, None


def _columns(weight: LayerParameter) -> torch.Tensor:
    found: torch.Tensor = _Columns.apply(weight.local, weight.shape[0], weight.group)  # type: ignore[no-untyped-call]
    return found


def _column_linear(layer: Any, weight: LayerParameter, x: torch.Tensor) -> torch.Tensor:
    bias, group = layer.bias, weight.group
    if isinstance(bias, LayerParameter):
        bias = bias.local
    elif bias is not None:  # frozen, and therefore whole
        bias = local_rows(bias, group)
    x = x.gathered() if isinstance(x, SplitActivation) else x
    x = _Copied.apply(x, group)  # type: ignore[no-untyped-call]
    return SplitActivation.of(F.linear(x, weight.local, bias), weight.shape[0], group)


def _row_linear(layer: Any, weight: LayerParameter, x: torch.Tensor) -> torch.Tensor:
    group = weight.group
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"expected an input with {weight.shape[1]} features, got shape {tuple(x.shape)}. Check the "
            "outputs of the preceding layer."
        )
    is_split = isinstance(x, SplitActivation) and x.group == group
    own = x.local if is_split else _OwnColumns.apply(x, group)  # type: ignore[no-untyped-call, attr-defined]
    out: torch.Tensor = _Summed.apply(F.linear(own, _columns(weight)), group)  # type: ignore[no-untyped-call]
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def _column_embedding(layer: Any, weight: LayerParameter, x: torch.Tensor) -> torch.Tensor:
    own = F.embedding(x, _columns(weight), layer.padding_idx)
    return SplitActivation.of(own, weight.shape[1], weight.group)


def _row_embedding(layer: Any, weight: LayerParameter, x: torch.Tensor) -> torch.Tensor:
    group = weight.group
    n, real = rows_of(weight.shape[0], group)
    start, last = group.rank * n, (weight.shape[0] - 1) // n
    inside = torch.full_like(x, group.rank <= last, dtype=torch.bool)
    # An index out of range stays one: the first and the last rank look it up, which raises.
    if group.rank > 0:
        inside = inside & (x >= start)
    if group.rank < last:
        inside = inside & (x < start + n)
    table = weight.local.narrow(0, 0, max(real, 1))
    padding = None if layer.padding_idx is None else layer.padding_idx - start
    padding = padding if padding is not None and 0 <= padding < real else None
    found = F.embedding(torch.where(inside, x - start, 0), table, padding)
    out: torch.Tensor = _Summed.apply(torch.where(inside[..., None], found, 0), group)  # type: ignore[no-untyped-call]
    return out


Forward = Callable[[Any, LayerParameter, torch.Tensor], torch.Tensor]

#: The forward pass of a layer by its class and the way in which its weight is cut.
FORWARDS: dict[tuple[type[nn.Module], str], Forward] = {
    (nn.Linear, "column"): _column_linear,
    (nn.Linear, "row"): _row_linear,
    (nn.Embedding, "column"): _column_embedding,
    (nn.Embedding, "row"): _row_embedding,
}
