"""Test the source of the CUDA samplers that take parameters, compiled and run on the CPU.

Results are compared, bit for bit, with the tensor operations that draw on a CPU. Groups of threads that
compute one row together run as threads of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftrain.core import random
from ftrain.core.random import (
    _bounded,
    _cuda_kernel,
    _cuda_samplers,
    _families,
    _jax_families,
    _jax_vectors,
)
from tests.random.test_cuda_kernel import (
    FLOATS,
    INTEGERS,
    Host,
    compiled_for_the_host,
    folds,
    key_of,
    same,
)

KEY = random.key(7)
KEYS = random.split(random.key(8), 3)
WIDE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(scope="module")
def host() -> Host:
    return compiled_for_the_host()


def check(host: Host, draw: Callable[[], Tensor], launches: int = 1) -> None:
    """Compare the kernel with the reference, and count its launches."""
    host.launches.clear()
    with host.draws():
        found = draw()
    assert len(host.launches) == launches
    expected = draw()
    assert same(found, expected), (found[found != expected][:3], expected[found != expected][:3])


def numbers(n: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=dtype) * scale


@WIDE
def test_truncated_normal_kernel_draws_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    kernel = _jax_families._truncated_kernel
    low = numbers(6000, dtype, 3.0)
    high = low + numbers(6000, dtype, 2.0).abs() + 1e-3
    low[:100], high[50:200] = -math.inf, math.inf
    low[200:210], high[200:210] = 0.0, 1.0
    check(host, lambda: kernel(KEY, (1,), low, high))
    check(host, lambda: kernel(KEYS, (), low.view(3, -1), high.view(3, -1)))
    columns, rows = low[300:310, None].expand(10, 9), high[None, 300:309].expand(10, 9).abs() + 20
    check(host, lambda: kernel(KEY, (), columns, rows))
    number = torch.full((), 2.0, dtype=dtype).expand(40, 30)
    check(host, lambda: kernel(KEY, (1, 2), -number, number))


@WIDE
@pytest.mark.parametrize("log_space", [False, True])
def test_gamma_kernel_draws_the_bits_of_the_cpu(
    host: Host, dtype: torch.dtype, log_space: bool
) -> None:
    odd = [0.0, -1.0, math.inf, math.nan, 1e-30, 1e10, 1.0, 1e-45]
    scales = [numbers(2000, dtype, scale).abs() for scale in (1e-2, 2.0, 1e4)]
    alpha = torch.cat([*scales, torch.tensor(odd, dtype=dtype)])
    kernel = _jax_families._gamma_kernel
    check(host, lambda: kernel(KEY, (1,), alpha, log_space))
    check(host, lambda: kernel(KEYS, (), alpha[:6000].view(3, -1), log_space))
    number = torch.full((), 0.7, dtype=dtype).expand(40, 30)
    check(host, lambda: kernel(KEY, range(32), number, log_space))


@WIDE
def test_softmax_kernels_compute_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    for n in (1, 2, 3, 37, 64, 65, 700):
        x = numbers(5 * n, dtype, 20.0).view(5, n)
        check(host, lambda x=x: _jax_families._softmax_kernel(x))
    x = numbers(5 * 37, dtype, 20.0).view(5, 37)
    x[0, 4], x[1, :], x[2, 3], x[3, 3] = math.nan, -math.inf, math.inf, -math.inf
    check(host, lambda: _jax_families._softmax_kernel(x))
    check(host, lambda: _jax_families._softmax_kernel(x[4:].mT.contiguous().mT))
    check(host, lambda: _jax_families._share_kernel(x, x.flip(1)))


@WIDE
def test_kernels_of_weighted_choices_draw_the_bits_of_the_cpu(
    host: Host, dtype: torch.dtype
) -> None:
    for n in (1, 2, 3, 5, 8, 100, 1023, 2050):
        p = numbers(n, dtype).abs()
        check(host, lambda p=p: _jax_families._choice_kernel(KEY, (), (900,), p), 2)
    p = numbers(231, dtype).abs().view(3, 77)
    check(host, lambda: _jax_families._choice_kernel(KEYS, (5,), (50, 3), p), 2)
    p[0, :5] = 0.0
    check(host, lambda: _jax_families._log_weights_kernel(p, 1))


@WIDE
def test_choice_kernel_gives_the_last_index_for_weights_of_nan(
    host: Host, dtype: torch.dtype
) -> None:
    p = torch.full((7,), math.nan, dtype=dtype)
    with host.draws():
        found = _jax_families._choice_kernel(KEY, (), (50,), p)
    assert set(found.tolist()) == {6}


@WIDE
def test_kernel_of_products_computes_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    matrix, vector = numbers(2430, dtype).view(5, 6, 9, 9), numbers(270, dtype).view(5, 6, 9)
    for m in (matrix, matrix.mT, matrix[:1, :1].expand_as(matrix), matrix[:, :1].expand_as(matrix)):
        check(host, lambda m=m: _jax_vectors._product_kernel(m, vector))
    check(host, lambda: _jax_vectors._product_kernel(matrix[0, 0], vector[0, 0]))


@WIDE
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 5.0, 7.0, 100.0])
def test_ball_kernel_draws_the_bits_of_the_cpu(host: Host, dtype: torch.dtype, p: float) -> None:
    kernel = _jax_vectors._ball_kernel
    check(host, lambda: kernel(KEY, (3,), (20,), dtype, 7, p))
    check(host, lambda: kernel(KEYS, (), (2, 3), dtype, 70, p))
    check(host, lambda: kernel(KEY, (), (), dtype, 1, p))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_poisson_kernels_draw_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    kernel = _jax_families._poisson_kernel
    for rate in (0.0, 0.3, 9.9, 10.0, 50.0, 1e6, 1e9):
        rates = torch.full((), rate).expand(700)
        check(host, lambda rates=rates: kernel(KEY, (1,), rates, dtype), 2)
    rates = numbers(3000, torch.float32, 20.0).abs()
    check(host, lambda: kernel(KEYS, (), rates.view(3, 10, 100), dtype), 2)
    rates = rates.clamp_max(9.0)
    rates[7] = 100.0  # one element for which all others propose too
    check(host, lambda: kernel(KEY, (), rates, dtype), 2)


def test_poisson_kernels_give_minus_one_for_rates_out_of_range(host: Host) -> None:
    rates = torch.tensor([-1.0, 4.0, math.nan, math.inf, 7.0, 2.0**31])
    with host.draws():
        found = _jax_families._poisson_kernel(KEY, (), rates, torch.int32)
    valid = torch.tensor([0.0, 4.0, 0.0, 0.0, 7.0, 0.0])
    expected = _jax_families._poisson_kernel(KEY, (), valid, torch.int32)
    assert found[[1, 4]].tolist() == expected[[1, 4]].tolist()
    assert found[[0, 2, 3, 5]].tolist() == [-1] * 4


@pytest.mark.parametrize("dtype", [*FLOATS, *(d for d in INTEGERS if d.is_signed)], ids=str)
def test_sign_kernel_draws_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    check(host, lambda: _jax_families._signs_kernel(KEY, (), (300,), dtype))
    check(host, lambda: _jax_families._signs_kernel(KEYS, (4,), (9, 2), dtype))
    found = _jax_families._signs_kernel(KEY, (), (300,), dtype)
    assert same(found, random.rademacher(KEY, (300,), dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kernel_of_uniforms_between_tensors_draws_the_bits_of_the_cpu(
    host: Host, dtype: torch.dtype
) -> None:
    low, span = numbers(4000, torch.float64, 3.0).to(dtype), numbers(4001, torch.float64).to(dtype)
    high = low + span[:4000]
    for i, (a, b) in enumerate(
        [(0.0, -0.0), (-0.0, 0.0), (1e-8, 6e-8), (-1e-7, 1e-7), (-3e4, 3e4)]
    ):
        low[i], high[i] = a, b
    kernel = _bounded._uniform_kernel
    check(host, lambda: kernel(KEY, (1,), low, high))
    check(host, lambda: kernel(KEY, (1,), low.clamp(-20, 20) * 1000, high))
    check(host, lambda: kernel(KEYS, (), low[:3999].view(3, -1), high[:3999].view(3, -1)))
    expected = random.uniform(KEY, (4000,), dtype, low, high)
    assert same(kernel(KEY, (), low, high), expected)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(INTEGERS),
    bounds=st.lists(
        st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)] * 2),
        min_size=1,
        max_size=9,
    ),
    path=folds,
    batch=st.sampled_from(("one", "few", "columns")),
)
def test_kernel_of_integers_between_tensors_draws_the_bits_of_the_cpu(
    dtype: torch.dtype, bounds: list[tuple[int, int]], path: Any, batch: str
) -> None:
    key, low_high = key_of(5, batch), torch.tensor(bounds)
    low, high = (x.expand(*key.shape[:-1], 3, len(bounds)) for x in low_high.unbind(1))
    with compiled_for_the_host().draws():
        found = _bounded._randint_kernel(key, path, low, high, dtype)
    assert same(found, _bounded._randint_kernel(key, path, low, high, dtype))
    if key.ndim == 1:
        shape = (3, len(bounds))
        assert same(found, random.randint(key, shape, *low_high.unbind(1), dtype, folds=path))


def test_samplers_launch_no_kernel_for_no_elements(host: Host) -> None:
    none = torch.empty(3, 0)
    host.launches.clear()
    with host.draws():
        assert _jax_families._gamma_kernel(KEYS, (), none).shape == (3, 0)
        assert _jax_families._softmax_kernel(none.mT).shape == (0, 3)
        assert _jax_vectors._ball_kernel(KEY, (), (2,), torch.float32, 0, 2.0).shape == (2, 0)
        assert _jax_families._poisson_kernel(KEYS, (), none, torch.int64).shape == (3, 0)
    assert not host.launches


@WIDE
def test_each_thread_of_a_large_sampler_draws_several_elements(
    host: Host, dtype: torch.dtype
) -> None:
    count = _cuda_kernel._FILL + 13
    low = numbers(count, dtype)
    check(host, lambda: _bounded._uniform_kernel(KEY, (1,), low, low + 1))
    assert host.launches[0][1] < count / 7


def test_public_samplers_draw_the_bits_of_the_cpu_by_at_most_three_launches(host: Host) -> None:
    a, b = numbers(20, torch.float32).abs() + 0.1, numbers(21, torch.float32).abs()[:20] + 0.1
    check(host, lambda: random.truncated_normal(KEY, -a, b))
    check(host, lambda: random.gamma(KEY, a))
    check(host, lambda: random.beta(KEY, a, b), 3)
    check(host, lambda: random.dirichlet(KEY, a), 2)
    check(host, lambda: random.poisson(KEY, a * 20), 2)
    check(host, lambda: random.choice(KEY, 20, (9,), p=a), 2)
    check(host, lambda: random.ball(KEY, 3, 2.0, (5,)))
    check(host, lambda: torch.vmap(lambda key: random.beta(key, a, b))(KEYS), 3)
    check(host, lambda: torch.vmap(random.gamma)(KEYS, a[:3]))
    check(host, lambda: torch.vmap(lambda key: random.poisson(key, a * 20))(KEYS), 2)


def test_kernels_draw_the_same_bits_from_numbers_passed_by_value_and_in_memory(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[tuple[int, Callable[[], Tensor]]] = [
        (1, lambda: random.truncated_normal(KEY, -0.3, 2.1, (40,), torch.float64)),
        (1, lambda: random.truncated_normal(KEY, -math.inf, numbers(40, torch.float32))),
        (1, lambda: random.gamma(KEY, 0.7, (40,))),
        (3, lambda: random.beta(KEY, 0.7, 2.3, (40,))),
        (2, lambda: random.poisson(KEYS[0], 4.7, (40,))),
        (1, lambda: torch.vmap(lambda key: random.gamma(key, 1.7, (40,)))(KEYS)),
        (1, lambda: _bounded.uniform(KEY, (), *(torch.tensor(x).expand(40) for x in (-1.3, 7.1)))),
        *(
            (
                1,
                lambda d=d: _bounded.uniform(
                    KEY, (), torch.tensor(-1.3, dtype=d).expand(40), numbers(40, d)
                ),
            )
            for d in FLOATS
        ),
        (
            1,
            lambda: _bounded.randint(
                KEY, (), *(torch.tensor(x).expand(40) for x in (-7, 2**40)), torch.int64
            ),
        ),
    ]
    for launches, draw in draws:
        check(host, draw, launches)  # by value: the numbers are on the host
        with monkeypatch.context() as patch:
            patch.setattr(_cuda_samplers, "_is_on_host", lambda x: False)
            check(host, draw, launches)


def odd_and_even(values: list[float], *scales: float) -> Tensor:
    """Return special values, then 2,000 magnitudes of each scale."""
    return torch.cat(
        [
            torch.tensor(values, dtype=torch.float64),
            *(numbers(2000, torch.float64, s).abs() for s in scales),
        ]
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kernels_of_keyed_families_draw_the_bits_of_the_cpu(host: Host, dtype: torch.dtype) -> None:
    """In float64, gamma samples differ by the rounding of their logarithms, 1.1e-13 for one of 700."""
    bits = dtype != torch.float64
    alpha = odd_and_even([0.0, -1.0, math.inf, math.nan, 1e-30, 1e4, 1.0], 1e-2, 1.0, 1e3).to(dtype)
    rate = odd_and_even([0.0, 10.0, 1e-30, 3e4], 4.0, 40.0, 1e4).to(dtype)
    count = odd_and_even([0.0, -3.0, 1.0, 3e4], 12.0, 400.0, 1e4).to(dtype)
    prob = torch.rand(len(count), generator=torch.Generator().manual_seed(0)).to(dtype)
    prob[:9] = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.75, math.nan, 1e-6, 0.0, 1.0])
    draws: list[tuple[bool, Callable[[], Tensor]]] = [
        (bits, lambda: _families._gamma(KEY, (1,), alpha)),
        (bits, lambda: _families._gamma(KEYS, (), alpha[:6000].view(3, 20, -1))),
        (bits, lambda: _families._dirichlet(KEYS, (2,), alpha[7:6007].view(3, -1, 5))),
        (True, lambda: _families._poisson(KEY, (1,), rate)),
        (True, lambda: _families._poisson(KEYS, (), rate[:6000].view(3, 20, -1))),
        (True, lambda: _families._binomial(KEY, (1,), count, prob)),
        (
            True,
            lambda: _families._binomial(
                KEYS, (), count[:6000].view(3, -1), prob[:6000].view(3, -1)
            ),
        ),
    ]
    for is_same, draw in draws:
        host.launches.clear()
        with host.draws():
            found = draw()
        assert len(host.launches) == 1
        expected = draw()
        if is_same:
            assert same(found, expected), (found[found != expected], expected[found != expected])
        else:
            torch.testing.assert_close(found, expected, rtol=2e-13, atol=0, equal_nan=True)


@WIDE
def test_kernel_of_keyed_von_mises_draws_the_bits_of_the_cpu(
    host: Host, dtype: torch.dtype
) -> None:
    """In float64, angles near pi differ by the square root of a rounding, times the arc sine's slope."""
    kappa = odd_and_even([0.0, -1.0, math.inf, math.nan, 1e-30, 1e30], 1e-3, 1.0, 1e3).to(dtype)
    for keys, parameters in ((KEY, kappa), (KEYS, kappa[:6000].view(3, 20, -1))):
        host.launches.clear()
        with host.draws():
            found = _families._von_mises(keys, (1,), parameters)
        assert len(host.launches) == 1
        expected = _families._von_mises(keys, (1,), parameters)
        if dtype == torch.float32:
            assert same(found, expected), (found[found != expected], expected[found != expected])
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-8, equal_nan=True)


def test_kernel_of_keyed_counts_gives_nan_for_rates_out_of_range(host: Host) -> None:
    with host.draws():
        found = _families._poisson(KEY, (), torch.tensor([-1.0, math.nan, math.inf, 2.0]))
    assert found.isnan().tolist() == [True, True, True, False]
