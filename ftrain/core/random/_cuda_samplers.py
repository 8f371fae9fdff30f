"""Samplers that take parameters, on CUDA, with one to three kernel launches.

Each function takes the compiled kernels and the arguments of a function of `_jax_families.py`, and gives
its bits. The kernels do not read a value on the host: where the CPU raises for a parameter out of range,
they return NaN, -1 in place of a count, or the last index.

Read next: `samplers.cu`, the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ftrain.core import _torch_levels
from ftrain.core.random import _cuda_kernel, _integers, _operators
from ftrain.core.random._cuda_kernel import CudaKernel

Ints = Sequence[int]

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def kernel_of(tensor: Tensor) -> CudaKernel | None:
    """Return the CUDA kernels for the device of a tensor; `None` if there are none for it."""
    kernel = _operators._for(tensor)
    return kernel if isinstance(kernel, CudaKernel) else None


def device_of_numbers(key: Tensor) -> torch.device:
    """Return the device of a parameter that is a number: the host if a CUDA kernel takes it by value.

    A trace keeps it on the device of the key, since inductor makes no CUDA graph of a program that also
    computes on the host.
    """
    if (
        not key.is_cuda
        or torch.compiler.is_compiling()
        or _torch_levels.running_trace() is not None
    ):
        return key.device
    return key.device if kernel_of(key) is None else torch.device("cpu")


def truncated_normal(
    kernel: CudaKernel, key: Tensor, folds: Ints, lower: Tensor, upper: Tensor
) -> Tensor:
    kind, eps = _cuda_kernel.TRUNCATED + _wide(lower), torch.finfo(lower.dtype).eps
    out = _like(lower, key)
    return kernel.sampler(kind, key, folds, out, (_stepped(lower), _stepped(upper)), a=eps)


def gamma(kernel: CudaKernel, key: Tensor, folds: Ints, alpha: Tensor, log_space: bool) -> Tensor:
    family = _cuda_kernel.LOG_GAMMA if log_space else _cuda_kernel.GAMMA
    return kernel.sampler(family + _wide(alpha), key, folds, _like(alpha, key), (_stepped(alpha),))


def share(kernel: CudaKernel, x: Tensor, y: Tensor) -> Tensor:
    kind = _cuda_kernel.SHARE + _wide(x)
    return kernel.sampler(kind, None, (), _like(x, x), (_stepped(x), _stepped(y)))


def softmax(kernel: CudaKernel, x: Tensor) -> Tensor:
    x, kind = x.contiguous(), _cuda_kernel.SOFTMAX + _wide(x)
    work = torch.empty_like(x, dtype=torch.float64)
    return kernel.sampler(kind, None, (), _like(x, x), ((x, 1),), work=work, group=x.shape[-1])


def log(kernel: CudaKernel, x: Tensor) -> Tensor:
    return kernel.sampler(_cuda_kernel.LOG + _wide(x), None, (), _like(x, x), (_stepped(x),))


def choice(kernel: CudaKernel, key: Tensor, folds: Ints, out: Tensor, p: Tensor) -> Tensor:
    p, n, wide = p.contiguous(), p.shape[-1], _wide(p)
    sums, work = _like(p, key), _like(p, key)
    kernel.sampler(_cuda_kernel.SUMS + wide, None, (), sums, ((p, 1),), work=work, group=n)
    return kernel.sampler(_cuda_kernel.CHOICE + wide, key, folds, out, ((sums, 1),), inner=n)


def product(kernel: CudaKernel, matrix: Tensor, vector: Tensor) -> Tensor:
    n = vector.shape[-1]
    if all(matrix.stride(i) == 0 or matrix.shape[i] == 1 for i in range(matrix.ndim - 2)):
        for _ in range(matrix.ndim - 2):
            matrix = matrix.select(0, 0)
    step = n * n if matrix.ndim > 2 else 0
    matrices, vector = (matrix.contiguous(), step), vector.contiguous()
    kind = _cuda_kernel.PRODUCT + _wide(vector)
    return kernel.sampler(kind, None, (), _like(vector, vector), (matrices, (vector, 1)), inner=n)


def ball(kernel: CudaKernel, key: Tensor, folds: Ints, out: Tensor, p: float) -> Tensor:
    """Fill `out` `(*batch, *shape, d)` with points of the unit ball in the norm of exponent p."""
    work = torch.empty_like(out, dtype=torch.float64)
    kind, d = _cuda_kernel.BALL + _wide(out), out.shape[-1]
    return kernel.sampler(kind, key, folds, out, a=1.0 / p, b=p, work=work, group=d)


def poisson(
    kernel: CudaKernel, key: Tensor, folds: Ints, rate: Tensor, dtype: torch.dtype
) -> Tensor:
    out = torch.empty(rate.shape, dtype=dtype, device=key.device)
    rates, most = (_stepped(rate),), 2.0 ** (torch.iinfo(dtype).bits - 2)
    rounds = torch.zeros(key.shape[:-1], dtype=torch.int32, device=key.device)
    kernel.sampler(_cuda_kernel.ROUNDS, key, folds, out, rates, a=most, work=rounds)
    return kernel.sampler(_cuda_kernel.POISSON, key, folds, out, rates, a=most, work=rounds)


def keyed(
    kernel: CudaKernel,
    family: int,
    key: Tensor,
    folds: Ints,
    *parameters: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return a draw of `keyed` from a family (`KEYED_GAMMA`, ...).

    The kernels compute in float64. A draw of 16 bits is a float64 first, so that it is rounded once.

    Args:
        dtype: dtype of the result; default: that of the first parameter.
    """
    given = parameters[0].dtype
    if any(p.dtype != torch.float32 for p in parameters):
        parameters = tuple(p.to(torch.float64) for p in parameters)
    first, tiny = parameters[0], torch.finfo(given).tiny
    out = torch.empty(first.shape, dtype=dtype or first.dtype, device=key.device)
    steps = [_stepped(p) for p in parameters]
    drawn = kernel.sampler(family + _wide(first), key, folds, out, steps, a=tiny)
    return drawn if dtype else drawn.to(given)


