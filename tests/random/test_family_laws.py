"""Test gamma, categorical and other draws: equal samples in every mode for one key, and derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ftrain import random
from ftrain.core.compile import compile
from ftrain.core.random import _jax_families
from tests.compile.cases import same_bytes

F64 = torch.float64
# Functions of a key and of parameters `(3,)` in [0.5, 2.5].
DRAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exponential": lambda key, p: random.exponential(key, (5,)),
    "gumbel": lambda key, p: random.gumbel(key, (5,), mode="high"),
    "laplace": lambda key, p: random.laplace(key, (2, 3), torch.bfloat16),
    "uniform": lambda key, p: random.uniform(key, (4, 3), minval=-p, maxval=p),
    "truncated_normal": lambda key, p: random.truncated_normal(key, -p, p, (4, 3)),
    "gamma": lambda key, p: random.gamma(key, p, (40, 3)),
    "beta": lambda key, p: random.beta(key, p, p.flip(0), (40, 3)),
    "dirichlet": lambda key, p: random.dirichlet(key, p, (40,)),
    "poisson": lambda key, p: random.poisson(key, p * 10, (40, 3)),
    "rademacher": lambda key, p: random.rademacher(key, (5,)),
    "categorical": lambda key, p: random.categorical(key, p.log(), shape=(20,)),
    "categorical without replacement": lambda key, p: random.categorical(
        key, p.log(), shape=(2,), replace=False
    ),
    "choice": lambda key, p: random.choice(key, p, (6,), p=p),
    "choice without replacement": lambda key, p: random.choice(key, p, (2,), False, p),
    "permuted choice": lambda key, p: random.choice(key, p, (2,), False),
    "multivariate_normal": lambda key, p: random.multivariate_normal(
        key, p, torch.diag(p) + 0.1, (4,)
    ),
    "orthogonal": lambda key, p: random.orthogonal(key, 4, m=3),
    "ball": lambda key, p: random.ball(key, 3, shape=(4,)),
}
PARAMETERS = torch.tensor([[0.5, 1.0, 2.5], [0.7, 0.9, 1.1], [2.0, 1.5, 0.6], [1.0, 2.0, 0.55]])


@pytest.mark.parametrize("name", DRAWS)
def test_draws_match_in_eager_compiled_and_vmapped_code(name: str) -> None:
    draw, keys = DRAWS[name], random.split(random.key(3), 4)
    expected = torch.stack([draw(*each) for each in zip(keys, PARAMETERS, strict=True)])
    assert same_bytes(torch.vmap(draw)(keys, PARAMETERS), expected)
    assert same_bytes(compile(draw, backend="eager")(keys[0], PARAMETERS[0]), expected[0])
    mapped = compile(lambda k, p: torch.vmap(draw)(k, p), backend="eager")
    assert same_bytes(mapped(keys, PARAMETERS), expected)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_vmapped_over_parameters_with_one_key_equal_separate_draws(name: str) -> None:
    draw, key = DRAWS[name], random.key(3)
    mapped = torch.vmap(lambda p: draw(key, p), randomness="error")
    expected = torch.stack([draw(key, p) for p in PARAMETERS])
    assert same_bytes(mapped(PARAMETERS), expected)


@pytest.mark.inductor
def test_draws_compiled_by_inductor_equal_eager_ones() -> None:
    def all_draws(key: Tensor, p: Tensor) -> list[Tensor]:
        return [draw(key, p) for name, draw in DRAWS.items() if name != "uniform"]

    key = random.key(5)
    compiled = compile(all_draws)(key, PARAMETERS[0])
    for ours, expected in zip(compiled, all_draws(key, PARAMETERS[0]), strict=True):
        assert same_bytes(ours, expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 3))
def test_elements_of_a_draw_do_not_depend_on_the_number_of_elements(
    seed: int, count: int, more: int
) -> None:
    key = random.key(seed)
    for draw in (random.exponential, random.gumbel, random.laplace):
        assert same_bytes(draw(key, (count + more,))[:count], draw(key, (count,)))
    alpha = torch.linspace(0.1, 5.0, count + more)
    assert same_bytes(random.gamma(key, alpha)[:count], random.gamma(key, alpha[:count]))


def test_choice_with_replacement_draws_every_element() -> None:
    index = random.choice(random.key(0), 3, (4, 5))
    assert same_bytes(index, random.randint(random.key(0), (4, 5), 0, 3))
    assert set(index.flatten().tolist()) == {0, 1, 2}
    rows = torch.arange(6.0).reshape(3, 2)
    assert same_bytes(random.choice(random.key(0), rows, (4, 5)), rows[index])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2))
def test_draws_with_the_argument_folds_equal_draws_from_a_key_after_fold_in(
    seed: int, folds: list[int]
) -> None:
    key = folded = random.key(seed)
    for data in folds:
        folded = random.fold_in(folded, data)
    p = torch.tensor([0.5, 1.5])
    assert same_bytes(random.gamma(key, p, folds=folds), random.gamma(folded, p))
    assert same_bytes(random.beta(key, p, p, folds=folds), random.beta(folded, p, p))
    assert same_bytes(random.poisson(key, 20 * p, folds=folds), random.poisson(folded, 20 * p))
    assert same_bytes(random.ball(key, 2, folds=folds), random.ball(folded, 2))
    assert same_bytes(random.choice(key, 9, (3,), folds=folds), random.choice(folded, 9, (3,)))
    assert same_bytes(
        random.choice(key, 2, (3,), p=p, folds=folds), random.choice(folded, 2, (3,), p=p)
    )
    assert same_bytes(random.categorical(key, p, folds=folds), random.categorical(folded, p))


# -- derivatives ------------------------------------------------------------------------------------

KEY = random.key(17)
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda p: random.uniform(KEY, (3,), F64, -p, 2 * p),
    "truncated_normal": lambda p: random.truncated_normal(KEY, -p, 2 * p),
    "multivariate_normal": lambda p: random.multivariate_normal(
        KEY, p.sin(), torch.diag(p) + p.outer(p), (2,)
    ),
    "choice": lambda p: random.choice(KEY, p**2, (5,)),
}
POINT = torch.tensor([0.6, 1.1, 1.7], dtype=F64)


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_a_draw_equal_finite_differences_to_second_order(name: str) -> None:
    draw = SMOOTH[name]
    p = POINT.clone().requires_grad_()
    assert torch.autograd.gradcheck(draw, p, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda p: draw(p) ** 2, p)


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_a_draw_are_right_under_vmap_and_in_forward_mode(name: str) -> None:
    """Under `vmap` in a gradient, and in forward mode, `requires_grad` of a parameter is False."""
    draw = SMOOTH[name]
    points = torch.stack([POINT, POINT + 0.3])
    jacobians = torch.stack([torch.func.jacrev(draw)(p) for p in points])
    mapped = torch.func.grad(lambda p: torch.vmap(draw)(p).sum())(points)
    torch.testing.assert_close(mapped, jacobians.flatten(1, -2).sum(1))
    torch.testing.assert_close(torch.func.jacfwd(draw)(POINT), jacobians[0])
    traced = compile(lambda p: torch.func.jacrev(draw)(p), backend="eager")
    torch.testing.assert_close(traced(POINT), jacobians[0])


def test_torch_compile_accepts_gamma_draws_only_without_gradients() -> None:
    """Dynamo refuses autograd functions that have a `jvp`, if an input requires a gradient."""
    for name in ("gamma", "beta", "dirichlet"):
        traced = torch.compile(DRAWS[name], fullgraph=True, backend="eager")
        assert same_bytes(traced(KEY, PARAMETERS[0]), DRAWS[name](KEY, PARAMETERS[0]))
    with pytest.raises(RuntimeError, match="jvp"):
        torch.compile(DRAWS["gamma"], fullgraph=True, backend="eager")(
            KEY, PARAMETERS[0].clone().requires_grad_()
        )


@pytest.mark.parametrize("name", ["uniform", "truncated_normal"])
def test_derivatives_of_a_draw_are_right_under_torch_compile(name: str) -> None:
    draw, p = SMOOTH[name], POINT.clone().requires_grad_()
    traced = torch.compile(draw, fullgraph=True, backend="aot_eager")(p)
    assert same_bytes(traced.detach(), draw(p).detach())
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), p) for out in (traced, draw(p))))


def implicit_slope(x: Tensor, alpha: Tensor) -> Tensor:
    """Return dx / dalpha of gamma samples, from differences of the distribution function."""
    law, step = stats.gamma, 1e-5
    a, at = alpha.numpy(), x.numpy()
    slope = (law.cdf(at, a + step) - law.cdf(at, a - step)) / (2 * step)
    return torch.from_numpy(-slope / law.pdf(at, a))


def test_gamma_draws_have_the_implicit_derivative() -> None:
    """Within 5e-4, the relative error of torch's approximation."""
    alpha = torch.linspace(0.3, 20.0, 200, dtype=F64)
    x, slope = torch.func.jvp(lambda a: random.gamma(KEY, a), (alpha,), (torch.ones_like(alpha),))
    torch.testing.assert_close(slope, implicit_slope(x, alpha), rtol=6e-4, atol=1e-8)
    reverse = torch.func.grad(lambda a: random.gamma(KEY, a).sum())(alpha)
    torch.testing.assert_close(reverse, slope)


