"""Replacements, with keys from a stream, for layers that draw: dropout, attention, recurrent layers.

As in `_keyed_draws.py`, each function has the signature of the torch function that it replaces.

Read next: `_key_stream.py`, whose stream gives each draw its key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch import inside_vmap
from ftrain.core._torch_dispatch import is_batched_tensor
from ftrain.core._torch_recurrent import recurrent_kernels
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random._keyed_draws import Handler, require

__all__ = ["LAYERS"]

# The value at which SELU saturates, scale · alpha (Klambauer et al. 2017): alpha dropout sets dropped
# elements to it.
_ALPHA = 1.7580993408473766


def dropout(stream: KeyStream, input: Tensor, p: float, train: bool | None) -> Tensor:
    """Compute mask · input / (1 - p), where mask ~ Bernoulli(1 - p) has the input's shape."""
    return _dropped(stream, input, p, bool(train), input.shape)


def feature_dropout(stream: KeyStream, input: Tensor, p: float, train: bool) -> Tensor:
    """Compute dropout of whole channels, with one draw for each index of the first two dimensions."""
    return _dropped(stream, input, p, train, _channels(input))


def alpha_dropout(stream: KeyStream, input: Tensor, p: float, train: bool) -> Tensor:
    """Compute alpha dropout, which keeps mean 0 and variance 1 after SELU (Klambauer et al. 2017)."""
    return _alpha_dropped(stream, input, p, train, input.shape)


def feature_alpha_dropout(stream: KeyStream, input: Tensor, p: float, train: bool) -> Tensor:
    """Compute alpha dropout of whole channels."""
    return _alpha_dropped(stream, input, p, train, _channels(input))


