"""Replacements for torch functions that torch.func transforms refuse.

These functions draw nothing. They are replaced by `keyed` because it sees each torch call of a model,
and a model under `torch.vmap` (in a vmapped training step) must compute what it computes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftrain.core import _torch
from ftrain.core._torch_packing import PACKING

__all__ = ["UNDER_TRANSFORMS", "into"]


def requires_grad(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """Skip `requires_grad_()`, which torch.func refuses, for a tensor that requires a gradient already.

    Models of `transformers` call it on their embeddings, for reentrant activation checkpointing.
    """
    if requires_grad and tensor.requires_grad:
        return tensor
    return tensor.requires_grad_(requires_grad)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Compute `F.one_hot` by comparison, since torch's own reads values under a gradient in a vmap."""
    if num_classes < 1:  # read off the values, or refused
        return torch.nn.functional.one_hot(tensor, num_classes)
    classes = torch.arange(num_classes, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).to(torch.int64)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `nn.LSTMCell` gate by gate, since torch's own has no batching rule (torch 2.13)."""
    if not _torch.inside_vmap():
        return torch.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    hidden, cell = hx
    linear = torch.nn.functional.linear
    gates = linear(input, w_ih, b_ih) + linear(hidden, w_hh, b_hh)
    entry, forget, candidate, exit_ = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
    return exit_.sigmoid() * cell.tanh(), cell


def into(func: Callable[..., Any], *args: Any, out: Any, **kwargs: Any) -> Any:
    """Call a function without `out=`, which vmap refuses, and copy its results into `out`.

    `torch.nn.utils.spectral_norm` calls torch functions with `out=`. Cases that torch refuses outside of
    vmap (a gradient through `out=`, a dtype that loses values), and those in which it would resize
    `out`, are passed to torch.
    """
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    given = [each for each in (*args, *kwargs.values(), *outs) if isinstance(each, Tensor)]
    if torch.is_grad_enabled() and any(each.requires_grad for each in given):
        return func(*args, out=out, **kwargs)
    results = func(*args, **kwargs)
    values = (results,) if isinstance(results, Tensor) else tuple(results)
    for target, value in zip(outs, values, strict=True):
        if target.shape != value.shape or not torch.can_cast(value.dtype, target.dtype):
            return func(*args, out=out, **kwargs)
    for target, value in zip(outs, values, strict=True):
        target.copy_(value)
    return out


def taking_two_dtypes(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a normalization accept half-precision inputs with float32 parameters under vmap.

    The kernels accept both, but torch's batching rules call them in a way that raises (torch 2.13). Like
    the kernels, this function computes in float32 and rounds the output.
    """

    @functools.wraps(norm)
    def normalize(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        others = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        is_mixed = input.dtype.itemsize == 2 and any(x.dtype == torch.float32 for x in others)
        if not is_mixed or not _torch.inside_vmap() or _autocasts(norm, input.device.type):
            return norm(input, *args, **kwargs)
        return norm(input.float(), *args, **kwargs).to(input.dtype)

    return normalize


def _autocasts(norm: Callable[..., Tensor], device: str) -> bool:
    """Return True if autocast runs a normalization in float32, which it does except on the CPU."""
    return (
        device != "cpu"
        and norm.__name__ in ("layer_norm", "group_norm")
        and torch.is_autocast_enabled(device)
    )


_NORMS = (
    torch.nn.functional.batch_norm,
    torch.nn.functional.layer_norm,
    torch.nn.functional.group_norm,
    torch.nn.functional.instance_norm,
    torch.batch_norm,
    torch.layer_norm,
    torch.group_norm,
    torch.instance_norm,
)

UNDER_TRANSFORMS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.requires_grad_: requires_grad,
    **PACKING,
    torch.lstm_cell: lstm_cell,
    torch.nn.functional.one_hot: one_hot,
    **{norm: taking_two_dtypes(norm) for norm in _NORMS},
}