def signs(kernel: CudaKernel, key: Tensor, folds: Ints, out: Tensor) -> Tensor:
    """Fill `out` with -1 and 1."""
    pair = torch.tensor([1, -1], dtype=out.dtype, device="cpu").view(_WORDS[out.itemsize])
    plus, minus = pair.tolist()
    kind = _cuda_kernel.SIGN + (out.itemsize == 8)
    return kernel.sampler(kind, key, folds, out, base=plus, span=minus)


def uniform(kernel: CudaKernel, key: Tensor, folds: Ints, low: Tensor, high: Tensor) -> Tensor:
    kind = _cuda_kernel.BETWEEN + _cuda_kernel._DTYPES.index(low.dtype)
    return kernel.sampler(kind, key, folds, _like(low, key), (_stepped(low), _stepped(high)))


def randint(
    kernel: CudaKernel, key: Tensor, folds: Ints, minval: Tensor, maxval: Tensor, out: Tensor
) -> Tensor:
    """Fill `out` with integers between int64 bounds."""
    lowest, highest = _integers.RANGE[out.dtype]
    bounds, highest = (_stepped(minval), _stepped(maxval)), min(highest, 2**63 - 1)
    kind = _cuda_kernel.RANGE + (out.itemsize == 8)
    return kernel.sampler(kind, key, folds, out, bounds, base=lowest, span=highest)


def _wide(x: Tensor) -> int:
    """Return 1 for float64 and 0 for float32, to add to the number of the float32 kernel."""
    return int(x.dtype == torch.float64)


def _like(x: Tensor, on: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=on.device)


def _is_on_host(x: Tensor) -> bool:
    return x.is_cpu


def _stepped(x: Tensor) -> tuple[Tensor | None, int]:
    """Return a parameter, and its step in memory from element to element: 0 for a single number.

    A number on the host has no memory that a kernel can read: it is passed by value, as its word.
    """
    if not all(x.stride(i) == 0 or x.shape[i] == 1 for i in range(x.ndim)):
        return x.contiguous(), 1
    if not _is_on_host(x) or not x.numel():
        return x, 0
    return None, int(x.as_strided((), ()).view(_WORDS[x.itemsize]).item())
