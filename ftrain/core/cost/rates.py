"""Measured rates of a machine: matrix products by dtype, and memory bandwidth by amount of data."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["Product", "Rates", "fastest_product", "measure_rates", "synchronize"]

_COPIED = (2**20, 2**23, 2**26)  # bytes read and written, smaller and larger than the caches
_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured FLOP/s of a machine in matrix products, and its memory bandwidth.

    Attributes:
        flops: floating-point operations a second of a large matrix product, by dtype.
        bandwidth: bytes a second that a copy reads and writes, by the number of these bytes.
    """

    flops: Mapping[str, float]
    bandwidth: Mapping[int, float]

    def floor(self, flops: Mapping[str, int], size: int) -> float:
        """Return the larger of the times (s) that these FLOPs and bytes take at the measured rates.

        Args:
            flops: floating-point operations by dtype; dtypes that were not measured take no time.
            size: bytes that are read and written.
        """
        rates = self.flops
        compute = sum(count / rates[dtype] for dtype, count in flops.items() if dtype in rates)
        # A cache may speed up small copies, so the best rate at this size or above counts.
        measured = self.bandwidth
        least = min(size, max(measured, default=0))
        rate = max((rate for amount, rate in measured.items() if amount >= least), default=math.inf)
        return max(compute, size / rate)


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix product of two square matrices.

    Attributes:
        call: a function that computes the product.
        flops: the number of its floating-point operations.
    """

    call: Callable[[], Any]
    flops: int


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work; return at once for the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest_product(dtype: str, device: torch.device, size: int | None = None) -> Product:
    """Return the fastest way to multiply square matrices of a dtype: `torch.mm` or, on a CPU, oneDNN."""
    of = getattr(torch, dtype)
    n = size or (8192 if device.type == "cuda" else 1024)
    with torch.no_grad():
        a, b = (torch.ones(n, n, dtype=of, device=device) for _ in range(2))
        # On a CPU without float16 instructions, large float16 products take seconds.
        while size is None and n > 64 and _seconds(lambda: torch.mm(a, b), device, 1) > 0.05:  # noqa: B023
            n //= 2
            a, b = a[:n, :n].contiguous(), b[:n, :n].contiguous()
        calls: list[Callable[[], Any]] = [_without_grad(lambda: torch.mm(a, b))]
        if device.type == "cpu" and of in (torch.float32, torch.bfloat16):
            try:
                x, y = a.to_mkldnn(), b.to_mkldnn()
                F.linear(x, y)
                calls.append(_without_grad(lambda: F.linear(x, y)))
            except RuntimeError:  # this build or processor has no such product
                pass
        best = min(calls, key=lambda call: _seconds(call, device, 3))
    return Product(best, 2 * n**3)


def measure_rates(dtypes: Iterable[str], device: torch.device) -> Rates:
    """Measure the rates of a machine; takes about a tenth of a second for each dtype.

    Args:
        dtypes: names of dtypes, such as `float32`.
        device: where to measure.
    """
    flops = {}
    for dtype in dict.fromkeys(dtypes):
        product = fastest_product(dtype, device)
        flops[dtype] = product.flops / _seconds(product.call, device, _REPEATS)
    bandwidth = {}
    for size in _COPIED if device.type == "cpu" else (2**30,):
        source = torch.ones(size // 8, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        calls = max(1, 2**23 // size)

        def copy(a: torch.Tensor = source, b: torch.Tensor = target, n: int = calls) -> None:
            for _ in range(n):
                b.copy_(a)

        bandwidth[size] = size * calls / _seconds(copy, device, _REPEATS)
    return Rates(flops, bandwidth)


def _without_grad(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the shortest time of several calls, after one call to warm up."""
    call()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
