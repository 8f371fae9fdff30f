"""Torch operators of the random generator, with rules for graphs, fake tensors and vmap.

If the twenty rounds of Threefry are inlined, a training step takes four times as long to compile. As one
opaque, purely functional operator, a draw adds no compile time, and its bits are the same in eager,
traced, compiled and vmapped code. Every operator takes keys `(*batch, 2)` and returns
`(*batch, *shape)`; each row equals the draw from that row's key alone. The integers `folds` are folded
into the key first.

The operators are defined by `torch.library.Library`, because a call takes 4.9 µs, and one of an empty
`custom_op` 14.1 µs.

Read next: `_threefry.py`, the definition of the operators; `_cpu_kernel.py` and `_cuda_kernel.py`, their
kernels on a CPU and on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch import is_unintercepted
from ftrain.core.random import _cpu_kernel, _cuda_kernel, _floats, _integers, _normal, _threefry

# The library must exist as long as its operators.
_LIBRARY = torch.library.Library("ftrain", "FRAGMENT")  # type: ignore[no-untyped-call]

Ints = Sequence[int]

_BITS = {
    8: _cpu_kernel.BITS8,
    16: _cpu_kernel.BITS16,
    32: _cpu_kernel.BITS32,
    64: _cpu_kernel.BITS64,
}


def _bits(key: Tensor, folds: Ints, shape: Ints, width: int) -> Tensor:
    kernel = _for(key)
    if kernel is None:
        return _threefry.bits(key, folds, shape, width)
    return kernel.draw(_BITS[width], key, folds, _drawn(key, shape, _threefry.UINT[width]))


def _bernoulli(key: Tensor, folds: Ints, shape: Ints, p: float) -> Tensor:
    kernel = _for(key)
    if kernel is None:
        return _floats.below(_threefry.bits(key, folds, shape, 32), p)
    out = _drawn(key, shape, torch.bool)
    return kernel.draw(_cpu_kernel.BELOW, key, folds, out, _floats.threshold(p))


def _uniform(
    key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype, minval: float, maxval: float
) -> Tensor:
    kernel = _for(key)
    if kernel is not None and dtype in kernel.uniforms:
        kind = kernel.uniforms[dtype]
        return kernel.draw(kind, key, folds, _drawn(key, shape, dtype), minval + 0.0, maxval)
    unit = _floats.unit(_bits(key, folds, shape, _floats.WIDTH[dtype]), dtype)
    if minval == 0.0 and maxval == 1.0:
        return unit
    low, high = (torch.full((), v, dtype=dtype, device=key.device) for v in (minval, maxval))
    return _floats.scale(unit, low, high)


def _standard_normal(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype) -> Tensor:
    kernel = _for(key)
    if kernel is not None and dtype in kernel.normals:
        return kernel.draw(kernel.normals[dtype], key, folds, _drawn(key, shape, dtype))
    return _normal.normal(_floats.unit(_bits(key, folds, shape, _floats.WIDTH[dtype]), dtype))


def _randint(
    key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype, base: int, span: int
) -> Tensor:
    kernel = _for(key)
    if kernel is not None:
        return kernel.randint(key, folds, _drawn(key, shape, dtype), base, span)
    width = max(32, _integers.WIDTH[dtype])
    high, low = (_threefry.bits(key, (*folds, i), shape, width) for i in (0, 1))
    first, values = (torch.full((), v, dtype=torch.int64, device=key.device) for v in (base, span))
    return _integers.between(high, low, first, values, dtype)


def _split(key: Tensor, folds: Ints, shape: Ints) -> Tensor:
    kernel = _for(key)
    if kernel is None:
        return _threefry.split(key, folds, shape)
    return kernel.draw(_cpu_kernel.PAIRS, key, folds, _drawn(key, (*shape, 2), torch.int32))


def _fold(key: Tensor, folds: Ints) -> Tensor:
    kernel = _for(key)
    if kernel is not None:
        return kernel.fold(key, folds, None, _drawn(key, (2,), torch.int32))
    return _threefry.fold(key, folds) if folds else key.clone()


def _fold_in(key: Tensor, data: Tensor) -> Tensor:
    if data.ndim == 0 and data.device.type == "cpu" and key.device.type != "cpu":
        return _fold(key, (int(data) & 0xFFFFFFFF,))  # avoids a copy of data to the device
    kernel = _for(key) if data.device == key.device else None
    if kernel is None:
        return _threefry.fold_in(key, data)
    if key.ndim != 1 or data.ndim != 0:
        batch = _threefry.broadcast(key.shape[:-1], data.shape)
        key, data = key.expand(*batch, 2), data.expand(batch)
    return kernel.fold(key, (), data, _drawn(key, (2,), torch.int32))


def _for(key: Tensor) -> _cpu_kernel.Kernel | _cuda_kernel.CudaKernel | None:
    """Return the compiled kernels for the device of a key; `None` if there are none for it."""
    device = key.device
    if device.type == "cpu":
        return _cpu_kernel.kernel()
    return _cuda_kernel.kernel(device) if device.type == "cuda" else None


def _drawn(key: Tensor, shape: Ints, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor `(*batch, *shape)` for keys `(*batch, 2)`, on the device of the keys."""
    if key.ndim > 1:
        shape = (*key.shape[:-1], *shape)
    return torch.empty(shape, dtype=dtype, device=key.device)


