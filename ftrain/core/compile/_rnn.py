"""Recurrent layers, each traced as one operator of the graph.

Traced as torch runs them, an LSTM unrolls into one cell a time step (148 s to compile 64 steps), or
becomes a oneDNN layer that inductor cannot lower (torch 2.13). So while `compile` traces, `nn.LSTM`,
`nn.GRU` and `nn.RNN` become `ftrain::rnn`, whose body is torch's own kernel: constant compile time, the
same bits as in eager mode. Its backward runs the forward again and differentiates that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import _torch
from ftrain.core._torch_dispatch import RECURRENT
from ftrain.core._torch_recurrent import recurrent_kernels

__all__ = ["KINDS", "recurrent_layer"]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def recurrent_layer(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a recurrent layer of `torch._VF` as the operator `ftrain::rnn`, unless dropout is active."""
    if not isinstance(args[3], bool):  # packed sequences have no bool there
        return func(*args, **kwargs)
    x, hx, weights, biases, layers, dropout, training, both_ways, batch_first = args
    if layers == 1 and x.device.type != "cpu":
        dropout = 0.0  # which does not act; cuDNN would draw a seed from the global generator
    if dropout and training:
        return func(*args, **kwargs)
    autocast = ""
    if torch.is_autocast_enabled(x.device.type):
        autocast = str(torch.get_autocast_dtype(x.device.type)).removeprefix("torch.")
    kind = KINDS[func]
    start = list(hx) if kind == "lstm" else [hx]
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *start, *weights))
    options = (biases, layers, float(dropout), training, both_ways, batch_first)
    layer = _Layer(kind, *options, autocast, graded)
    y, h, c = _apply(json.dumps(layer), len(start), x, *start, *weights)
    return (y, h, c) if kind == "lstm" else (y, h)


KINDS = {layer: name for name, layer in RECURRENT.items()}


class _Layer(NamedTuple):
    """Non-tensor arguments of `torch._VF`'s recurrent layers, passed to the operator as JSON."""

    kind: str
    biases: bool
    layers: int
    dropout: float  # does not act, yet decides which kernel torch takes
    training: bool
    both_ways: bool
    batch_first: bool
    autocast: str  # a dtype's name, or ""
    graded: (
        bool  # whether a gradient is taken: oneDNN then uses another kernel with other last bits
    )

    def run(
        self, x: torch.Tensor, start: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        layer = RECURRENT[self.kind]
        hx = list(start) if self.kind == "lstm" else start[0]
        with contextlib.ExitStack() as stack:
            if self.autocast:
                dtype = getattr(torch, self.autocast)
                stack.enter_context(torch.autocast(x.device.type, dtype, cache_enabled=False))
            stack.enter_context(recurrent_kernels(x.device.type))
            output = layer(x, hx, list(weights), *self[1:7])
        return tuple(part.to(self.dtype(x, start)) for part in output)

    def dtype(self, x: torch.Tensor, start: Sequence[torch.Tensor]) -> torch.dtype:
        """Return the dtype that torch gives to the output, with or without autocast."""
        if not self.autocast:
            return x.dtype
        dtype: torch.dtype = getattr(torch, self.autocast)
        # These compute the next state from the state and rounded gates, outside of autocast.
        promotes = self.kind == "gru" or (self.kind == "lstm" and dtype == torch.float16)
        is_decomposed = x.device.type == "cpu" and promotes
        return torch.promote_types(start[0].dtype, dtype) if is_decomposed else dtype

    def time_major(self, y: torch.Tensor) -> torch.Tensor:
        """Return `y` with time outermost in memory, so that its sums have the bits of torch's."""
        if not self.batch_first:
            return y.contiguous()
        return y.transpose(0, 1).contiguous().transpose(0, 1)


def _decode(layer: str) -> _Layer:
    return _Layer(*json.loads(layer))


@torch.library.custom_op("ftrain::rnn", mutates_args=())
def _rnn(
    x: torch.Tensor, start: list[torch.Tensor], weights: list[torch.Tensor], layer: str
) -> Tensors:
    options = _decode(layer)
    if options.graded:
        with _torch.with_autograd(), torch.enable_grad():
            weights = [weight.detach().requires_grad_() for weight in weights]
            output = tuple(part.detach() for part in options.run(x, start, weights))
    else:
        output = options.run(x, start, weights)
    y, h, c = output if len(output) == 3 else (*output, output[0].new_empty(0))
    return options.time_major(y), h.contiguous(), c.contiguous()


@_rnn.register_fake
def _(
    x: torch.Tensor, start: list[torch.Tensor], weights: list[torch.Tensor], layer: str
) -> Tensors:
    options = _decode(layer)
    dtype = options.dtype(x, start)
    # The output's size is the hidden state's: an LSTM with projections has another for its cells.
    y = x.new_empty((*x.shape[:-1], start[0].shape[-1] * (1 + options.both_ways)), dtype=dtype)
    c = x.new_empty(start[1].shape if options.kind == "lstm" else 0, dtype=dtype)
    return options.time_major(y), x.new_empty(start[0].shape, dtype=dtype), c


@torch.library.custom_op("ftrain::rnn_backward", mutates_args=())
def _rnn_backward(
    grads: list[torch.Tensor],
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    layer: str,
) -> list[torch.Tensor]:
    with _torch.with_autograd(), torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (x, *start, *weights)]
        n = 1 + len(start)
        output = _decode(layer).run(inputs[0], inputs[1:n], inputs[n:])
        found = torch.autograd.grad(output, inputs, grads[: len(output)], allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else _own_memory(g)
        for t, g in zip(inputs, found, strict=True)
    ]


