"""Test that sampling functions equal JAX's bit for bit, and normals within 4 ulp."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftrain.core import random
from ftrain.core.random import _floats, _normal, _threefry

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

quick = settings(deadline=None, max_examples=25)
SEEDS = st.integers(-(2**63), 2**63 - 1)
FOLDS = st.lists(st.integers(0, 2**32 - 1), max_size=2)
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (2, 3), (3, 0, 2)])  # JAX compiles for each
FLOATS = ("float32", "float64", "bfloat16", "float16")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
float_dtype = pytest.mark.parametrize("dtype", FLOATS)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


def same(ours: Tensor, theirs: Any) -> bool:
    array = np.asarray(theirs)
    return ours.shape == array.shape and raw(ours) == array.tobytes()


def jax_key(seed: int, folds: list[int] | tuple[int, ...] = ()):
    key = jax.random.key(seed)
    for data in folds:
        key = jax.random.fold_in(key, data)
    return key


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def ordered(floats: Tensor) -> Tensor:
    """Return floats as integers whose differences are ulps."""
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[floats.itemsize]
    word = floats.contiguous().view(signed).to(torch.int64)
    return torch.where(word < 0, -(word & (2 ** (8 * floats.itemsize - 1) - 1)), word)


def from_numpy(array: Any, dtype: torch.dtype) -> Tensor:
    size = array.dtype.itemsize
    signed = {2: np.int16, 4: np.int32, 8: np.int64}[size]
    return torch.from_numpy(np.array(array).view(signed)).view(dtype)


# -- uniform ----------------------------------------------------------------------------------------


@float_dtype
def test_uniform_equals_jax(dtype: str) -> None:
    @quick
    @given(seed=SEEDS, folds=FOLDS, shape=SHAPES)
    def check(seed: int, folds: list[int], shape: tuple[int, ...]) -> None:
        ours = random.uniform(random.key(seed), shape, getattr(torch, dtype), folds=folds)
        assert same(ours, jax.random.uniform(jax_key(seed, folds), shape, dtype))

    check()


@functools.cache
def fuses(dtype: str) -> bool:
    """Return True if XLA fuses a multiply-add of `dtype` here (FMA instructions; FP16 for float16)."""
    a = np.asarray(1 + jax.numpy.finfo(dtype).eps, dtype)  # a² - round(a²) is 0 after two roundings
    return bool(jax.jit(lambda a, c: a * a + c)(a, -np.asarray(a * a, dtype)) != 0)


def jax_between(key: Any, shape: tuple[int, ...], dtype: str, low: Any, high: Any) -> Any:
    """Return JAX's uniform draws in a form whose rounding does not depend on the processor.

    In float16 and bfloat16 JAX's own formula, one operator at a time: within one jitted function XLA
    rounds once where the processor has instructions for that dtype (AVX512-FP16), and else twice.
    """
    if dtype in ("float32", "float64"):
        if not fuses(dtype):
            pytest.skip("XLA rounds twice on a processor without fused multiply-add (before FMA3)")
        return jax.random.uniform(key, shape, dtype, low, high)
    low, high = (jax.numpy.asarray(v, dtype) for v in (low, high))
    unit = jax.random.uniform(key, shape, dtype)
    return jax.lax.max(*jax.numpy.broadcast_arrays(low, unit * (high - low) + low))


@float_dtype
def test_uniform_between_bounds_equals_jax(dtype: str) -> None:
    """Scaling is a fused multiply-add in float32 and float64, two operations in other dtypes."""
    bound = st.floats(-1e4, 1e4, width=16).map(lambda v: v + 0.0)  # the sign of a zero aside

    @quick
    @given(seed=SEEDS, minval=bound, maxval=bound)
    @example(seed=0, minval=0.1, maxval=0.7)
    @example(seed=0, minval=1.0, maxval=-1.0)
    def check(seed: int, minval: float, maxval: float) -> None:
        theirs = jax_between(jax_key(seed), (600,), dtype, minval, maxval)
        torch_dtype = getattr(torch, dtype)
        key = random.key(seed)
        assert same(random.uniform(key, (600,), torch_dtype, minval, maxval), theirs)
        low, high = (torch.tensor(v, dtype=torch_dtype) for v in (minval, maxval))
        assert same(random.uniform(key, (600,), torch_dtype, low, high), theirs)

    check()


@float_dtype
def test_uniform_with_tensor_bounds_equals_jax(dtype: str) -> None:
    low = np.linspace(-3, 0.3, 5).astype(np.float32)
    high = np.linspace(0.4, 50, 4).astype(np.float32)[:, None]
    key = random.key(3)
    ours = random.uniform(
        key, (4, 5), getattr(torch, dtype), torch.from_numpy(low), torch.from_numpy(high)
    )
    with jax.numpy_dtype_promotion("standard"):
        assert same(ours, jax_between(jax_key(3), (4, 5), dtype, low, high))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_uniform_between_bounds_is_within_one_rounding_of_jitted_jax(dtype: str) -> None:
    """A fused multiply-add skips the rounding of the product, at most half an ulp of it."""
    minval, maxval = -3.0, 7.5
    ours = random.uniform(random.key(0), (5000,), getattr(torch, dtype), minval, maxval).double()
    theirs = jax.random.uniform(jax_key(0), (5000,), dtype, minval, maxval)
    # The product lies below 16: half an ulp is 4 eps. Each sum rounds by at most half an ulp below 8.
    bound = (4 + 2 * 2) * torch.finfo(getattr(torch, dtype)).eps
    gap = (ours - torch.from_numpy(np.asarray(theirs).astype(np.float64))).abs().max()
    assert float(gap) <= bound


def test_uniform_is_differentiable_with_respect_to_its_bounds() -> None:
    low, high = (torch.tensor(v, requires_grad=True) for v in (0.1, 0.7))
    draw = random.uniform(random.key(0), (50,), minval=low, maxval=high)
    unit = random.uniform(random.key(0), (50,))
    assert raw(draw.detach()) == raw(random.uniform(random.key(0), (50,), minval=0.1, maxval=0.7))
    slopes = torch.autograd.grad(draw.sum(), (low, high))
    torch.testing.assert_close(slopes, ((1 - unit).sum(), unit.sum()))


def test_uniform_is_differentiable_in_forward_mode_and_in_a_vmapped_gradient() -> None:
    """In both, `requires_grad` of the bounds is False."""
    key, low = random.key(0), torch.tensor([0.1, 0.3])

    def draw(minval: Tensor) -> Tensor:
        return random.uniform(key, (), minval=minval, maxval=2.0)

    slope = 1 - random.uniform(key, ())
    _, tangent = torch.func.jvp(draw, (low[0],), (torch.tensor(1.0),))
    torch.testing.assert_close(tangent, slope)
    mapped = torch.func.grad(lambda low: torch.vmap(draw)(low).sum())(low)
    torch.testing.assert_close(mapped, slope.expand(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_multiply_add_in_uniform_draws_is_rounded_once(dtype: torch.dtype) -> None:
    """Compare with exact rationals; near cancellation, a second rounding would be visible."""
    from fractions import Fraction

    unit = random.uniform(random.key(0), (300,), dtype)
    for minval, maxval in ((-0.5, 0.5), (0.1, 0.7), (-1e-3, 1e3), (-0.7, 0.1)):
        low, high = (torch.tensor(v, dtype=dtype) for v in (minval, maxval))
        span = Fraction(float(high - low))
        exact = [Fraction(u) * span + Fraction(float(low)) for u in unit.tolist()]
        ours = _floats.scale(unit, low, high).to(torch.float64)
        after = torch.nextafter(ours.to(dtype), torch.tensor(math.inf, dtype=dtype))
        before = torch.nextafter(ours.to(dtype), torch.tensor(-math.inf, dtype=dtype))
        for value, up, down, target in zip(
            ours.tolist(), after.tolist(), before.tolist(), exact, strict=True
        ):
            error = abs(Fraction(value) - target)
            assert error <= min(abs(Fraction(up) - target), abs(Fraction(down) - target))


def test_uniform_between_negative_and_positive_zero_is_positive_zero() -> None:
    draw = random.uniform(random.key(0), (3,), minval=-0.0, maxval=0.0)
    assert raw(draw) == bytes(12)
    bounds = torch.tensor(-0.0), torch.tensor(0.0)
    assert raw(random.uniform(random.key(0), (3,), torch.float32, *bounds)) == bytes(12)


def test_uniform_draws_stay_in_the_half_open_unit_interval() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        draw = random.uniform(random.key(1), (5000,), dtype)
        assert draw.min() >= 0
        assert draw.max() < 1


# -- normal -----------------------------------------------------------------------------------------


@float_dtype
def test_normal_is_within_4_ulp_of_jax(dtype: str) -> None:
    torch_dtype = getattr(torch, dtype)

    @quick
    @given(seed=SEEDS, folds=FOLDS)
    def check(seed: int, folds: list[int]) -> None:
        ours = random.normal(random.key(seed), (2000,), torch_dtype, folds=folds)
        theirs = jax.random.normal(jax_key(seed, folds), (2000,), dtype)
        gap = ordered(ours) - ordered(from_numpy(np.asarray(theirs), torch_dtype))
        assert int(gap.abs().max()) <= (4 if torch_dtype.itemsize > 2 else 0)

    check()


def test_every_float32_normal_is_within_4_ulp_of_jax() -> None:
    """All 2^23 values differ by at most 3 ulp; `torch.erfinv` is off by 20,000 ulp in the tails."""
    index = np.arange(2**23, dtype=np.uint32)
    unit = (index | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    lowest = np.nextafter(np.float32(-1), np.float32(0))

    @jax.jit
    def theirs(unit: Any) -> Any:
        u = jax.numpy.maximum(lowest, unit * np.float32(2) + lowest)
        return np.float32(math.sqrt(2)) * jax.lax.erf_inv(u)

    ours = _normal.normal(torch.from_numpy(unit))
    assert ours.isfinite().all()
    gap = ordered(ours) - ordered(from_numpy(np.asarray(theirs(unit)), torch.float32))
    assert int(gap.abs().max()) <= 4


def test_normal_of_extreme_uniform_values_is_finite_and_centered() -> None:
    for dtype, bits in ((torch.float32, 23), (torch.float64, 52)):
        unit = torch.tensor([0.0, 0.5, 1.0 - 2.0**-bits], dtype=dtype)
        low, middle, high = _normal.normal(unit).tolist()
        assert -9 < low < -5
        assert 5 < high < 9
        assert abs(middle) < 2.0 ** (2 - bits)


def test_normal_draws_have_standard_normal_moments() -> None:
    """Mean, variance and fourth moment of 200,000 draws agree within six standard errors."""
    draw = random.normal(random.key(0), (200_000,)).double()
    n = draw.numel()
    assert abs(draw.mean()) < 6 / math.sqrt(n)
    assert abs((draw**2).mean() - 1) < 6 * math.sqrt(2 / n)
    assert abs((draw**4).mean() - 3) < 6 * math.sqrt(96 / n)


# -- bernoulli --------------------------------------------------------------------------------------


@quick
@given(seed=SEEDS, folds=FOLDS, p=st.floats(width=32) | st.floats(0, 1), shape=SHAPES)
@example(seed=0, folds=[], p=math.nan, shape=(7,))
@example(seed=0, folds=[], p=math.inf, shape=(7,))
@example(seed=0, folds=[], p=-math.inf, shape=(7,))
@example(seed=0, folds=[], p=1e300, shape=(7,))
@example(seed=0, folds=[], p=2.0**-23, shape=(7,))
def test_bernoulli_equals_jax(
    seed: int, folds: list[int], p: float, shape: tuple[int, ...]
) -> None:
    data = np.asarray(jax.random.key_data(jax_key(seed, folds)))
    with jax.enable_x64(False):  # where a number is a float32
        theirs = jax.random.bernoulli(jax.random.wrap_key_data(data), p, shape)
    assert same(random.bernoulli(random.key(seed), p, shape, folds=folds), theirs)


@quick
@given(p=st.floats(0, 1, width=32))
@example(p=0.0)
@example(p=1.0)
@example(p=2.0**-23)
@example(p=0.1)
def test_bernoulli_by_an_integer_threshold_equals_the_comparison_of_floats(p: float) -> None:
    """Words on both sides of the threshold, which random draws seldom hit."""
    index = int(p * 2**23) + np.arange(-2, 3)
    index = torch.from_numpy(index[(index >= 0) & (index < 2**23)].astype(np.int32))
    words = (index << 9).view(torch.uint32)
    unit = _floats.unit(words, torch.float32)
    assert torch.equal(_floats.below(words, p), unit < torch.tensor(p, dtype=torch.float32))


@float_dtype
def test_bernoulli_with_tensor_probabilities_equals_jax(dtype: str) -> None:
    p = jax.numpy.linspace(0, 1, 500, dtype=dtype)
    ours = from_numpy(np.asarray(p), getattr(torch, dtype))
    assert same(random.bernoulli(random.key(5), ours), jax.random.bernoulli(jax_key(5), p))
    assert same(
        random.bernoulli(random.key(5), ours, (3, 500)),
        jax.random.bernoulli(jax_key(5), p, (3, 500)),
    )


# -- randint ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_randint_equals_jax(dtype: str) -> None:
    info = np.iinfo(dtype)
    wide = info.bits >= 32
    # JAX casts bounds to int32 for narrow dtypes, without clipping them first.
    bound = st.integers(-(2**63), 2**63 - 1) if wide else st.integers(-(2**31), 2**31 - 1)
    bound |= st.integers(-20, 20)
    bound |= st.sampled_from([int(info.min), min(int(info.max), 2**63 - 1)])
    if info.max < 2**63 - 1:
        bound |= st.just(int(info.max) + 1)

    @quick
    @given(seed=SEEDS, minval=bound, maxval=bound)
    @example(seed=0, minval=3, maxval=3)
    @example(seed=0, minval=5, maxval=2)
    @example(seed=0, minval=0, maxval=1)
    def check(seed: int, minval: int, maxval: int) -> None:
        theirs = jax.random.randint(jax_key(seed), (20,), minval, maxval, dtype)
        key, torch_dtype = random.key(seed), getattr(torch, dtype)
        assert same(random.randint(key, (20,), minval, maxval, torch_dtype), theirs)
        low, high = torch.tensor(minval), torch.tensor(maxval)
        assert same(random.randint(key, (20,), low, high, torch_dtype), theirs)
        words = [_threefry.bits(key, (i,), (20,), max(32, info.bits)) for i in (0, 1)]
        assert raw(between(*words, minval, maxval, torch_dtype)) == np.asarray(theirs).tobytes()

    check()


def between(high: Tensor, low: Tensor, minval: int, maxval: int, dtype: torch.dtype) -> Tensor:
    from ftrain.core.random import _integers

    base, span = (torch.tensor(v) for v in _integers.clipped(minval, maxval, dtype))
    return _integers.between(high, low, base, span, dtype)


def test_randint_with_tensor_bounds_equals_jax() -> None:
    low, high = np.array([-3, 0, 7]), np.array([[4], [2**40]])
    ours = random.randint(random.key(1), (2, 3), torch.from_numpy(low), torch.from_numpy(high))
    assert same(ours, jax.random.randint(jax_key(1), (2, 3), low, high, "int64"))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_randint_returns_every_value_of_its_range(dtype: str) -> None:
    draw = random.randint(random.key(0), (500,), 2, 5, getattr(torch, dtype))
    assert set(draw.tolist()) == {2, 3, 4}


def test_randint_of_40000_values_equals_jax() -> None:
    for dtype, maxval in (("int64", 10**12), ("uint8", 7), ("int32", 2**31)):
        ours = random.randint(random.key(8), (40_000,), 0, maxval, getattr(torch, dtype))
        assert same(ours, jax.random.randint(jax_key(8), (40_000,), 0, maxval, dtype))


# -- permutation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 10, 1625, 1626, 4000])
def test_permutation_equals_jax(count: int) -> None:
    for seed in (0, -1, 2**40 + 1):
        ours = random.permutation(random.key(seed), count, folds=(3,))
        assert same(ours, jax.random.permutation(jax_key(seed, (3,)), count))
        assert torch.equal(ours.sort().values, torch.arange(count))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("independent", [False, True])
def test_permutation_of_a_tensor_equals_jax(axis: int, independent: bool) -> None:
    x = np.arange(3 * 700, dtype=np.float32).reshape(3, 700)
    ours = random.permutation(random.key(2), torch.from_numpy(x), axis, independent)
    assert same(ours, jax.random.permutation(jax_key(2), x, axis, independent))
