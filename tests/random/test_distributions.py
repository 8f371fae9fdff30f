"""Test `torch.distributions` under `keyed` and in compiled functions, with default arguments."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as D
from torch import Tensor

import ftrain
from ftrain import optim, random
from ftrain.core._torch_distributions import without_validation
from ftrain.core.compile import compile
from ftrain.core.errors import TraceError
from tests.compile.cases import same_bytes

KEY = random.key(8)
P = torch.tensor([0.2, 0.5, 0.9])
HALF = torch.tensor(0.5)

DISTRIBUTIONS: dict[str, Callable[[Tensor], D.Distribution]] = {
    "Bernoulli": D.Bernoulli,
    "Beta": lambda p: D.Beta(p, p * 2),
    "Binomial": lambda p: D.Binomial(10, p),
    "Categorical": D.Categorical,
    "Cauchy": lambda p: D.Cauchy(p, p),
    "Chi2": D.Chi2,
    "ContinuousBernoulli": D.ContinuousBernoulli,
    "Dirichlet": D.Dirichlet,
    "Exponential": D.Exponential,
    "FisherSnedecor": lambda p: D.FisherSnedecor(p * 5, p * 7),
    "Gamma": lambda p: D.Gamma(p, p),
    "GeneralizedPareto": lambda p: D.GeneralizedPareto(p, p, p),
    "Geometric": D.Geometric,
    "Gumbel": lambda p: D.Gumbel(p, p),
    "HalfCauchy": D.HalfCauchy,
    "HalfNormal": D.HalfNormal,
    "Independent": lambda p: D.Independent(D.Normal(p, p), 1),
    "InverseGamma": lambda p: D.InverseGamma(p, p),
    "Kumaraswamy": lambda p: D.Kumaraswamy(p, p),
    "LKJCholesky": lambda p: D.LKJCholesky(3, p[0]),
    "Laplace": lambda p: D.Laplace(p, p),
    "LogNormal": lambda p: D.LogNormal(p, p),
    "LogisticNormal": lambda p: D.LogisticNormal(p, p),
    "LowRankMultivariateNormal": lambda p: D.LowRankMultivariateNormal(p, p[:, None], p),
    "MixtureSameFamily": lambda p: D.MixtureSameFamily(D.Categorical(p), D.Normal(p, p)),
    "Multinomial": lambda p: D.Multinomial(5, p),
    "MultivariateNormal": lambda p: D.MultivariateNormal(p, covariance_matrix=torch.diag(p)),
    "NegativeBinomial": lambda p: D.NegativeBinomial(5.0, p),
    "Normal": lambda p: D.Normal(p, p),
    "OneHotCategorical": D.OneHotCategorical,
    "OneHotCategoricalStraightThrough": D.OneHotCategoricalStraightThrough,
    "Pareto": lambda p: D.Pareto(p, p),
    "Poisson": lambda p: D.Poisson(p * 9),
    "RelaxedBernoulli": lambda p: D.RelaxedBernoulli(HALF, p),
    "RelaxedOneHotCategorical": lambda p: D.RelaxedOneHotCategorical(HALF, p),
    "StudentT": lambda p: D.StudentT(p * 5),
    "TransformedDistribution": lambda p: D.TransformedDistribution(
        D.Normal(p, p), [D.transforms.SigmoidTransform()]
    ),
    "Uniform": lambda p: D.Uniform(p, p + 1),
    "VonMises": lambda p: D.VonMises(p, p),
    "Weibull": lambda p: D.Weibull(p, p),
}

# Their log_prob writes through a mask (x[mask] = 0), which torch.vmap refuses.
NOT_MAPPED = {"Geometric", "Multinomial"}
# Their density is a cross entropy, which rounds in another way where it is mapped over.
ROUNDED = {"Bernoulli", "ContinuousBernoulli"}


def drawn(make: Callable[[Tensor], D.Distribution]) -> Callable[[Tensor, Tensor], Any]:
    """Return a function that gives a sample, its density and their gradients."""

    def run(key: Tensor, p: Tensor) -> Any:
        def loss(p: Tensor) -> Any:
            with random.keyed(key):
                law = make(p)
                sample = law.rsample((2,)) if law.has_rsample else law.sample((2,))
                density = law.log_prob(sample.detach())
                return sample.float().sum() + density.sum(), (sample, density)

        (_, found), grad = ftrain.value_and_grad(loss, has_aux=True)(p)
        return *found, grad

    return run


def test_every_torch_distribution_has_a_test_case() -> None:
    public = {
        n for n in D.__all__ if isinstance(getattr(D, n), type) and hasattr(getattr(D, n), "sample")
    }
    abstract = {"Distribution", "ExponentialFamily"}
    # Wishart reads values: see test_compile_refuses_distributions_that_read_tensor_values.
    assert public - abstract - {"Wishart"} <= set(DISTRIBUTIONS)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_draws_match_in_eager_compiled_and_vmapped_code(name: str) -> None:
    run, keys = drawn(DISTRIBUTIONS[name]), random.split(KEY, 2)
    expected = [run(key, P) for key in keys]
    assert not same_bytes(expected[0][0], expected[1][0])
    assert same_bytes(compile(run, backend="eager")(keys[0], P), expected[0])
    if name in NOT_MAPPED:
        return
    rows = torch.vmap(run)(keys, P.expand(2, 3))
    for i in range(2):
        for a, b in zip(rows, expected[i], strict=True):
            if name in ROUNDED:
                torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)
            else:
                assert same_bytes(a[i], b)


def test_compiled_step_with_distributions_equals_eager() -> None:
    def loss_fn(model: Any, x: Tensor) -> Tensor:
        mean, scale = model(x).chunk(2, -1)
        noise = D.Gamma(torch.nn.functional.softplus(scale), 1.0).rsample()
        return (
            -D.Normal(mean, 1.0).log_prob(noise).mean()
            + D.kl_divergence(D.Beta(scale.exp(), 2.0), D.Beta(1.0, 1.0)).mean()
        )

    steps = ftrain.make_steps(torch.nn.Linear(3, 4), loss_fn, optim.sgd(0.01))
    state = steps.init_state(0)
    expected, _ = steps.train_step(state, P.expand(5, 3))
    found, _ = compile(steps.train_step, backend="eager")(state, P.expand(5, 3))
    assert same_bytes(found, expected)


@pytest.fixture(autouse=True)
def _validates() -> None:
    """Validation is on when a test begins: torch's compiler switches it off when it is imported."""
    D.Distribution.set_default_validate_args(True)


