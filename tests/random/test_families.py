"""Test gamma, Dirichlet, Poisson, binomial and von Mises draws: distributions and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from torch import Tensor
from torch.distributions.dirichlet import _Dirichlet_backward

from ftrain import random
from ftrain.core.compile import compile
from ftrain.core.random import _families, _rejection
from tests.compile.cases import same_bytes

KEY = random.key(11)
N = 150_000
NAN = float("nan")
FAMILIES: dict[str, Callable[..., Tensor]] = {
    "gamma": _families.gamma,
    "dirichlet": _families.dirichlet,
    "poisson": _families.poisson,
    "binomial": _families.binomial,
    "von_mises": _families.von_mises,
}

# A right sampler fails one of these 60 tests at this level in one of 30 choices of the key, and KEY is
# fixed; the wrong parameters of test_goodness_of_fit_checks_reject_samples_of_wrong_parameters are all
# far below it.
LEVEL = 5e-4


def continuous(sample: Tensor, law: Any) -> float:
    """Return the p-value of the Kolmogorov-Smirnov test."""
    return float(stats.kstest(sample.double().numpy(), law.cdf).pvalue)


def discrete(sample: Tensor, law: Any) -> float:
    """Return the p-value of the chi-squared test, over bins that expect at least 20 samples."""
    counts = np.bincount(sample.long().numpy())
    expected = law.pmf(np.arange(len(counts))) * len(sample)
    bins = np.searchsorted(np.cumsum(expected) // 20, np.arange(expected.sum() // 20))
    if len(np.unique(bins)) < 2:
        return 1.0
    found, wanted = (np.add.reduceat(x, np.unique(bins)) for x in (counts, expected))
    return float(stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue)


def full(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((N,), value, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.999, 1.0, 2.5, 50.0, 1e6, 1e12])
def test_gamma_samples_have_the_gamma_distribution(alpha: float, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and (alpha > 1e6 or alpha < 0.2):
        return  # too few bits to resolve the standard deviation; too many samples below the least float
    sample = _families.gamma(KEY, (1,), full(alpha, dtype))
    assert continuous(sample, stats.gamma(alpha)) > LEVEL


def test_gamma_and_dirichlet_samples_of_a_tiny_alpha_do_not_underflow() -> None:
    """Most gamma values are below the smallest float, but Dirichlet samples are ratios of them."""
    sample = _families.gamma(KEY, (), full(1e-4, torch.float32))
    assert sample.min() == torch.finfo(torch.float32).tiny
    shares = _families.dirichlet(KEY, (), torch.full((N, 3), 1e-4, dtype=torch.float64))
    assert torch.isfinite(shares).all()
    counts = torch.bincount(shares.argmax(-1), minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > LEVEL


@pytest.mark.parametrize("rate", [1e-3, 0.7, 5.0, 9.99, 10.0, 17.3, 123.4, 1e5])
def test_poisson_samples_have_the_poisson_distribution(rate: float) -> None:
    assert discrete(_families.poisson(KEY, (2,), full(rate)), stats.poisson(rate)) > LEVEL


@pytest.mark.parametrize("rate", [1e9, 1e14])
def test_poisson_samples_of_a_large_rate_have_the_normal_distribution(rate: float) -> None:
    sample = _families.poisson(KEY, (2,), full(rate))
    assert continuous((sample - rate) / rate**0.5, stats.norm) > LEVEL


@pytest.mark.parametrize(
    ("count", "prob"),
    [
        (1, 0.3),
        (10, 0.5),
        (30, 0.2),
        (100, 0.07),
        (25, 0.45),
        (100, 0.5),
        (1000, 0.97),
        (10**6, 0.3),
    ],
)
def test_binomial_samples_have_the_binomial_distribution(count: int, prob: float) -> None:
    sample = _families.binomial(KEY, (3,), full(count), full(prob))
    assert discrete(sample, stats.binom(count, prob)) > LEVEL


@pytest.mark.parametrize("kappa", [1e-200, 1e-3, 0.5, 2.0, 10.0, 1e3, 1e8, 1e17])
def test_von_mises_samples_have_the_von_mises_distribution(kappa: float) -> None:
    sample = _families.von_mises(KEY, (4,), full(kappa))
    law = stats.norm(0, kappa**-0.5) if kappa > 1e6 else stats.vonmises(kappa)
    assert continuous(sample, law) > LEVEL


def test_dirichlet_samples_have_beta_marginals() -> None:
    alpha = torch.tensor([0.05, 0.7, 2.0, 9.0], dtype=torch.float64)
    sample = _families.dirichlet(KEY, (5,), alpha.expand(N, 4))
    assert (sample.sum(-1) - 1).abs().max() < 1e-12
    for i, a in enumerate(alpha.tolist()):
        assert continuous(sample[:, i], stats.beta(a, float(alpha.sum()) - a)) > LEVEL


def test_goodness_of_fit_checks_reject_samples_of_wrong_parameters() -> None:
    gamma, poisson = _families.gamma(KEY, (1,), full(2.5)), _families.poisson(KEY, (2,), full(17.3))
    assert continuous(gamma, stats.gamma(2.55)) < LEVEL
    assert discrete(poisson, stats.poisson(17.5)) < LEVEL


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        (
            "gamma",
            [[0.0, float("inf"), float("nan"), -1.0]],
            [1.1754943508222875e-38, *[float("nan")] * 3],
        ),
        ("poisson", [[0.0, 0.0]], [0.0, 0.0]),
        ("binomial", [[0.0, 7.0, 7.0, -1.0], [0.5, 0.0, 1.0, 0.5]], [0.0, 0.0, 7.0, 0.0]),
        ("binomial", [[5.0, NAN], [NAN, 0.5]], [NAN, NAN]),
        ("von_mises", [[0.0, NAN, -1.0]], [NAN, NAN, NAN]),
    ],
)
def test_distributions_at_edge_parameters_return_their_limits(
    name: str, params: Any, expected: Any
) -> None:
    found = FAMILIES[name](KEY, (), *map(torch.tensor, params))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rate", [-1.0, NAN])
def test_poisson_refuses_a_negative_or_nan_rate_as_torch_does(rate: float) -> None:
    with pytest.raises(RuntimeError, match="Poisson"):
        torch.poisson(torch.tensor([rate]))
    with random.keyed(KEY), pytest.raises(ValueError, match="rates of 0 or more"):
        torch.poisson(torch.tensor([rate]))


def test_poisson_refuses_integer_rates() -> None:
    with (
        random.keyed(KEY),
        pytest.raises(TypeError, match=r"poisson: expected floating-point .* got torch.int64"),
    ):
        torch.poisson(torch.tensor([3]))


parameters = st.floats(0.015625, 60, width=32)


@given(st.lists(parameters, min_size=2, max_size=12), st.sampled_from(sorted(FAMILIES)), st.data())
@settings(max_examples=25)
def test_each_sampled_element_does_not_depend_on_the_parameters_of_other_elements(
    values: Any, name: str, data: Any
) -> None:
    """It does not depend on how often samples of other elements are rejected either."""
    if name == "dirichlet":
        return

    def sample(values: Any) -> Tensor:
        x = torch.tensor(values)
        params = (torch.full_like(x, 300.0).floor(), x / 64) if name == "binomial" else (x,)
        return FAMILIES[name](KEY, (1,), *params)

    place = data.draw(st.integers(0, len(values) - 1))
    others = data.draw(st.lists(parameters, min_size=len(values), max_size=len(values)))
    others[place] = values[place]
    assert same_bytes(sample(values)[place], sample(others)[place])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_samples_have_the_shape_and_dtype_of_the_parameters(
    name: str, shape: Any, dtype: Any
) -> None:
    if name == "dirichlet" and shape in ((), (3, 0)):
        return
    params = [torch.full(shape, 0.5, dtype=dtype)] * (2 if name == "binomial" else 1)
    found = FAMILIES[name](KEY, (), *params)
    assert (found.shape, found.dtype) == (torch.Size(shape), dtype)
    assert torch.isfinite(found).all()


# Derivatives.


def keyed(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with random.keyed(KEY):
            return f(x)

    return run


ALPHA = torch.tensor([[0.2, 1.0, 3.5], [7.0, 0.9, 40.0]], dtype=torch.float64)


@pytest.mark.parametrize("transform", ["autograd", "func", "vmapped", "compiled", "forward mode"])
def test_gamma_gradient_equals_torchs_implicit_gradient(transform: str) -> None:
    sample = keyed(torch._standard_gamma)
    expected = torch._standard_gamma_grad(ALPHA, sample(ALPHA))

    def gradient(alpha: Tensor) -> Tensor:
        return torch.func.grad(lambda a: sample(a).sum())(alpha)

    if transform == "autograd":
        x = ALPHA.clone().requires_grad_()
        (found,) = torch.autograd.grad(sample(x).sum(), x)
    elif transform == "forward mode":
        found = torch.func.jvp(sample, (ALPHA,), (torch.ones_like(ALPHA),))[1]
    elif transform == "vmapped":  # one key: each row is the sample that it would be alone
        found = torch.vmap(gradient)(ALPHA)
        expected = torch.stack([gradient(row) for row in ALPHA])
    else:
        found = (compile(gradient, backend="eager") if transform == "compiled" else gradient)(ALPHA)
    assert same_bytes(found, expected)


def test_gamma_gradient_matches_the_derivative_of_the_quantile() -> None:
    sample = keyed(torch._standard_gamma)(ALPHA)
    slope = torch.func.jvp(keyed(torch._standard_gamma), (ALPHA,), (torch.ones_like(ALPHA),))[1]
    level, step = stats.gamma(ALPHA.numpy()).cdf(sample.numpy()), 1e-5
    up, down = (stats.gamma(ALPHA.numpy() + h).ppf(level) for h in (step, -step))
    # torch's slope is good to 1e-3 in its least accurate branch, the difference to 1e-6.
    torch.testing.assert_close(slope, torch.tensor((up - down) / (2 * step)), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("transform", ["autograd", "distribution", "vmapped", "compiled"])
def test_dirichlet_gradient_equals_that_of_torch_distributions(transform: str) -> None:
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def sample(alpha: Tensor) -> Tensor:
        if transform == "distribution":
            return torch.distributions.Dirichlet(alpha).rsample()
        return torch._sample_dirichlet(alpha)

    def gradient(alpha: Tensor) -> Tensor:
        return torch.func.grad(lambda a: (keyed(sample)(a) * weight).sum())(alpha)

    def expected(alpha: Tensor) -> Tensor:
        return _Dirichlet_backward(keyed(sample)(alpha), alpha, weight.expand(alpha.shape))

    if transform == "vmapped":
        assert same_bytes(
            torch.vmap(gradient)(ALPHA), torch.stack([expected(row) for row in ALPHA])
        )
    else:
        f = compile(gradient, backend="eager") if transform == "compiled" else gradient
        assert same_bytes(f(ALPHA), expected(ALPHA))


@pytest.mark.parametrize("function", [torch._standard_gamma, torch._sample_dirichlet])
@pytest.mark.parametrize("by", ["autograd", "func"])
def test_second_derivative_of_a_random_sample_raises(function: Any, by: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return keyed(function)(x).square().sum()

    def second(x: Tensor) -> Any:
        if by == "func":
            return torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(x)
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)

    with pytest.raises(NotImplementedError, match="second derivative"):
        second(ALPHA)


def test_poisson_and_binomial_have_the_derivatives_of_torch() -> None:
    rate = torch.tensor([3.0, 40.0], requires_grad=True)
    for context in (random.keyed(KEY), torch.enable_grad()):
        with context:
            (slope,) = torch.autograd.grad(torch.poisson(rate).sum(), rate)
            assert same_bytes(slope, torch.zeros(2))
            count = torch.binomial(torch.full((2,), 9.0), rate.sigmoid())
            assert count.requires_grad
            with pytest.raises(
                (NotImplementedError, RuntimeError), match="implemented|no derivative"
            ):
                torch.autograd.grad(count.sum(), rate)


# Acceptance tests: each is compared with 60 digits, since samples show errors above 1e-3 only.


def log_binomial(k: Any, n: Any, p: Any) -> Any:
    """Return log P(k) up to a constant."""
    return k * mpmath.log(p / (1 - p)) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)


ACCEPTANCE: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "log1p": (_rejection._log_remainder, lambda t: mpmath.log1p(t) - t + t**2 / 2 - t**3 / 3),
    "poisson": (
        _rejection._log_poisson,
        lambda k, rate: k * mpmath.log(rate) - rate - mpmath.loggamma(k + 1),
    ),
    "stirling": (
        _rejection._stirling_tail,
        lambda k: (
            mpmath.loggamma(k + 1)
            - ((k + 0.5) * mpmath.log(k + 1) - (k + 1) + mpmath.log(2 * mpmath.pi) / 2)
        ),
    ),
    "binomial": (
        _rejection._log_binomial,
        lambda k, n, p: log_binomial(k, n, p) - log_binomial(mpmath.floor((n + 1) * p), n, p),
    ),
}


def omitted(k: float) -> float:
    """Return the largest error of Stirling's series with three terms: the fourth term."""
    return 1 / (1680 * k**7)


