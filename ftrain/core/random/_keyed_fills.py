"""Replacements for torch's random in-place fills (`uniform_`, ...) that draw with keys from a stream.

They write with `copy_`, which has the derivative of a fill (zero with respect to the old value) and
keeps dtype and strides. As in `_keyed_draws.py`, each function has the signature of the torch function
that it replaces.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random._keyed_draws import Handler, exponential, integers

__all__ = ["FILLS"]

Number = float | int


def uniform_(
    stream: KeyStream, self: Tensor, *args: Number, generator: None = None, **bounds: Number
) -> Tensor:
    # The bounds are collected in `**bounds` because the name of the first, `from`, is a keyword in
    # Python.
    low, high = _two(args, bounds, ("from", 0.0), ("to", 1.0))
    if self.is_complex():
        uniform_(stream, torch.view_as_real(self), low, high)
        return self
    wide = torch.promote_types(self.dtype, torch.float32)
    value = stream.uniform(self.shape, wide, self.device, low, high).to(self.dtype)
    # Rounding may give `high`, which [low, high) excludes.
    return self.copy_(torch.where(value < high, value, low))


def normal_(
    stream: KeyStream,
    self: Tensor,
    mean: Number = 0.0,
    std: Number = 1.0,
    *,
    generator: None = None,
) -> Tensor:
    if self.is_complex():  # torch adds the mean to both parts
        normal_(stream, torch.view_as_real(self), mean, std * math.sqrt(0.5))
        return self
    wide = torch.promote_types(self.dtype, torch.float32)
    return self.copy_(stream.normal(self.shape, wide, self.device) * std + mean)


def bernoulli_(
    stream: KeyStream, self: Tensor, p: Tensor | float = 0.5, *, generator: None = None
) -> Tensor:
    if isinstance(p, Tensor):
        wide = torch.promote_types(p.dtype, torch.float32)
        return self.copy_(stream.uniform(self.shape, wide, self.device) < p)
    return self.copy_(stream.bernoulli(p, self.shape, self.device))


def random_(
    stream: KeyStream, self: Tensor, *args: int | None, generator: None = None, **bounds: int | None
) -> Tensor:
    if len(args) == 1:  # the call random_(to)
        bounds["to"], args = args[0], ()
    low, high = _two(args, bounds, ("from", 0), ("to", None))
    if high is None:
        high = _integer_bound(self.dtype)
    return self.copy_(integers(stream, self.shape, low, high, self.dtype, self.device))


def exponential_(
    stream: KeyStream, self: Tensor, lambd: Number = 1.0, *, generator: None = None
) -> Tensor:
    unit = _unit(stream, self)
    return self.copy_(exponential(unit) / lambd)


def geometric_(stream: KeyStream, self: Tensor, p: Number, *, generator: None = None) -> Tensor:
    unit = _unit(stream, self)
    # The trials up to the first success are ceil(log(1 - u) / log(1 - p)), at least 1, because
    # `exponential` never returns 0.
    trials = (exponential(unit) / -math.log1p(-p)).ceil() if p < 1 else torch.ones_like(unit)
    return self.copy_(trials)


def log_normal_(
    stream: KeyStream,
    self: Tensor,
    mean: Number = 1.0,
    std: Number = 2.0,
    *,
    generator: None = None,
) -> Tensor:
    wide = torch.promote_types(self.dtype, torch.float32)
    return self.copy_((stream.normal(self.shape, wide, self.device) * std + mean).exp())


def cauchy_(
    stream: KeyStream,
    self: Tensor,
    median: Number = 0.0,
    sigma: Number = 1.0,
    *,
    generator: None = None,
) -> Tensor:
    unit = _unit(stream, self)
    return self.copy_((math.pi * (unit - 0.5)).tan() * sigma + median)


def _unit(stream: KeyStream, like: Tensor) -> Tensor:
    """Draw U[0, 1) in the shape of `like`, at least in float32: bfloat16 has only 128 such values."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return stream.uniform(like.shape, wide, like.device)


def _integer_bound(dtype: torch.dtype) -> int:
    """Return the exclusive bound of `Tensor.random_()`, below which a dtype represents all integers."""
    if dtype == torch.bool:
        return 2
    if dtype.is_floating_point:
        return int(2 / torch.finfo(dtype).eps) + 1
    # The bound 2^63 does not fit int64; torch's own `random_()` excludes the largest value as well.
    return min(torch.iinfo(dtype).max + 1, 2**63 - 1)


def _two(
    args: Sequence[Any], named: dict[str, Any], first: tuple[str, Any], second: tuple[str, Any]
) -> tuple[Any, Any]:
    """Return the two parameters of a fill, given by position or by name, or else their defaults."""
    values = list(args) + [None] * (2 - len(args))
    given = [named.get(name, default) for name, default in (first, second)]
    first_value, second_value = (values[i] if i < len(args) else given[i] for i in range(2))
    return first_value, second_value


def _of_memory(fill: Handler) -> Handler:
    """Wrap a fill to skip meta tensors, whose arithmetic would import Dynamo (which takes seconds)."""

    @functools.wraps(fill)
    def filled(stream: KeyStream, self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.is_meta:
            stream.folds()
            return self
        result: Tensor = fill(stream, self, *args, **kwargs)
        return result

    return filled


FILLS: dict[Any, Handler] = {
    torch.Tensor.uniform_: _of_memory(uniform_),
    torch.Tensor.normal_: _of_memory(normal_),
    torch.Tensor.bernoulli_: _of_memory(bernoulli_),
    torch.Tensor.random_: _of_memory(random_),
    torch.Tensor.exponential_: _of_memory(exponential_),
    torch.Tensor.geometric_: _of_memory(geometric_),
    torch.Tensor.log_normal_: _of_memory(log_normal_),
    torch.Tensor.cauchy_: _of_memory(cauchy_),
}