def test_logarithms_of_gamma_draws_have_the_implicit_derivative_near_zero() -> None:
    """Below exp(-30) by a series, whose first term left out is as small as the sample."""
    alpha = torch.full((400,), 0.05, dtype=F64)
    draw = lambda a: _jax_families.log_gamma(KEY, (), a)  # noqa: E731
    log_x, slope = torch.func.jvp(draw, (alpha,), (torch.ones_like(alpha),))
    assert (log_x < -30).any()
    assert (log_x > -30).any()
    far = log_x > -600
    expected = implicit_slope(log_x[far].exp(), alpha[far]) / log_x[far].exp()
    torch.testing.assert_close(slope[far], expected, rtol=6e-4, atol=1e-6)


def test_beta_and_dirichlet_draws_are_differentiable() -> None:
    """E[x] = a / (a + b), and the mean of the derivative is the derivative of the mean."""
    a = torch.tensor(1.5, dtype=F64)
    slope = torch.func.grad(lambda a: random.beta(KEY, a, 2.0, (40_000,)).mean())(a)
    assert abs(float(slope) - 2.0 / 3.5**2) < 5e-3
    alpha = torch.tensor([1.5, 2.0], dtype=F64)
    jacobian = torch.func.jacrev(lambda a: random.dirichlet(KEY, a, (40_000,)).mean(0))(alpha)
    assert abs(float(jacobian[0, 0]) - 2.0 / 3.5**2) < 5e-3
    torch.testing.assert_close(jacobian.sum(0), torch.zeros(2, dtype=F64), atol=1e-12, rtol=0)


def test_gamma_draws_that_underflow_have_a_derivative_of_zero() -> None:
    alpha = torch.full((50,), 1e-3)
    sample, slope = torch.func.jvp(lambda a: random.gamma(KEY, a), (alpha,), (alpha,))
    assert bool((slope[sample == 0] == 0).all())
    assert bool(slope.isfinite().all())


def test_second_derivatives_of_gamma_draws_raise() -> None:
    first = torch.func.grad(lambda a: random.gamma(KEY, a))
    with pytest.raises(NotImplementedError, match="second derivative of a gamma"):
        torch.func.grad(first)(torch.tensor(2.0))


@pytest.mark.parametrize("rate", [4.0, 50.0, 1e4])
def test_poisson_draws_have_the_poisson_distribution(rate: float) -> None:
    counts = random.poisson(KEY, rate, (40_000,)).double()
    assert abs(float(counts.mean()) - rate) < 5 * (rate / 40_000) ** 0.5
    assert abs(float(counts.var()) / rate - 1) < 5 * (2 / 40_000) ** 0.5 + 1 / rate / 20