def test_distribution_validation_is_disabled_in_the_tracing_thread_only() -> None:
    def invalid() -> str:
        try:
            D.Normal(torch.zeros(()), torch.tensor(-1.0))
        except ValueError as error:
            return str(error)
        return ""

    found: list[str] = []

    def run(p: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: found.append(invalid()))
        other.start()
        other.join()
        return D.Normal(p, p).log_prob(p)

    compile(run, backend="eager")(P)
    assert found == [invalid()]
    assert "scale" in found[0]
    with pytest.raises(ValueError, match="scale"):
        drawn(lambda p: D.Normal(p, -p))(KEY, P)


def test_validation_default_of_distributions_is_restored_after_nested_and_failed_traces() -> None:
    for default in (True, False):
        D.Distribution.set_default_validate_args(default)
        try:
            with without_validation():
                with pytest.raises(ZeroDivisionError), without_validation():
                    1 / 0  # noqa: B018
                assert D.Distribution._validate_args is False
            assert D.Distribution.__dict__["_validate_args"] is default
        finally:
            D.Distribution.set_default_validate_args(True)
    with without_validation():
        D.Distribution.set_default_validate_args(False)
    assert D.Distribution._validate_args is True


def test_first_use_of_dynamo_keeps_the_validation_default_of_distributions() -> None:
    """Dynamo's first use disables distribution validation for the process; ftrain restores it."""
    code = (
        "import torch, ftrain\n"
        "def f(x):\n"
        "    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))\n"
        "ftrain.compile(f, backend='eager')(torch.ones(2))\n"
        "from torch._dynamo.eval_frame import TorchPatcher\n"
        "assert TorchPatcher.patch.cache_info().currsize\n"
        "assert torch.distributions.Distribution._validate_args is True\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_compile_refuses_distributions_that_read_tensor_values() -> None:
    def asks(p: Tensor) -> Tensor:
        return D.Normal(p, p, validate_args=True).log_prob(p)

    def wishart(p: Tensor) -> Tensor:
        return D.Wishart(p.sum() + 5, covariance_matrix=torch.diag(p)).log_prob(torch.diag(p))

    for fn in (asks, wishart):
        with pytest.raises(TraceError):
            compile(fn, backend="eager")(P)
