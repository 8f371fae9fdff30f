"""Test that draws under `keyed` have the distributions of the torch functions that they replace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Cauchy,
    Distribution,
    Exponential,
    LogNormal,
    Normal,
    Uniform,
)

from ftrain.core.random import _key_stream
from tests.random._keyed_cases import draw

N = 20_000

# With a fixed key nothing here is random: a right sampler is below it with probability 1 - 1e-6.
KOLMOGOROV = math.sqrt(math.log(2 / 1e-6) / 2)


def ks(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """Return the Kolmogorov-Smirnov statistic sup |F_n - F| sqrt(n), expected below `KOLMOGOROV`."""
    values = sample.double().flatten().sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    exact = cdf(values)
    return float(torch.maximum(steps - exact, exact - steps + 1 / len(values)).max()) * math.sqrt(
        len(values)
    )


def laplace_cdf(x: Tensor) -> Tensor:
    return torch.where(x < 0, x.exp() / 2, 1 - (-x).exp() / 2)


CONTINUOUS: dict[str, tuple[Callable[[], Tensor], Any]] = {
    "torch.rand": (lambda: torch.rand(N), Uniform(0.0, 1.0)),
    "torch.randn": (lambda: torch.randn(N), Normal(0.0, 1.0)),
    "torch.randn float64": (lambda: torch.randn(N, dtype=torch.float64), Normal(0.0, 1.0)),
    "torch.normal": (lambda: torch.normal(torch.full((N,), 2.0), 3.0), Normal(2.0, 3.0)),
    "uniform_": (lambda: torch.empty(N).uniform_(-2, 5), Uniform(-2.0, 5.0)),
    "normal_": (lambda: torch.empty(N).normal_(-2, 5), Normal(-2.0, 5.0)),
    "exponential_": (lambda: torch.empty(N).exponential_(3), Exponential(3.0)),
    "log_normal_": (lambda: torch.empty(N).log_normal_(0.5, 0.7), LogNormal(0.5, 0.7)),
    "cauchy_": (lambda: torch.empty(N).cauchy_(1, 2), Cauchy(1.0, 2.0)),
    "kaiming_uniform_": (
        lambda: nn.init.kaiming_uniform_(torch.empty(N // 100, 100), math.sqrt(5)),
        Uniform(-0.1, 0.1),
    ),
    "xavier_normal_": (
        lambda: nn.init.xavier_normal_(torch.empty(100, 200)), Normal(0.0, math.sqrt(2 / 300))
    ),
    "Laplace": (lambda: torch.distributions.Laplace(0.0, 1.0).sample((N,)), laplace_cdf),
    "rrelu": (lambda: -F.rrelu(-torch.ones(N), 0.1, 0.4, training=True), Uniform(0.1, 0.4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_keyed_draws_have_their_distribution(name: str) -> None:
    call, law = CONTINUOUS[name]
    sample = draw(call)
    cdf = law.cdf if isinstance(law, Distribution) else law
    support = law.support if isinstance(law, Distribution) else None
    assert support is None or support.check(sample.double()).all()
    assert ks(sample, cdf) < KOLMOGOROV


def truncated(x: Tensor) -> Tensor:
    low, high = Normal(0.0, 1.0).cdf(torch.tensor([-1.0, 2.0], dtype=torch.float64))
    return (Normal(0.0, 1.0).cdf(x) - low) / (high - low)


def test_trunc_normal_orthogonal_and_sparse_initializers_have_their_distributions() -> None:
    sample = draw(nn.init.trunc_normal_, torch.empty(N), a=-1.0, b=2.0)
    assert ks(sample, truncated) < KOLMOGOROV
    q = draw(nn.init.orthogonal_, torch.empty(20, 20, dtype=torch.float64))
    # 20 · 20 products of rounding 2^-53 each, with room.
    assert (q @ q.T - torch.eye(20)).abs().max() < 1e-13
    zeros = (draw(nn.init.sparse_, torch.empty(10, 30), 0.3) == 0).sum(0)
    assert zeros.eq(3).all()


def chi_square(counts: Tensor, law: Tensor) -> float:
    """Return Pearson's statistic, standardized as (χ² - k) / sqrt(2 k) for k degrees of freedom."""
    expected = law / law.sum() * counts.sum()
    used = expected > 0
    assert counts[~used].eq(0).all()
    freedom = int(used.sum()) - 1
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


WEIGHTS = torch.tensor([0.0, 3.0, 1.0, 0.0, 4.0, 2.0, 0.0])

