"""Replacements for torch's random factories (`torch.rand`, ...) that draw with keys from a stream.

Each function has the signature of the torch function that it replaces, after the stream.
Each sample is an inverse transform of one uniform draw. Draws can therefore be traced, and under vmap
each row equals the draw from its own key alone.

Read next: `_keyed_fills.py`, the in-place forms, and `_keyed_layers.py`, the layers that draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch import inside_vmap
from ftrain.core.random._key_stream import KeyStream

__all__ = ["DRAWS", "Handler", "exponential", "integers", "require"]

Number = float | int
Handler = Callable[..., Any]


def _shape(size: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape given as `f(2, 3)` or `f((2, 3))`."""
    if len(size) == 1 and isinstance(size[0], Sequence):
        size = size[0]
    return tuple(size)


def _device(device: torch.device | str | int | None) -> torch.device:
    return torch.get_default_device() if device is None else torch.device(device)


def _deliver(
    value: Tensor,
    *,
    out: Tensor | None = None,
    layout: torch.layout | None = None,
    pin_memory: bool | None = None,
    requires_grad: bool = False,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Apply options of torch's factory functions (`out`, `requires_grad`, ...) to a drawn tensor."""
    if layout not in (None, torch.strided):
        raise TypeError(
            f"a draw in `keyed`: expected layout=torch.strided, got {layout}. Leave it out."
        )
    if out is not None:
        return out.resize_(value.shape).copy_(value)
    if memory_format not in (None, torch.preserve_format):
        value = value.contiguous(memory_format=memory_format)
    if pin_memory:
        value = value.pin_memory()
    return value.requires_grad_() if requires_grad else value


def require(is_valid: bool | Tensor, name: str, expected: str, got: Any) -> None:
    """Raise ValueError for a number that the torch function `name` refuses; accept all tensors."""
    if not isinstance(is_valid, Tensor) and not is_valid:
        raise ValueError(f"{name}: expected {expected}, got {got}. Pass other numbers.")


def _float_type(dtype: torch.dtype | None) -> torch.dtype:
    return torch.get_default_dtype() if dtype is None else dtype


# Factories.


def rand(
    stream: KeyStream,
    *size: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    shape = _shape(form.pop("size", size))
    return _deliver(stream.uniform(shape, _float_type(dtype), _device(device)), **form)


def randn(
    stream: KeyStream,
    *size: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    shape = _shape(form.pop("size", size))
    return _deliver(stream.normal(shape, _float_type(dtype), _device(device)), **form)


def randint(
    stream: KeyStream,
    *args: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    # randint(high, size), randint(low, high, size), and any of them by name
    values = list(args)
    size = form.pop("size") if "size" in form else values.pop()
    high = form.pop("high") if "high" in form else values.pop()
    low = form.pop("low") if "low" in form else (values.pop() if values else 0)
    dtype = torch.int64 if dtype is None else dtype
    return _deliver(integers(stream, tuple(size), low, high, dtype, _device(device)), **form)


def randperm(
    stream: KeyStream,
    n: int,
    *,
    dtype: torch.dtype = torch.int64,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    _require_range("randperm", 0, n, dtype)
    return _deliver(stream.permutation(n, _device(device)).to(dtype), **form)


def rand_like(
    stream: KeyStream,
    input: Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    device = input.device if device is None else torch.device(device)
    return _deliver(stream.uniform(input.shape, dtype or input.dtype, device), **form)


def randn_like(
    stream: KeyStream,
    input: Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    device = input.device if device is None else torch.device(device)
    return _deliver(stream.normal(input.shape, dtype or input.dtype, device), **form)


def randint_like(
    stream: KeyStream,
    input: Tensor,
    *args: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    values = list(args)
    high = form.pop("high") if "high" in form else values.pop()
    low = form.pop("low") if "low" in form else (values.pop() if values else 0)
    device = input.device if device is None else torch.device(device)
    drawn = integers(stream, input.shape, int(low), int(high), dtype or input.dtype, device)
    return _deliver(drawn, **form)


def normal(
    stream: KeyStream,
    mean: Tensor | Number = 0.0,
    std: Tensor | Number = 1.0,
    size: Sequence[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    generator: None = None,
    **form: Any,
) -> Tensor:
    require(std >= 0, "normal", "std >= 0", std)
    if size is not None:
        noise = stream.normal(_shape((size,)), _float_type(dtype), _device(device))
        return _deliver(mean + std * noise, **form)
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    # torch has no annotation for this function.
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))  # type: ignore[no-untyped-call]
    noise = stream.normal(shape, tensors[0].dtype, tensors[0].device)
    return _deliver((mean + std * noise).to(tensors[0].dtype), **form)


def bernoulli(
    stream: KeyStream, input: Tensor, p: float | None = None, *, generator: None = None, **form: Any
) -> Tensor:
    if p is not None:
        return _deliver(stream.bernoulli(p, input.shape, input.device).to(input.dtype), **form)
    wide = torch.promote_types(input.dtype, torch.float32)
    hit = stream.uniform(input.shape, wide, input.device) < input
    return _deliver(hit.to(input.dtype), **form)


def multinomial(
    stream: KeyStream,
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: None = None,
    **form: Any,
) -> Tensor:
    wide = torch.promote_types(input.dtype, torch.float32)
    weights = input.to(wide)
    if not replacement or num_samples == 1:
        if not replacement and num_samples > input.shape[-1]:
            raise ValueError(
                "multinomial: expected num_samples to be at most the number of categories, "
                f"{input.shape[-1]}, without replacement, got {num_samples}. Pass replacement=True."
            )
        # Exponential race: take the k categories with the smallest E_i / w_i (Efraimidis & Spirakis
        # 2006).
        rate = weights / exponential(stream.uniform(weights.shape, wide, weights.device))
        return _deliver(rate.topk(num_samples, dim=-1).indices, **form)
    # Invert the cumulative weights: take the first category whose running sum exceeds u · total.
    total = weights.double().cumsum(-1)
    shape = (*input.shape[:-1], num_samples)
    point = stream.uniform(shape, torch.float64, weights.device) * total[..., -1:]
    # u · total may round up to total, which no running sum exceeds.
    point = torch.minimum(
        point, torch.nextafter(total[..., -1:], torch.zeros_like(total[..., -1:]))
    )
    return _deliver(torch.searchsorted(total, point, right=True), **form)


# Replacements for torch.empty: under vmap, a fill from a batched key needs memory with a row per key.


def memory(allocate: Callable[..., Tensor]) -> Handler:
    """Return a replacement for `torch.empty` or the like that allocates a row per key under vmap.

    With it, `torch.vmap` over keys gives each row its own initial weights, and its own noise in
    `empty_like(x).exponential_()`; torch raises for batched values written into unbatched memory.
    """

    def allocated(stream: KeyStream, *args: Any, **kwargs: Any) -> Tensor:
        value = allocate(*args, **kwargs)
        if (
            not stream.batched
            or not inside_vmap()
            or kwargs.get("out") is not None
            or value.device.type == "meta"
        ):
            return value
        zero = stream.key_on(value.device)[0] * 0
        filled = value.detach().zero_() + zero.to(value.dtype)
        return filled.requires_grad_() if value.requires_grad else filled

    return allocated


def exponential(unit: Tensor) -> Tensor:
    """Map U[0, 1) samples to Exp(1) samples that are never 0, as in torch's kernels."""
    return (-torch.log1p(-unit)).clamp_min(torch.finfo(unit.dtype).eps / 2)


def integers(
    stream: KeyStream,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw integers in [low, high) as `dtype`; for floating-point and bool dtypes via int64."""
    if low >= high:
        raise ValueError(
            f"randint: expected low < high, got low={low}, high={high}. Exchange or change them."
        )
    _require_range("randint", low, high, dtype)
    wide = torch.int64 if dtype.is_floating_point or dtype == torch.bool else dtype
    return stream.randint(shape, low, high, wide, device).to(dtype)


def _require_range(name: str, low: int, high: int, dtype: torch.dtype) -> None:
    """Raise ValueError unless a dtype can hold the integers in [low, high)."""
    least, most = 0.0, 1.0
    if dtype != torch.bool:
        info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        least, most = info.min, info.max
    expected = "integers within the range of the dtype"
    require(least <= low and high - 1 <= most, name, expected, (low, high, dtype))


DRAWS: dict[Any, Handler] = {
    torch.rand: rand,
    torch.randn: randn,
    torch.randint: randint,
    torch.randperm: randperm,
    torch.rand_like: rand_like,
    torch.randn_like: randn_like,
    torch.randint_like: randint_like,
    torch.normal: normal,
    torch.bernoulli: bernoulli,
    torch.Tensor.bernoulli: bernoulli,
    torch.multinomial: multinomial,
    torch.Tensor.multinomial: multinomial,
} | {
    allocate: memory(allocate)
    for allocate in (
        torch.empty,
        torch.empty_like,
        torch.empty_strided,
        torch.Tensor.new,
        torch.Tensor.new_empty,
    )
}