@pytest.mark.parametrize(
    ("name", "arguments", "bound"),
    [
        # The series omits 2 t² / 3 of the result, and the direct formula loses as many digits.
        *(("log1p", (sign * t,), 1e-6) for t in (1e-9, 1e-4, 9.9e-4, 1.01e-3) for sign in (1, -1)),
        *(("log1p", (t,), 1e-9) for t in (-0.9, -0.3, -0.01, 0.01, 0.4, 3.0, 10.0)),
        *(("poisson", (k, rate), 1e-14) for k in (0.0, 1.0, 4.0, 9.0) for rate in (10.0, 30.0)),
        *(("poisson", (k, rate), omitted(k)) for k in (10.0, 11.0, 13.0) for rate in (10.0, 17.25)),
        *(("poisson", (k, 1e2), 1e-14) for k in (50.0, 90.0, 100.0, 130.0)),
        *(("poisson", (1e7 + k, 1e7), 2e-13) for k in (-2e4, -9e3, -3e3, 0.0, 3e3, 9e3)),
        *(("poisson", (1e13 + k, 1e13), 1e-14) for k in (-2e7, -3e6, 0.0, 3e6)),
        *(("stirling", (k,), 1e-14) for k in (0.0, 1.0, 4.0, 9.0, 60.0, 1e3, 1e9)),
        *(("stirling", (k,), omitted(k + 1)) for k in (10.0, 11.0, 13.0, 20.0)),
        *(("binomial", (k, 25.0, 0.45), 5e-11) for k in (0.0, 3.0, 8.0, 11.0, 15.0, 25.0)),
        *(("binomial", (k, 100.0, 0.1015), 5e-11) for k in (0.0, 6.0, 10.0, 16.0, 28.0)),
        *(("binomial", (k, 1e3, 0.3), 1e-12) for k in (250.0, 300.0, 310.0, 380.0)),
    ],
)  # fmt: skip
def test_acceptance_tests_of_samplers_by_rejection_are_accurate(
    name: str, arguments: tuple[float, ...], bound: float
) -> None:
    ours, exact = ACCEPTANCE[name]
    found = ours(*(torch.tensor(x, dtype=torch.float64) for x in arguments))
    with mpmath.workdps(60):
        expected = exact(*map(mpmath.mpf, arguments))
        error = abs(found.item() - expected)
        assert error <= bound * (abs(expected) if name == "log1p" else max(1, abs(expected)))


def test_poisson_samples_of_a_rate_of_ten_include_zero() -> None:
    sample = _families.poisson(KEY, (2,), torch.full((1_000_000,), 10.0))
    zeros = int((sample == 0).sum())
    # The expected count is 45.4; the bounds are four standard deviations away.
    assert 18 < zeros < 73