def native_dropout(
    stream: KeyStream, input: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    """Compute `torch.native_dropout`; return the output and the mask."""
    if train is False or p == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    mask = _mask(stream, p, input.shape, input.device)
    return torch.where(mask, input * _gain(p), 0), mask


def rrelu(
    stream: KeyStream,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,
) -> Tensor:
    """Compute leaky ReLU in which each element has its own slope, drawn from U[lower, upper)."""
    slope: Tensor | float = (lower + upper) / 2
    if training:
        wide = torch.promote_types(input.dtype, torch.float32)
        slope = stream.uniform(input.shape, wide, input.device, lower, upper).to(input.dtype)
    return torch.where(input > 0, input, input * slope)


def scaled_dot_product_attention(
    stream: KeyStream,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute dropout(softmax(scale · query keyᵀ + mask)) value, by torch if `dropout_p` is 0."""
    if dropout_p == 0:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal and attn_mask is not None:
        raise RuntimeError(
            "scaled_dot_product_attention: expected attn_mask=None with is_causal=True, got a mask. "
            "Combine the mask with a causal one, and pass is_causal=False."
        )
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3], query.shape[-3] // value.shape[-3]
        key = key.repeat_interleave(groups[0], -3)
        value = value.repeat_interleave(groups[1], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.mT
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = torch.where(attn_mask, scores, -math.inf)
        else:
            scores = scores + attn_mask
        # The output for a query with all keys masked is 0, as in torch's kernels, and its gradient is
        # not NaN.
        nowhere = (scores == -math.inf).all(-1, keepdim=True)
        scores = torch.where(nowhere, 0, scores)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, -1, dtype=wide).to(value.dtype)
    if attn_mask is not None:
        weights = torch.where(nowhere, 0, weights)
    return dropout(stream, weights, dropout_p, True) @ value


def recurrent(name: str) -> Handler:
    """Return a replacement for `_VF.lstm` (gru, rnn_tanh, ...) with keyed dropout between layers."""
    kernel, operator = getattr(torch, name), getattr(torch.ops.aten, name)

    def layers(stream: KeyStream, input: Tensor, second: Any, *rest: Any) -> Any:
        # The arguments are (input, hx, weights, bias, num_layers, dropout, training, bidirectional,
        # batch_first) or, for packed sequences, (data, batch_sizes, hx, weights, bias, num_layers,
        # dropout, training, bidirectional).
        if isinstance(second, Tensor) and second.dtype == torch.int64:
            (hx, weights, *options), batch_sizes = rest, [second]
        else:
            hx, (weights, *options), batch_sizes = second, rest, []
        # The kernels have no batching rule, but the operators of torch's decomposition have.
        decomposed = operator.data.decompose if batch_sizes else operator.input.decompose
        run = decomposed if inside_vmap() else kernel
        has_bias, count, p, training, bidirectional, *batch_first = options
        if p == 0 or not training or count == 1:
            # No dropout is applied here, so p is set to 0: for p > 0, cuDNN would draw a seed from the
            # global generator.
            rest = (*rest[: -len(options)], has_bias, count, 0.0, training, *options[4:])
            with recurrent_kernels(input.device.type):
                return run(input, second, *rest)
        states: Sequence[Tensor] = (hx,) if isinstance(hx, Tensor) else hx
        directions = 2 if bidirectional else 1
        per_layer = len(weights) // count
        finals = []
        for layer in range(count):
            if layer:
                input = dropout(stream, input, p, True)
            own = [state.narrow(0, layer * directions, directions) for state in states]
            with recurrent_kernels(input.device.type):
                input, *final = run(
                    input,
                    *batch_sizes,
                    own[0] if isinstance(hx, Tensor) else own,
                    weights[layer * per_layer : (layer + 1) * per_layer],
                    *(has_bias, 1, 0.0, training, bidirectional, *batch_first),
                )
            finals.append(final)
        return (input, *(torch.cat(part) for part in zip(*finals, strict=True)))

    return layers


def _mask(stream: KeyStream, p: float, shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw the elements to keep."""
    require(0 <= p <= 1, "dropout", "a probability between 0 and 1", p)
    return stream.bernoulli(1 - p, shape, device)


def _gain(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


def _channels(input: Tensor) -> list[int]:
    if input.dim() < 2:
        raise RuntimeError(
            f"feature dropout: expected an input of shape (N, C, ...), got {tuple(input.shape)}. Add "
            "the missing dimensions."
        )
    return [*input.shape[:2], *[1] * (input.dim() - 2)]


def _dropped(
    stream: KeyStream, input: Tensor, p: float, train: bool, shape: Sequence[int]
) -> Tensor:
    if not train or p == 0:
        return input
    if p == 1:
        return input * 0
    # `where` instead of a product with the mask: the backward stores one byte per element, and a dropped
    # infinite activation becomes 0 instead of NaN.
    return torch.where(_mask(stream, p, shape, input.device), input * _gain(p), 0)


def _alpha_dropped(
    stream: KeyStream, input: Tensor, p: float, train: bool, shape: Sequence[int]
) -> Tensor:
    if not train or p == 0:
        return input
    if p == 1:
        return input * 0
    mask = _mask(stream, p, shape, input.device)
    gain = 1 / math.sqrt((1 - p) * (1 + p * _ALPHA**2))
    return torch.where(mask, input, -_ALPHA) * gain + p * _ALPHA * gain


def _in_place(layer: Handler) -> Handler:
    def write(stream: KeyStream, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = layer(stream, input, *args, **kwargs)
        if output is input:
            return input
        if stream.batched and not is_batched_tensor(input):
            raise UnkeyedRandomError(
                f"{layer.__name__} with inplace=True: expected an input with a row for each key of the "
                "vmap, got an input that all rows share. Pass inplace=False."
            )
        return input.copy_(output)

    return write


LAYERS: dict[Any, Handler] = {
    torch.native_dropout: native_dropout,
    torch.nn.functional.scaled_dot_product_attention: scaled_dot_product_attention,
}
_HAVE_IN_PLACE_FORMS: dict[str, Handler] = {
    "dropout": dropout,
    "feature_dropout": feature_dropout,
    "alpha_dropout": alpha_dropout,
    "feature_alpha_dropout": feature_alpha_dropout,
    "rrelu": rrelu,
}
for _name, _layer in _HAVE_IN_PLACE_FORMS.items():
    LAYERS[getattr(torch, _name)] = _layer
    LAYERS[getattr(torch, f"{_name}_")] = _in_place(_layer)
for _name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    LAYERS[getattr(torch, _name)] = recurrent(_name)
