"""Test the source of the CUDA kernels, compiled by a C++ compiler and run thread by thread on the CPU.

The arguments packed by Python, the grid and the kernels are those of a run on CUDA; only NVRTC, the
driver and the device are replaced. Results are compared with the C kernel and the reference
implementation. tests/nullcuda compiles the source with NVRTC.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftrain.core import random
from ftrain.core.random import _cpu_kernel, _cuda_kernel, _jax_families, _operators

HOST = """
#include <pthread.h>
#include <thread>
#include <vector>
#include "threefry.h"
#define __global__
#define __grid_constant__
#define __syncthreads() pthread_barrier_wait(&barrier)
static int KIND;
static struct { unsigned x; } blockIdx, blockDim;
static thread_local struct { unsigned x; } threadIdx;
static pthread_barrier_t barrier;
static void atomicMax(uint32_t *at, uint32_t value) { if (value > *at) *at = value; }
#include "threefry.cu"
#include "elementary.cu"
#include "families.cu"
#include "samplers.cu"
/* Threads run one after the other, those of a group together. */
extern "C" void launch(int kind, unsigned blocks, unsigned threads, bool grouped, const struct task *t) {
    KIND = kind;
    blockDim.x = threads;
    pthread_barrier_init(&barrier, 0, threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::vector<std::thread> group;
        for (unsigned x = 0; x < threads; x++)
            if (grouped) group.emplace_back([=] { threadIdx.x = x; ftrain_sampler(*t); });
            else if (threadIdx.x = x, kind >= TRUNCATED32) ftrain_sampler(*t);
            else ftrain_kernel(*t);
        for (auto &thread : group) thread.join();
    }
}
extern "C" int size_of_task() { return sizeof(struct task); }
"""


GROUPED = [
    kind + wide
    for kind in (_cuda_kernel.SOFTMAX, _cuda_kernel.SUMS, _cuda_kernel.BALL)
    for wide in (0, 1)
]


class Host:
    """The CUDA kernels, launched on the CPU."""

    def __init__(self, folder: Path) -> None:
        source, library = folder / "host.cpp", folder / "host.so"
        source.write_text(HOST)
        include = f"-I{Path(_cuda_kernel.__file__).parent}"
        flags = ("-O1", "-ffp-contract=off", "-fno-math-errno", "-w", "-pthread", include)
        subprocess.run(
            ("c++", *flags, "-shared", "-fPIC", str(source), "-o", str(library)), check=True
        )
        self.library = ctypes.CDLL(str(library))
        self.launches: list[tuple[int, int]] = []
        self.kernel = _cuda_kernel.CudaKernel(lambda kind: kind, self.launch)

    def launch(self, kind: int, blocks: int, threads: int, parameters: bytes) -> None:
        assert len(parameters) == self.library.size_of_task()
        assert threads % 32 == 0
        assert threads <= _cuda_kernel._BLOCK
        self.launches.append((kind, blocks * threads))
        self.library.launch(kind, blocks, threads, kind in GROUPED, parameters)

    @contextlib.contextmanager
    def draws(self) -> Iterator[None]:
        """Draw with these kernels from keys on the CPU."""
        with using(self.kernel):
            yield


@contextlib.contextmanager
def using(kernel: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_operators, "_for", lambda key: kernel)
        yield


@functools.cache
def compiled_for_the_host() -> Host:
    with tempfile.TemporaryDirectory() as folder:
        return Host(Path(folder))


@pytest.fixture(scope="module")
def host() -> Host:
    return compiled_for_the_host()


def same(a: Tensor, b: Tensor) -> bool:
    flat = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*flat)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = tuple(random._integers.RANGE)
words = st.integers(0, 2**32 - 1)
folds = st.lists(words, max_size=5) | st.lists(words, min_size=30, max_size=70)
shapes = st.lists(st.integers(0, 9), max_size=3) | st.integers(0, 3000).map(lambda n: [n])
float_dtypes = st.sampled_from(FLOATS)
# Twice these are finite in float16: the sign of a NaN differs between processors.
bounds = st.floats(-30000, 30000) | st.sampled_from((0.0, -0.0, 1.0, 1e-8, -1e-8, 1e-40, -1e-40))
integer_bounds = st.integers(-(2**64), 2**64) | st.integers(-300, 300)


@st.composite
def draws(draw: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """Return one operator with its arguments, still without a key."""
    path, shape, dtype = draw(folds), draw(shapes), draw(float_dtypes)
    operator = draw(st.integers(0, 9))
    if operator == 0:
        width = draw(st.sampled_from((8, 16, 32, 64)))
        return lambda key: _operators._bits(key, path, shape, width)
    if operator == 1:
        p = draw(st.floats(-0.5, 1.5) | st.sampled_from((0.0, 1.0, 2.0**-24)))
        return lambda key: _operators._bernoulli(key, path, shape, p)
    if operator == 2:
        a, b = draw(bounds), draw(bounds)
        a, b = draw(st.sampled_from(((a, b), (0.0, 1.0))))
        return lambda key: _operators._uniform(key, path, shape, dtype, a, b)
    if operator == 3:
        return lambda key: _operators._standard_normal(key, path, shape, dtype)
    if operator == 4:
        integer = draw(st.sampled_from(INTEGERS))
        limits = random._integers.clipped(draw(integer_bounds), draw(integer_bounds), integer)
        return lambda key: _operators._randint(key, path, shape, integer, *limits)
    if operator == 5:
        return lambda key: _operators._split(key, path, shape)
    if operator == 6:
        return lambda key: _operators._fold(key, path)
    if operator == 9:
        is_high = draw(st.booleans())
        return lambda key: _jax_families._gumbel_kernel(key, path, shape, dtype, is_high)
    kernel = (_jax_families._exponential_kernel, _jax_families._laplace_kernel)[operator - 7]
    return lambda key: kernel(key, path, shape, dtype)


def key_of(seed: int, batch: str) -> Tensor:
    if batch == "one":
        return random.key(seed)
    keys = random.split(random.key(seed), 6)
    if batch == "columns":  # strides of a batch that vmap has moved to the front
        return keys.T.contiguous().T
    return {"few": keys, "two": keys.view(2, 3, 2), "odd": keys.view(2, 3, 2).transpose(0, 1)}[
        batch
    ]


@settings(max_examples=200, deadline=None)
@given(
    draw=draws(),
    seed=st.integers(0, 2**64 - 1),
    batch=st.sampled_from(("one", "few", "columns", "two", "odd")),
)
def test_cuda_source_draws_the_bits_of_the_c_kernel_and_of_the_reference(
    host: Host, draw: Callable[[Tensor], Tensor], seed: int, batch: str
) -> None:
    key = key_of(seed, batch)
    with host.draws():
        found = draw(key)
    assert isinstance(_cpu_kernel.kernel(), _cpu_kernel.Kernel)
    assert same(found, draw(key))
    with using(None):
        assert same(found, draw(key))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cuda_source_draws_the_bits_of_the_c_kernel_in_a_large_draw(
    host: Host, dtype: torch.dtype
) -> None:
    """Each thread draws several elements, of one row and of several."""
    count = _cuda_kernel._FILL + 13
    for key, n in ((random.key(3), count), (random.split(random.key(4), 3), count // 3 + 1)):
        host.launches.clear()
        with host.draws():
            found = _operators._standard_normal(key, (1,), (n,), dtype)
        ((_, threads),) = host.launches
        assert threads < found.numel() / 7
        assert same(found, _operators._standard_normal(key, (1,), (n,), dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exponential_laplace_and_gumbel_draws_of_the_cuda_source_equal_the_reference(
    host: Host, dtype: torch.dtype
) -> None:
    """In 16 bits the draws meet every number; the smallest uniforms come up in 32 and 64 bits too."""
    kernels = [_jax_families._exponential_kernel, _jax_families._laplace_kernel]
    kernels += [functools.partial(_jax_families._gumbel_kernel, is_high=high) for high in (0, 1)]
    for kernel in kernels:
        host.launches.clear()
        with host.draws():
            found = kernel(random.key(2), (3,), (100_000,), dtype)
        assert len(host.launches) == 1
        assert same(found, kernel(random.key(2), (3,), (100_000,), dtype))


@pytest.mark.parametrize("dtype", [*INTEGERS], ids=str)
def test_cuda_source_folds_in_integers_of_every_dtype(host: Host, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    numbers = torch.tensor([info.min, info.max, 0, 1, 77, 5], dtype=dtype)
    keys = random.split(random.key(1), 6)
    apart = torch.stack((numbers.view(torch.uint8).view(dtype), numbers), dim=1)[:, 0]
    pairs = [
        (keys[0], numbers[0]),
        (keys[0], numbers),
        (keys, numbers[1]),
        (keys, apart),
        (keys.view(2, 3, 2), numbers[:3]),
        (keys[:2].view(2, 1, 2), numbers.view(2, 3)),
    ]
    for key, data in pairs:
        host.launches.clear()
        with host.draws():
            found = _operators._fold_in(key, data)
        assert len(host.launches) == 1
        assert same(found, _operators._fold_in(key, data))
        with using(None):
            assert same(found, _operators._fold_in(key, data))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_uniform_and_normal_of_the_cuda_source_equals_the_reference(
    host: Host, kind: torch.dtype
) -> None:
    """There are 1,024 mantissas of float16 and 128 of bfloat16: enough draws meet them all."""
    key, count = random.key(0), 20_000
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-3e-7, 2e-7), (-30000.0, 30000.0), (0.1, 0.7)):
        with host.draws():
            found = _operators._uniform(key, (), (count,), kind, low, high)
        assert same(found, _operators._uniform(key, (), (count,), kind, low, high))
    with host.draws():
        found = _operators._standard_normal(key, (), (count,), kind)
    assert found.unique().numel() > (900 if kind == torch.float16 else 120)
    assert same(found, _operators._standard_normal(key, (), (count,), kind))


def test_each_cuda_draw_with_up_to_32_integers_to_fold_in_is_one_kernel_launch(host: Host) -> None:
    keys = random.split(random.key(0), 4)
    for folded, key in itertools.product((0, 1, 32, 33, 65), (keys[0], keys)):
        host.launches.clear()
        with host.draws():
            _operators._bits(key, range(folded), (3,), 32)
        assert len(host.launches) == max(1, -(-folded // 32))


def test_cuda_draws_of_no_elements_launch_no_kernel(host: Host) -> None:
    keys = random.split(random.key(0), 4)
    host.launches.clear()
    with host.draws():
        assert _operators._bits(keys, (), (0, 3), 32).shape == (4, 0, 3)
        assert _operators._bits(keys[:0], (), (3,), 32).shape == (0, 3)
        assert _operators._randint(keys, (), (0,), torch.int64, 0, 3).shape == (4, 0)
        assert _operators._fold(keys[:0], (1,)).shape == (0, 2)
    assert not host.launches


def test_draws_without_nvrtc_warn_once_and_use_the_reference_implementation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(index: int) -> Any:
        raise _cuda_kernel._NoKernelError("libnvrtc.so was not found. Install it.")

    monkeypatch.setattr(_cuda_kernel, "_kernels", {})
    monkeypatch.setattr(_cuda_kernel, "_load", load)
    device = torch.device("cuda", 1)
    with pytest.warns(RuntimeWarning, match=r"cuda:1 without its CUDA kernels.*Install it"):
        assert _cuda_kernel.kernel(device) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _cuda_kernel.kernel(device) is None


def test_kernel_launch_makes_the_cuda_context_of_its_device_current_if_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On another device than the current one, and in a thread that has used no device."""
    done: list[str] = []
    statuses = iter(())

    def record(name: str, status: int = 0) -> Callable[..., int]:
        return lambda *args: done.append(name) or status

    def launch(*args: Any) -> int:
        done.append("launch")
        return next(statuses)

    driver: Any = SimpleNamespace(
        cuLaunchKernel=launch,
        cuCtxPushCurrent_v2=record("push"),
        cuCtxPopCurrent_v2=record("pop"),
        cuGetErrorString=record("error"),
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_cuda_kernel, "raw_stream", lambda index: 7)
    for index, results, expected in (
        (0, [0], ["launch"]),
        (1, [0], ["push", "launch", "pop"]),
        (0, [201, 0], ["launch", "push", "launch", "pop"]),
    ):
        done.clear()
        statuses = iter(results)
        _cuda_kernel._launcher(driver, index, ctypes.c_void_p(1))(None, 2, 256, b"")
        assert done == expected
    statuses = iter([700])
    with pytest.raises(RuntimeError, match="CUDA error: error 700, in a draw on cuda:0"):
        _cuda_kernel._launcher(driver, 0, ctypes.c_void_p(1))(None, 2, 256, b"")