def _own_memory(grad: torch.Tensor) -> torch.Tensor:
    """Return a contiguous gradient that shares no memory with other gradients.

    cuDNN returns the gradients of the weights as parts of one buffer, which torch refuses as outputs of
    an operator.
    """
    grad = grad.contiguous()
    return grad.clone() if grad.untyped_storage().nbytes() != grad.nbytes else grad


@_rnn_backward.register_fake
def _(
    grads: list[torch.Tensor],
    x: torch.Tensor,
    start: list[torch.Tensor],
    weights: list[torch.Tensor],
    layer: str,
) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t in (x, *start, *weights)]


class _Differentiable(torch.autograd.Function):
    """Autograd function of the operator `_rnn`; `register_autograd` does not support torch.func."""

    @staticmethod
    def forward(layer: str, n_start: int, *tensors: torch.Tensor) -> Tensors:
        x, *rest = tensors
        output: Tensors = _rnn(x, rest[:n_start], rest[n_start:], layer)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.layer, ctx.n_start, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        n = ctx.n_start
        return (None, None, *_rnn_backward(list(grads), x, rest[:n], rest[n:], ctx.layer))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], layer: str, n_start: int, *tensors: torch.Tensor
    ) -> tuple[Tensors, tuple[int, int, int]]:
        """Run the layer once for each row, since every model of a sweep has its own weights."""
        outputs = [
            _apply(layer, n_start, *_row(tensors, in_dims[2:], i)) for i in range(info.batch_size)
        ]
        y, h, c = (torch.stack(column) for column in zip(*outputs, strict=True))
        return (y, h, c), (0, 0, 0)


_apply: Callable[..., Tensors] = _Differentiable.apply


def _vmap_backward(
    info: Any, in_dims: Any, grads: Any, x: Any, start: Any, weights: Any, layer: str
) -> tuple[list[torch.Tensor], list[int]]:
    def run(i: int) -> list[torch.Tensor]:
        (one,) = _row([x], [in_dims[1]], i)
        lists = zip((grads, start, weights), (in_dims[0], *in_dims[2:4]), strict=True)
        g, s, w = (_row(tensors, dims, i) for tensors, dims in lists)
        found: list[torch.Tensor] = _rnn_backward(g, one, s, w, layer)
        return found

    rows = [run(i) for i in range(info.batch_size)]
    found = [torch.stack(column) for column in zip(*rows, strict=True)]
    return found, [0] * len(found)


_rnn_backward.register_vmap(_vmap_backward)


def _row(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], i: int) -> list[torch.Tensor]:
    return [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)]