def _fake_fold_in(key: Tensor, data: Tensor) -> Tensor:
    return key.new_empty((*_threefry.broadcast(key.shape[:-1], data.shape), 2))


def _vmap_over_key(operator: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """Return a vmap rule that draws for a batch of keys in one call, with the batch dimension first."""

    def rule(info: Any, in_dims: tuple[int | None, ...], key: Tensor, *args: Any) -> Any:
        dim = in_dims[0]
        assert dim is not None, "only the key is a tensor"
        return operator(key.movedim(dim, 0), *args), 0

    return rule


def _vmap_fold_in(info: Any, in_dims: tuple[int | None, ...], key: Tensor, data: Tensor) -> Any:
    key_dim, data_dim = in_dims
    key_rank = key.ndim - 1 - (key_dim is not None)
    data_rank = data.ndim - (data_dim is not None)
    if key_dim is not None:  # the mapped dimension, then ones, so that the other dimensions align
        key = key.movedim(key_dim, 0)
        key = key.reshape(key.shape[0], *[1] * max(0, data_rank - key_rank), *key.shape[1:])
    if data_dim is not None:
        data = data.movedim(data_dim, 0)
        data = data.reshape(data.shape[0], *[1] * max(0, key_rank - data_rank), *data.shape[1:])
    return torch.ops.ftrain.threefry_fold_in.default(key, data), 0


def _define(
    signature: str,
    body: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    vmap: Callable[..., Any] | None = None,
) -> Callable[..., Tensor]:
    """Define an operator whose results are contiguous; return a function that calls it.

    With an ordinary CPU key and no other tensor, the function calls `body` itself if nothing would see
    the operator: in a training step, torch's dispatcher takes 30 µs to call a Python function.

    Args:
        signature: the name and the arguments, in torch's language of schemas.
        body: computes the result.
        fake: returns an empty contiguous tensor of the result's shape and dtype. Inductor computes with
            its strides: a result in another order, such as that of a transposed argument, would be read
            in the wrong order.
        vmap: the rule of `torch.vmap`; default: the key is mapped.
    """
    name = signature[: signature.index("(")]
    _LIBRARY.define(  # type: ignore[no-untyped-call]
        f"{signature} -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
    )
    _LIBRARY.impl(  # type: ignore[no-untyped-call]
        name, lambda *args: body(*args).contiguous(), "CompositeExplicitAutograd"
    )
    operator: Callable[..., Tensor] = getattr(torch.ops.ftrain, name).default
    torch.library.register_fake(f"ftrain::{name}", fake, lib=_LIBRARY)
    rule = vmap or _vmap_over_key(operator)
    torch.library.register_vmap(f"ftrain::{name}", rule, lib=_LIBRARY)

    def draw(key: Tensor, *args: Any) -> Tensor:
        if _is_unobserved(key, args):
            return body(key, *args).contiguous()
        return operator(key, *args)

    return draw


def _is_unobserved(key: Tensor, args: Sequence[Any]) -> bool:
    """Return True if a draw needs no call of torch's dispatcher: nothing would see its operator."""
    return (
        not torch.compiler.is_dynamo_compiling()
        and type(key) is Tensor
        and key.is_cpu
        and not any(isinstance(each, Tensor) for each in args)
        and is_unintercepted()
    )


threefry_bits = _define(
    "threefry_bits(Tensor key, int[] folds, SymInt[] shape, int width)",
    _bits,
    lambda key, folds, shape, width: _drawn(key, shape, _threefry.UINT[width]),
)
threefry_bernoulli = _define(
    "threefry_bernoulli(Tensor key, int[] folds, SymInt[] shape, float p)",
    _bernoulli,
    lambda key, folds, shape, p: _drawn(key, shape, torch.bool),
)
threefry_uniform = _define(
    "threefry_uniform(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype, float minval, "
    "float maxval)",
    _uniform,
    lambda key, folds, shape, dtype, minval, maxval: _drawn(key, shape, dtype),
)
threefry_normal = _define(
    "threefry_normal(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype)",
    _standard_normal,
    lambda key, folds, shape, dtype: _drawn(key, shape, dtype),
)
threefry_randint = _define(
    "threefry_randint(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype, int base, int span)",
    _randint,
    lambda key, folds, shape, dtype, base, span: _drawn(key, shape, dtype),
)
threefry_split = _define(
    "threefry_split(Tensor key, int[] folds, SymInt[] shape)",
    _split,
    lambda key, folds, shape: _drawn(key, (*shape, 2), torch.int32),
)
threefry_fold = _define(
    "threefry_fold(Tensor key, int[] folds)",
    _fold,
    lambda key, folds: _drawn(key, (2,), torch.int32),
)
threefry_fold_in = _define(
    "threefry_fold_in(Tensor key, Tensor data)", _fold_in, _fake_fold_in, _vmap_fold_in
)
