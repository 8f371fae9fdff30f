"""Recurrent layers as one operator of the graph.

Traced as torch runs them, an LSTM unrolls into one cell a time step (148 s to compile 64 steps), or
becomes an oneDNN layer that inductor cannot lower (torch 2.13). So while `compile` traces, `nn.LSTM`,
`nn.GRU` and `nn.RNN` become `ftrain::rnn`, whose body is torch's own kernel: constant compile time, the
same bits as in eager mode. Its backward runs the forward again and differentiates that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ftrain.core import _torch

__all__ = ["RecurrentLayers"]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_KINDS = {
    torch._VF.lstm: "lstm",
    torch._VF.gru: "gru",
    torch._VF.rnn_tanh: "rnn_tanh",
    torch._VF.rnn_relu: "rnn_relu",
}


class RecurrentLayers(TorchFunctionMode):
    """While this stands, recurrent layers without dropout run as `ftrain::rnn`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kind = _KINDS.get(func)
        if kind is None or not isinstance(args[3], bool):  # packed sequences have their sizes there
            return func(*args, **(kwargs or {}))
        x, hx, weights, biases, layers, dropout, training, both_ways, batch_first = args
        if dropout and training:
            return func(*args, **(kwargs or {}))
        start = list(hx) if kind == "lstm" else [hx]
        options = (
            kind,
            biases,
            layers,
            dropout,
            training,
            both_ways,
            batch_first,
            _autocast(x.device.type),
        )
        y, h, c = _apply(options, len(start), x, *start, *weights)
        return (y, h, c) if kind == "lstm" else (y, h)


def _run(
    x: torch.Tensor,
    start: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    kind: str,
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
    autocast: str,
) -> tuple[torch.Tensor, ...]:
    layer = getattr(torch._VF, kind)
    # Dropout that does not act (in evaluation) still decides which kernel torch takes.
    hx = list(start) if kind == "lstm" else start[0]
    with contextlib.ExitStack() as stack:
        if autocast:
            dtype = getattr(torch, autocast)
            stack.enter_context(torch.autocast(x.device.type, dtype, cache_enabled=False))
        output = layer(
            x, hx, list(weights), biases, layers, dropout, training, both_ways, batch_first
        )
    dtype = _dtype(x, start, kind, autocast)
    return tuple(part.to(dtype) for part in output)


def _autocast(device: str) -> str:
    """The dtype that autocast has on, by name; "" without."""
    if not torch.is_autocast_enabled(device):
        return ""
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _dtype(x: torch.Tensor, start: Sequence[torch.Tensor], kind: str, autocast: str) -> torch.dtype:
    """What torch returns: on the CPU, a GRU under autocast keeps the precision of its state."""
    if not autocast:
        return x.dtype
    dtype: torch.dtype = getattr(torch, autocast)
    is_decomposed = kind == "gru" and x.device.type == "cpu"
    return torch.promote_types(start[0].dtype, dtype) if is_decomposed else dtype


@torch.library.custom_op("ftrain::rnn", mutates_args=())
def _rnn(
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    kind: str,
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
    autocast: str,
) -> Tensors:
    output = _run(
        x, start, weights, kind, biases, layers, training, both_ways, batch_first, autocast
    )
    y, h, c = output if len(output) == 3 else (*output, output[0].new_empty(0))
    return _time_major(y, batch_first), h.contiguous(), c.contiguous()


@_rnn.register_fake
def _(
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    kind: str,
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
    autocast: str,
) -> Tensors:
    # The hidden size is the initial state's: an LSTM with projections has another for its cells.
    dtype = _dtype(x, start, kind, autocast)
    y = x.new_empty((*x.shape[:-1], start[0].shape[-1] * (1 + both_ways)), dtype=dtype)
    c = x.new_empty(start[1].shape if kind == "lstm" else 0, dtype=dtype)
    return _time_major(y, batch_first), x.new_empty(start[0].shape, dtype=dtype), c


def _time_major(y: torch.Tensor, batch_first: bool) -> torch.Tensor:
    """`y` with time slowest in memory, as torch lays it out: sums over it keep their bits."""
    if not batch_first or y.ndim < 3:
        return y.contiguous()
    return y.transpose(0, 1).contiguous().transpose(0, 1)


@torch.library.custom_op("ftrain::rnn_backward", mutates_args=())
def _rnn_backward(
    grads: list[torch.Tensor],
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    kind: str,
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
    autocast: str,
) -> list[torch.Tensor]:
    with _torch.with_autograd(), torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (x, *start, *weights)]
        n = 1 + len(start)
        output = _run(
            inputs[0],
            inputs[1:n],
            inputs[n:],
            kind,
            biases,
            layers,
            dropout,
            training,
            both_ways,
            batch_first,
            autocast,
        )
        found = torch.autograd.grad(output, inputs, grads[: len(output)], allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g.contiguous()
        for t, g in zip(inputs, found, strict=True)
    ]


@_rnn_backward.register_fake
def _(
    grads: list[torch.Tensor],
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    kind: str,
    biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
    autocast: str,
) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t in (x, *start, *weights)]


class _Differentiable(torch.autograd.Function):
    """`_rnn` with its gradient: a Function, not `register_autograd`, so that torch.func takes it."""

    @staticmethod
    def forward(options: tuple[Any, ...], n_start: int, *tensors: torch.Tensor) -> Tensors:
        x, *rest = tensors
        output: Tensors = _rnn(x, rest[:n_start], rest[n_start:], *options)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, ctx.n_start, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        n = ctx.n_start
        return (None, None, *_rnn_backward(list(grads), x, rest[:n], rest[n:], *ctx.options))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], options: Any, n_start: int, *tensors: torch.Tensor
    ) -> tuple[Tensors, tuple[int, int, int]]:
        """One run for each: every model of a sweep has weights of its own."""
        outputs = [
            _apply(options, n_start, *_row(tensors, in_dims[2:], i)) for i in range(info.batch_size)
        ]
        y, h, c = (torch.stack(column) for column in zip(*outputs, strict=True))
        return (y, h, c), (0, 0, 0)


_apply: Callable[..., Tensors] = _Differentiable.apply


def _vmap_backward(
    info: Any, in_dims: Any, grads: Any, x: Any, start: Any, weights: Any, *options: Any
) -> tuple[list[torch.Tensor], list[int]]:
    lists = zip((grads, start, weights), (in_dims[0], in_dims[2], in_dims[3]), strict=True)
    split = [[_row(tensors, dims, i) for i in range(info.batch_size)] for tensors, dims in lists]
    rows = [
        _rnn_backward(split[0][i], *_row([x], [in_dims[1]], i), split[1][i], split[2][i], *options)
        for i in range(info.batch_size)
    ]
    found = [torch.stack(column) for column in zip(*rows, strict=True)]
    return found, [0] * len(found)


_rnn_backward.register_vmap(_vmap_backward)


def _row(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], i: int) -> list[torch.Tensor]:
    return [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)]
