"""Draws of `torch.distributions` under `keyed` on CUDA: a few kernels each, without a wait."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as d

from ftrain import random
from tests.nullcuda.device import counted


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape or (5,), dtype=dtype, device="cuda")


#: Launches of a draw. Those of 16 bits convert to float64 and back; Dirichlet's normalises and clamps.
SAMPLES: dict[str, tuple[int, Callable[[], Tensor]]] = {
    "standard gamma": (1, lambda: torch._standard_gamma(parameter())),
    "standard gamma of 16 bits": (3, lambda: torch._standard_gamma(parameter(dtype=torch.float16))),
    "poisson": (1, lambda: torch.poisson(parameter())),
    "binomial": (1, lambda: torch.binomial(parameter(), parameter())),
    "Dirichlet": (4, lambda: torch._sample_dirichlet(parameter(5, 3))),
}


@pytest.fixture(autouse=True)
def _any_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not validate parameters, which would wait for the device."""
    monkeypatch.setattr(d.Distribution, "_validate_args", False)


#: Launches of a sample: of the draw, and of torch's formulas around it (quotients, clamps).
DISTRIBUTIONS: dict[str, tuple[int, Callable[[], d.Distribution]]] = {
    "Gamma": (3, lambda: d.Gamma(parameter(), parameter())),
    "Chi2": (3, lambda: d.Chi2(parameter())),
    "InverseGamma": (4, lambda: d.InverseGamma(parameter(), parameter())),
    "Beta": (4, lambda: d.Beta(parameter(), parameter())),
    "Dirichlet": (4, lambda: d.Dirichlet(parameter(5, 3))),
    "StudentT": (11, lambda: d.StudentT(parameter(), parameter(), parameter())),
    "FisherSnedecor": (9, lambda: d.FisherSnedecor(parameter(), parameter())),
    "Poisson": (1, lambda: d.Poisson(parameter())),
    "NegativeBinomial": (4, lambda: d.NegativeBinomial(parameter(), parameter())),
    "Binomial": (1, lambda: d.Binomial(parameter(), parameter())),
    "VonMises": (6, lambda: d.VonMises(parameter(), parameter())),
    "LKJCholesky": (19, lambda: d.LKJCholesky(3, parameter(1))),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_keyed_draw_of_a_family_launches_few_kernels_without_a_wait(name: str) -> None:
    launches, draw = SAMPLES[name]
    key = random.key(0, device="cuda")
    for _ in range(2):
        with counted() as counts, random.keyed(key):
            draw()
    assert (counts.launches, counts.waits, counts.bad_captures) == (launches, 0, 0)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_keyed_sample_of_a_distribution_launches_few_kernels_without_a_wait(name: str) -> None:
    launches, made = DISTRIBUTIONS[name]
    key, distribution = random.key(0, device="cuda"), made()
    for _ in range(2):
        with counted() as counts, random.keyed(key):
            distribution.sample()
    assert counts.waits == 0, counts
    assert counts.launches <= launches, counts


def test_keyed_samples_can_be_captured_in_a_cuda_graph() -> None:
    key, graph = random.key(0, device="cuda"), torch.cuda.CUDAGraph()
    for _, draw in SAMPLES.values():
        with random.keyed(key):
            draw()
    with warnings.catch_warnings(), torch.cuda.graph(graph), counted() as counts:
        warnings.simplefilter("error")
        with random.keyed(key):
            for _, draw in SAMPLES.values():
                draw()
    assert (counts.waits, counts.bad_captures) == (0, 0)
    graph.replay()


def test_keyed_samples_on_a_device_have_gradients_and_rows() -> None:
    key, x = random.key(0, device="cuda"), parameter().requires_grad_()

    def sample(key: Tensor, x: Tensor) -> Tensor:
        with random.keyed(key):
            return d.Gamma(x, x).rsample() + d.Beta(x, x).rsample()

    with counted() as counts:
        sample(key, x).sum().backward()
    assert counts.waits == 0
    assert x.grad is not None
    assert x.grad.is_cuda
    assert torch.vmap(sample, (0, None))(random.split(key, 3), x).shape == (3, 5)
