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
from ftrain.core.random._keyed_draws import Handler, exponential, integers, require

__all__ = ["FILLS"]

Number = float | int


def uniform_(
    stream: KeyStream, self: Tensor, *args: Number, generator: None = None, **bounds: Number
) -> Tensor:
    # The bounds are collected in `**bounds` because the name of the first, `from`, is a keyword in
    # Python.
    low, high = _two(args, bounds, ("from", 0.0), ("to", 1.0))
    require(low <= high, "uniform_", "from <= to", (low, high))
    if self.is_complex():
        uniform_(stream, torch.view_as_real(self), low, high)
        return self
    value = stream.uniform(self.shape, _wide("uniform_", self), self.device, low, high)
    value = value.to(self.dtype)
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
    require(std >= 0, "normal_", "std >= 0", std)
    if self.is_complex():  # torch adds the mean to both parts
        normal_(stream, torch.view_as_real(self), mean, std * math.sqrt(0.5))
        return self
    return self.copy_(stream.normal(self.shape, _wide("normal_", self), self.device) * std + mean)


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
    if len(args) == 1 and "to" not in bounds:  # the call random_(to)
        bounds["to"], args = args[0], ()
    low, high = _two(args, bounds, ("from", 0), ("to", None))
    if high is None:
        high = _integer_bound(self.dtype)
    return self.copy_(integers(stream, self.shape, low, high, self.dtype, self.device))


def exponential_(
    stream: KeyStream, self: Tensor, lambd: Number = 1.0, *, generator: None = None
) -> Tensor:
    require(lambd > 0, "exponential_", "lambd > 0", lambd)
    unit = stream.uniform(self.shape, _wide("exponential_", self), self.device)
    return self.copy_(exponential(unit) / lambd)


def geometric_(stream: KeyStream, self: Tensor, p: Number, *, generator: None = None) -> Tensor:
    require(0 < p < 1, "geometric_", "0 < p < 1", p)
    wide = torch.promote_types(self.dtype, torch.float32)
    unit = stream.uniform(self.shape, wide, self.device)
    # The trials up to the first success are ceil(log(1 - u) / log(1 - p)), at least 1, because
    # `exponential` never returns 0.
    return self.copy_((exponential(unit) / -math.log1p(-p)).ceil())


def log_normal_(
    stream: KeyStream,
    self: Tensor,
    mean: Number = 1.0,
    std: Number = 2.0,
    *,
    generator: None = None,
) -> Tensor:
    require(std > 0, "log_normal_", "std > 0", std)
    noise = stream.normal(self.shape, _wide("log_normal_", self), self.device)
    return self.copy_((noise * std + mean).exp())


def cauchy_(
    stream: KeyStream,
    self: Tensor,
    median: Number = 0.0,
    sigma: Number = 1.0,
    *,
    generator: None = None,
) -> Tensor:
    require(sigma > 0, "cauchy_", "sigma > 0", sigma)
    unit = stream.uniform(self.shape, _wide("cauchy_", self), self.device)
    return self.copy_((math.pi * (unit - 0.5)).tan() * sigma + median)


def _wide(name: str, of: Tensor) -> torch.dtype:
    """Return the dtype to draw in, at least float32: bfloat16 has only 128 values in [0.5, 1)."""
    if not of.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor, got {of.dtype}. Draw in float32 and convert the "
            "sample."
        )
    return torch.promote_types(of.dtype, torch.float32)


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
    given = dict(zip((first[0], second[0]), args, strict=False)) | named
    return given.get(*first), given.get(*second)


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
