"""Test exponential, gamma, categorical and other draws against JAX, within the documented distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ftrain import random

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

N = 5_000
INF = float("inf")
quick = settings(deadline=None, max_examples=4)
KEYS = st.tuples(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=2))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def jax_key(seed: int, folds: list[int] | tuple[int, ...] = ()) -> Any:
    key = jax.random.key(seed)
    for data in folds:
        key = jax.random.fold_in(key, data)
    return key


def widened(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def distance(ours: Tensor, theirs: Any, floor: float = 0.0) -> float:
    """Return the largest distance relative to `max(floor, |theirs|)`, in eps of the dtype."""
    assert tuple(ours.shape) == np.shape(theirs)
    expected = widened(theirs)
    gap = (ours.double() - expected).abs() / expected.abs().clamp_min(max(floor, 1e-300))
    return float(gap.nan_to_num(0.0, posinf=INF).max()) / torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["exponential", "laplace"])
def test_exponential_and_laplace_draws_are_within_2_ulp_of_jax(name: str, dtype: str) -> None:
    @quick
    @given(KEYS)
    def check(drawn: tuple[int, list[int]]) -> None:
        seed, folds = drawn
        ours = getattr(random, name)(random.key(seed), (N,), getattr(torch, dtype), folds=folds)
        theirs = getattr(jax.random, name)(jax_key(seed, folds), (N,), dtype)
        assert distance(ours, theirs) <= (0 if ours.itemsize == 2 else 2)

    check()


@pytest.mark.parametrize("mode", ["low", "high"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_gumbel_draws_are_within_2_eps_of_jax(dtype: str, mode: Any) -> None:
    @quick
    @given(KEYS)
    def check(drawn: tuple[int, list[int]]) -> None:
        seed, folds = drawn
        ours = random.gumbel(random.key(seed), (N,), getattr(torch, dtype), mode, folds=folds)
        theirs = jax.random.gumbel(jax_key(seed, folds), (N,), dtype, mode)
        assert distance(ours, theirs, floor=1.0) <= 2

    check()


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-1.0, 0.5), (0.0, INF), (-INF, INF), (2.0, 3.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_truncated_normal_draws_are_within_4_ulp_of_jax(
    dtype: str, bounds: tuple[float, float]
) -> None:
    for seed in range(3):
        ours = random.truncated_normal(random.key(seed), *bounds, (N,), getattr(torch, dtype))
        assert distance(ours, jax.random.truncated_normal(jax_key(seed), *bounds, (N,), dtype)) <= 4
        assert ours.min() > bounds[0]
        assert ours.max() < bounds[1]


def test_truncated_normal_draws_with_tensor_bounds_equal_those_with_numbers() -> None:
    low, high = torch.tensor([-1.0, 0.0, 0.25]), torch.tensor([[0.5], [INF]])
    ours = random.truncated_normal(random.key(0), low, high, (4, 2, 3))
    theirs = jax.random.truncated_normal(
        jax_key(0), low.numpy(), high.numpy(), (4, 2, 3), "float32"
    )
    assert ours.isnan().equal(torch.from_numpy(np.isnan(theirs)))
    assert distance(ours, theirs) <= 4


# JAX takes many seconds to compile a gamma sampler: each test has few shapes, and arrays of parameters.
ALPHAS = torch.tensor([[0.5], [0.999], [1.0], [3.7], [100.0], [1e4]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gamma_draws_are_within_200_eps_of_jax(dtype: str) -> None:
    """1 float32 sample in 10^6 differs by its acceptance; none of those here."""
    alphas = ALPHAS.to(getattr(torch, dtype))
    for seed in range(2):
        ours = random.gamma(random.key(seed), alphas, (6, N))
        theirs = jax.random.gamma(jax_key(seed), alphas.numpy(), (6, N), dtype)
        assert distance(ours, theirs) <= 200


def test_logarithms_of_gamma_draws_with_a_small_parameter_match_jax() -> None:
    alphas = torch.tensor([[0.01], [0.02], [0.05], [0.1], [0.2], [0.3]], dtype=torch.float64)
    ours = random.gamma(random.key(1), alphas, (6, N))
    theirs = widened(jax.random.gamma(jax_key(1), alphas.numpy(), (6, N), "float64"))
    normal = ours > torch.finfo(torch.float64).tiny
    gap = (ours.log() - theirs.log()).abs() / theirs.log().abs().clamp_min(1)
    assert float(gap[normal].max()) <= 8 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_beta_draws_are_within_200_eps_of_jax(dtype: str) -> None:
    a, b = (torch.tensor(v, dtype=getattr(torch, dtype)) for v in ([0.5, 1, 100], [0.5, 2, 3]))
    ours = random.beta(random.key(4), a, b, (N, 3), folds=(7,))
    theirs = jax.random.beta(jax_key(4, (7,)), a.numpy(), b.numpy(), (N, 3), dtype)
    assert distance(ours, theirs) <= 200


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dirichlet_draws_are_within_200_eps_of_jax(dtype: str) -> None:
    alpha = torch.tensor([[0.5, 1.0, 3.0], [100.0, 2.0, 0.7]], dtype=getattr(torch, dtype))
    ours = random.dirichlet(random.key(5), alpha, (2000, 2))
    theirs = jax.random.dirichlet(jax_key(5), alpha.numpy(), (2000, 2), dtype)
    assert distance(ours, theirs) <= 200
    assert (ours.sum(-1) - 1).abs().max() <= 4 * torch.finfo(ours.dtype).eps
    assert random.dirichlet(random.key(5), alpha).shape == (2, 3)


@pytest.mark.parametrize("rate", [0.0, 0.01, 3.0, 9.99, 10.0, 40.0, 100.0])
def test_poisson_counts_equal_those_of_jax(rate: float) -> None:
    for seed in range(2):
        ours = random.poisson(random.key(seed), rate, (N,))
        assert bool((ours == widened(jax.random.poisson(jax_key(seed), rate, (N,)))).all())


def test_poisson_counts_of_mixed_rates_equal_those_of_jax() -> None:
    """Elements above 10 depend on the rounds that the others need, those below 10 included."""
    rates = torch.linspace(0, 60, 300).view(3, 100)
    ours = random.poisson(random.key(2), rates, dtype=torch.int32)
    assert ours.dtype == torch.int32
    assert bool((ours == widened(jax.random.poisson(jax_key(2), rates.numpy()))).all())


def test_nearly_all_poisson_counts_of_a_large_rate_equal_those_of_jax() -> None:
    ours = random.poisson(random.key(0), 1e5, (100_000,))
    theirs = widened(jax.random.poisson(jax_key(0), 1e5, (100_000,)))
    assert float((ours != theirs).double().mean()) < 0.005


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_rademacher_draws_of_64_bits_equal_jax(dtype: str) -> None:
    ours = random.rademacher(random.key(6), (999,), getattr(torch, dtype))
    assert bool((ours == widened(jax.random.rademacher(jax_key(6), (999,), dtype))).all())


@pytest.mark.parametrize("dtype", ["float32", "int32", "int8"])
def test_rademacher_draws_of_fewer_bits_equal_jax_without_x64(dtype: str) -> None:
    ours = random.rademacher(random.key(6), (999,), getattr(torch, dtype))
    with jax.enable_x64(False):
        theirs = widened(jax.random.rademacher(jax_key(6), (999,), dtype))
    assert bool((ours == theirs).all())


LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("axis", "ahead", "replace", "mode"),
    [
        (-1, None, True, "low"),
        (0, (), True, "low"),
        (1, (2,), True, "high"),
        (-1, (3, 1), True, "low"),
        (1, None, False, "low"),
        (0, (3,), False, "high"),
        (-1, (2, 2), False, "low"),
    ],
)
def test_categorical_draws_equal_jax(
    axis: int, ahead: tuple[int, ...] | None, replace: bool, mode: Any
) -> None:
    batch = tuple(np.delete(LOGITS.shape, axis).tolist())
    shape = None if ahead is None else (*ahead, *batch)
    ours = random.categorical(random.key(7), LOGITS, axis, shape, replace, mode)
    theirs = jax.random.categorical(
        jax_key(7), LOGITS.numpy(), axis, batch if shape is None else shape, replace, mode
    )
    assert ours.dtype == torch.int64
    assert tuple(ours.shape) == theirs.shape
    assert bool((ours == widened(theirs)).all())


def test_categorical_draws_of_broadcast_logits_equal_jax() -> None:
    ours = random.categorical(random.key(8), LOGITS[:1, :, :], shape=(6, 3, 4))
    theirs = jax.random.categorical(jax_key(8), LOGITS[:1].numpy(), shape=(6, 3, 4))
    assert bool((ours == widened(theirs)).all())


P = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CHOICES: dict[str, tuple[Any, tuple[int, ...], bool, Tensor | None, int]] = {
    "integer": (7, (4, 3), True, None, 0),
    "integer, one draw": (7, (), True, None, 0),
    "integer without replacement": (7, (2, 3), False, None, 0),
    "rows": (torch.arange(14).view(7, 2), (2, 3), True, None, 0),
    "columns without replacement": (torch.arange(14).view(2, 7), (2, 2), False, None, 1),
    "integer with weights": (7, (50, 40), True, P, 0),
    "integer with weights without replacement": (7, (5,), False, P, 0),
    "columns with float32 weights": (torch.arange(14).view(2, 7), (3,), True, P.float(), -1),
    "columns with weights without replacement": (torch.rand(2, 7), (3,), False, P, 1),
    "vector": (torch.rand(7), (3,), False, None, 0),
    "no draws": (7, (0, 2), True, None, 0),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices_equal_those_of_jax(case: str) -> None:
    a, shape, replace, p, axis = CHOICES[case]
    array = a.numpy() if isinstance(a, Tensor) else a
    for seed in range(3):
        ours = random.choice(random.key(seed), a, shape, replace, p, axis)
        weights = None if p is None else p.numpy()
        theirs = jax.random.choice(jax_key(seed), array, shape, replace, weights, axis)
        assert tuple(ours.shape) == theirs.shape
        assert bool((ours.double() == widened(theirs)).all())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_multivariate_normal_draws_are_within_4_eps_of_jax(dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 5, 5, dtype=getattr(torch, dtype), generator=generator)
    cov, mean = root @ root.mT + torch.eye(5, dtype=root.dtype), torch.arange(5.0).to(root.dtype)
    for shape in (None, (100, 2)):
        ours = random.multivariate_normal(random.key(9), mean, cov, shape).double()
        theirs = widened(
            jax.random.multivariate_normal(jax_key(9), mean.numpy(), cov.numpy(), shape)
        )
        eps = torch.finfo(root.dtype).eps
        assert float((ours - theirs).norm() / theirs.norm()) <= 4 * eps


@pytest.mark.parametrize("size", [(1, None), (3, None), (16, None), (8, 20), (20, 8), (4, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal_matrices_are_within_4_n_eps_of_jax(
    dtype: str, size: tuple[int, int | None]
) -> None:
    n, m = size
    ours = random.orthogonal(random.key(3), n, (2,), getattr(torch, dtype), m)
    theirs = widened(jax.random.orthogonal(jax_key(3), n, (2,), dtype, m))
    assert ours.shape == theirs.shape
    gap = (ours - theirs).abs().max() if ours.numel() else torch.zeros(())
    assert float(gap) <= 4 * n * torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_points_of_a_ball_are_within_64_eps_of_jax(dtype: str) -> None:
    for p in (2.0, 0.5, 1.0, 5.0):
        ours = random.ball(random.key(2), 3, p, (500,), getattr(torch, dtype))
        with jax.enable_x64(dtype == "float64"):
            theirs = jax.random.ball(jax_key(2), 3, p, (500,), dtype)
        assert distance(ours, theirs, floor=1.0) <= 64
        assert ours.double().abs().pow(p).sum(-1).max() <= 1 + 1e-6


@pytest.mark.parametrize("p", [20.0, 100.0, 1e4])
def test_coordinates_of_a_ball_of_large_exponent_do_not_underflow(p: float) -> None:
    """The ball is nearly a cube: |x| is nearly uniform. JAX draws zeros, 90 % of them for p = 1000."""
    drawn = random.ball(random.key(0), 2, p, (20_000,)).abs().flatten()
    assert (drawn > 0).float().mean() > 0.999
    for level in (0.1, 0.3, 0.7):
        error = (drawn < level).double().mean() - level
        assert abs(error) < 0.015  # four standard errors of 40,000, and 0.005 for a finite p


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "half precision": (
        lambda key: random.gamma(key, 1.0, dtype=torch.bfloat16),
        "expected dtype to be float32 or float64, got torch.bfloat16",
    ),
    "mode": (lambda key: random.gumbel(key, mode="highest"), "expected mode"),  # type: ignore[arg-type]
    "keys": (lambda key: random.gamma(key.expand(3, 2), 1.0), "expected one key"),
    "shapes": (
        lambda key: random.beta(key, torch.ones(2), torch.ones(3)),
        "broadcast to one shape",
    ),
    "shape": (
        lambda key: random.gamma(key, torch.ones(2), (3,)),
        "broadcast to the result's shape",
    ),
    "complex": (lambda key: random.gamma(key, torch.ones(2) * 1j), "real numbers"),
    "rate": (lambda key: random.poisson(key, torch.tensor([1.0, -1.0])), "rates of 0 or more"),
    "infinite rate": (lambda key: random.poisson(key, float("inf")), "finite rates of 0 or more"),
    "NaN rate": (lambda key: random.poisson(key, float("nan")), "finite rates of 0 or more"),
    "large rate": (lambda key: random.poisson(key, 1e20), r"at most 2\^62 for counts of 64 bits"),
    "rate of int32": (
        lambda key: random.poisson(key, 3e9, dtype=torch.int32),
        r"at most 2\^30 for counts of 32 bits",
    ),
    "NaN weight": (
        lambda key: random.choice(key, 3, (4,), p=torch.tensor([1.0, float("nan"), 1.0])),
        "finite weights p of 0 or more",
    ),
    "infinite weight": (
        lambda key: random.choice(key, 2, (4,), p=torch.tensor([1.0, float("inf")])),
        "finite weights p of 0 or more",
    ),
    "no weight": (lambda key: random.choice(key, 3, (4,), p=torch.zeros(3)), "positive sum"),
    "negative weight": (
        lambda key: random.choice(key, 3, (2,), False, p=torch.tensor([1.0, -1.0, 1.0])),
        "finite weights p of 0 or more",
    ),
    "few weights": (
        lambda key: random.choice(key, 4, (3,), False, p=torch.tensor([0.0, 0.5, 0.0, 0.5])),
        "at least 3 positive weights p for 3 draws without replacement, got 2",
    ),
    "few weights of a row": (
        lambda key: torch.vmap(lambda k, p: random.choice(k, 3, (2,), False, p=p))(
            random.split(key, 2), torch.eye(3)[:2] + torch.tensor([[1.0, 0.0, 0.0]])
        ),
        "at least 2 positive weights p for 2 draws without replacement, got 1",
    ),
    "empty interval": (
        lambda key: random.truncated_normal(key, 2.0, -2.0),
        "expected lower < upper",
    ),
    "empty interval of a tensor": (
        lambda key: random.truncated_normal(key, torch.tensor([0.0, 1.0]), 1.0),
        "expected lower < upper",
    ),
    "no categories": (
        lambda key: random.categorical(key, torch.zeros(2, 0)),
        "at least one category",
    ),
    "no alpha": (lambda key: random.dirichlet(key, torch.ones(2, 0)), "n >= 1"),
    "count type": (lambda key: random.poisson(key, 1.0, dtype=torch.float32), "int32 or int64"),
    "alpha": (lambda key: random.dirichlet(key, 0.5), "write|tensor"),  # type: ignore[arg-type]
    "too many": (lambda key: random.choice(key, 3, (4,), replace=False), "4 or more elements"),
    "nothing": (lambda key: random.choice(key, 0, (4,)), "1 or more elements"),
    "weights": (lambda key: random.choice(key, 3, (4,), p=torch.ones(2)), r"shape \(3,\)"),
    "categories": (
        lambda key: random.categorical(key, torch.zeros(3), shape=(4,), replace=False),
        "at most 3 draws",
    ),
    "axis": (lambda key: random.categorical(key, torch.zeros(3), axis=1), "expected axis"),
    "integer logits": (lambda key: random.categorical(key, torch.ones(3).long()), "expected dtype"),
    "sign": (lambda key: random.rademacher(key, dtype=torch.uint8), "signed integer"),
    "covariance": (
        lambda key: random.multivariate_normal(key, torch.zeros(3), torch.eye(2)),
        r"expected cov to be \(..., 3, 3\)",
    ),
    "mean": (lambda key: random.multivariate_normal(key, torch.tensor(0.0), torch.eye(1)), "mean"),
    "norm": (lambda key: random.ball(key, 3, 0.0), "positive finite"),
    "sizes": (lambda key: random.orthogonal(key, -1), "0 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_random_distributions_refuse_invalid_arguments(case: str) -> None:
    draw, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        draw(random.key(0))


def test_gamma_draws_of_invalid_parameters_are_nan() -> None:
    drawn = random.gamma(random.key(0), torch.tensor([-1.0, float("nan"), INF, 0.0]))
    assert drawn[:3].isnan().all()
    assert drawn[3] == 0


def test_multivariate_normal_draws_of_an_indefinite_covariance_are_nan() -> None:
    assert random.multivariate_normal(random.key(0), torch.zeros(2), -torch.eye(2)).isnan().all()


def test_multivariate_normal_draws_of_no_dimensions_are_empty() -> None:
    drawn = random.multivariate_normal(random.key(0), torch.zeros(2, 0), torch.zeros(0, 0))
    assert drawn.shape == (2, 0)