DISCRETE: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "multinomial replacement": (lambda: torch.multinomial(WEIGHTS, N, True), WEIGHTS),
    "multinomial single": (lambda: torch.multinomial(WEIGHTS.expand(N, -1), 1), WEIGHTS),
    "Categorical": (lambda: Categorical(WEIGHTS).sample((N,)), WEIGHTS),
    "randint": (lambda: torch.randint(2, 7, (N,)), torch.tensor([0, 0, 1.0, 1, 1, 1, 1])),
    "random_": (lambda: torch.empty(N).random_(5), torch.ones(5)),
    "random_ bounds": (lambda: torch.empty(N).random_(1, 5), torch.tensor([0, 1.0, 1, 1, 1])),
    "geometric_": (
        lambda: torch.empty(N).geometric_(0.4).clamp(max=9),
        torch.tensor([0, *(0.4 * 0.6**k for k in range(8)), 0.6**8]),
    ),
    "bernoulli": (lambda: torch.bernoulli(torch.full((N,), 0.3)), torch.tensor([0.7, 0.3])),
    "bernoulli_": (lambda: torch.empty(N).bernoulli_(0.3), torch.tensor([0.7, 0.3])),
    "bernoulli_ tensor": (
        lambda: torch.empty(N).bernoulli_(torch.tensor(0.3)), torch.tensor([0.7, 0.3])
    ),
    "randperm first": (
        lambda: torch.stack([torch.randperm(5)[0] for _ in range(500)]), torch.ones(5)
    ),
    "gumbel_softmax": (
        lambda: F.gumbel_softmax(WEIGHTS.log().expand(N, -1), hard=True).argmax(-1), WEIGHTS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_keyed_draws_have_their_distribution(name: str) -> None:
    call, law = DISCRETE[name]
    counts = torch.bincount(draw(call).flatten().long(), minlength=len(law))
    assert len(counts) == len(law)
    # A few degrees of freedom have a longer tail than the normal's: 8 is beyond 1 - 1e-6 for one.
    assert chi_square(counts, law.double()) < 16


def test_keyed_samples_without_replacement_are_distinct() -> None:
    rows = draw(torch.multinomial, WEIGHTS.expand(500, -1), 4).sort().values
    assert rows.equal(torch.tensor([1, 2, 4, 5]).expand(500, -1))
    assert (
        draw(torch.randperm, 100, dtype=torch.int32)
        .sort()
        .values.equal(torch.arange(100, dtype=torch.int32))
    )


def test_keyed_draws_stay_in_their_range_in_every_dtype() -> None:
    assert draw(lambda: torch.rand(N, dtype=torch.bfloat16)).max() < 1
    assert draw(lambda: torch.empty(N, dtype=torch.bfloat16).uniform_(0, 1)).max() < 1
    assert draw(lambda: torch.empty(N).exponential_()).min() > 0
    assert draw(lambda: torch.empty(N, dtype=torch.bfloat16).normal_()).abs().max() > 3
    for dtype in (torch.int8, torch.uint8, torch.int64, torch.float16):
        assert draw(lambda dtype=dtype: torch.empty(N, dtype=dtype).random_()).min() >= 0
    assert draw(lambda: torch.empty(4).uniform_(2, 2)).tolist() == [2.0] * 4


@pytest.mark.parametrize("end", [0.0, 1 - 2**-23])
def test_keyed_draws_from_extreme_uniform_values_are_valid_samples(
    end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uniform(_: Any, shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.full(tuple(shape), end, dtype=dtype, device=device)

    monkeypatch.setattr(_key_stream.KeyStream, "uniform", uniform)
    first, last = 1, 5  # the categories that have weight
    category = draw(torch.multinomial, WEIGHTS, 3, True)
    assert category.eq(first if end == 0 else last).all()
    assert WEIGHTS[draw(torch.multinomial, WEIGHTS, 1)] > 0
    assert draw(torch.bernoulli, torch.zeros(3)).eq(0).all()
    assert draw(torch.zeros(3).bernoulli_, torch.zeros(3)).eq(0).all()
    # torch's exponential samples are at least half the spacing of floats below 1.
    assert end > 0 or draw(torch.empty(3).exponential_).eq(2**-24).all()
    for fill in ("exponential_", "geometric_", "cauchy_"):
        value = draw(getattr(torch.empty(3), fill), *([0.5] if fill == "geometric_" else []))
        assert value.isfinite().all()
        assert fill == "cauchy_" or value.min() > 0
    assert draw(F.gumbel_softmax, torch.zeros(4)).isfinite().all()
