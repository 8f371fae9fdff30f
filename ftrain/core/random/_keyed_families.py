"""Replacements for torch's gamma, Poisson and similar draws, with keys from a stream.

With these functions, `torch.distributions.Gamma`, `Beta`, `Chi2`, `StudentT`, `FisherSnedecor`,
`InverseGamma`, `Dirichlet`, `Poisson`, `NegativeBinomial`, `Binomial`, `LKJCholesky` and `VonMises` draw
from a key. As in `_keyed_draws.py`, each function has the signature of the torch function that it
replaces.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch_dispatch import DRAWS
from ftrain.core._torch_distributions import dirichlet_sampler, von_mises_sampler
from ftrain.core.random import _families
from ftrain.core.random._key_stream import KeyStream
from ftrain.core.random._keyed_draws import Handler

__all__ = ["FAMILIES"]


def standard_gamma(stream: KeyStream, self: Tensor, generator: None = None) -> Tensor:
    """Draw from Gamma(self, 1), differentiable in `self`."""
    return _sampled(stream, _families.gamma, "_standard_gamma", self)


def sample_dirichlet(stream: KeyStream, self: Tensor, generator: None = None) -> Tensor:
    """Draw from Dirichlet(self) over the last dimension, differentiable (torch's own is not)."""
    return _sampled(stream, _families.dirichlet, "_sample_dirichlet", self)


def poisson(stream: KeyStream, input: Tensor, generator: None = None) -> Tensor:
    """Draw from Poisson(input)."""
    return _sampled(stream, _families.poisson, "poisson", input)


def binomial(stream: KeyStream, count: Tensor, prob: Tensor, generator: None = None) -> Tensor:
    """Draw from Binomial(count, prob), with the shape and dtype of `count`."""
    probs = prob.to(count.dtype).expand(count.shape)
    return _sampled(stream, _families.binomial, "binomial", count, probs)


def von_mises(
    stream: KeyStream, loc: Tensor, concentration: Tensor, proposal_r: Tensor, x: Tensor
) -> Tensor:
    """Draw von Mises samples in the shape of `x`, as `torch.distributions.VonMises` does."""
    kappa = concentration.expand(x.shape)
    angle = _sampled(stream, _families.von_mises, "VonMises.sample", kappa)
    return (angle + math.pi + loc) % (2 * math.pi) - math.pi


def _sampled(stream: KeyStream, family: Any, name: str, *params: Tensor) -> Tensor:
    folds = stream.folds()
    for param in params:
        if not param.is_floating_point():
            raise TypeError(
                f"{name}: expected floating-point parameters, got {param.dtype}. Write x.float()."
            )
    if params[0].is_meta:
        return torch.empty_like(params[0])
    sample: Tensor = family(stream.key_on(params[0].device), folds, *params)
    return sample


FAMILIES: dict[Any, Handler] = {
    DRAWS["standard_gamma"]: standard_gamma,
    DRAWS["sample_dirichlet"]: sample_dirichlet,
    torch.poisson: poisson,
    torch.binomial: binomial,
    dirichlet_sampler(): sample_dirichlet,
    von_mises_sampler(): von_mises,
}
