"""Gamma, Dirichlet, Poisson, binomial and von Mises draws as operators, with their derivatives.

An operator takes a key `(*batch, 2)` and parameters `(*batch, *shape)`. Each row of its result,
`(*batch, *shape)`, equals the draw from that row's key and parameters alone. A sample is an implicit
function of its parameters, so it has the gradient that torch gives its own samples (Figurnov, Mohamed
and Mnih, "Implicit reparameterization gradients", NeurIPS 2018).

Read next: `_rejection.py`, the samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch_dispatch import SLOPES
from ftrain.core.random import _cuda_kernel, _cuda_samplers, _operators, _rejection

__all__ = ["binomial", "dirichlet", "gamma", "poisson", "von_mises"]

Ints = Sequence[int]


def gamma(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    """Return Gamma(alpha, 1) samples of alpha's shape and dtype, differentiable in alpha."""
    sample: Tensor = _Gamma.apply(key, alpha, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


def dirichlet(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    """Return Dirichlet(alpha) samples over the last dimension, differentiable in alpha."""
    sample: Tensor = _Dirichlet.apply(key, alpha, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


def poisson(key: Tensor, folds: Ints, rate: Tensor) -> Tensor:
    """Return Poisson(rate) samples of rate's shape and dtype; as in torch, their derivative is 0."""
    sample: Tensor = _Poisson.apply(key, rate, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


def binomial(key: Tensor, folds: Ints, count: Tensor, prob: Tensor) -> Tensor:
    """Return Binomial(count, prob) samples of their common shape and dtype, without a derivative."""
    sample: Tensor = _Binomial.apply(key, count, prob, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


def von_mises(key: Tensor, folds: Ints, concentration: Tensor) -> Tensor:
    """Return von Mises samples around 0: angles in [-pi, pi], without a derivative."""
    return _von_mises(key, folds, concentration.detach())


# Kernels.


def _gamma_kernel(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.keyed(kernel, _cuda_kernel.KEYED_GAMMA, key, folds, alpha)
    sample = _rejection.log_gamma(key, folds, _wide(alpha)).exp().to(alpha.dtype)
    return sample.clamp_min(torch.finfo(alpha.dtype).tiny)  # as in torch: the logarithm is finite


def _dirichlet_kernel(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        family = _cuda_kernel.KEYED_LOG_GAMMA
        logs = _cuda_samplers.keyed(kernel, family, key, folds, alpha, dtype=torch.float64)
    else:
        logs = _rejection.log_gamma(key, folds, _wide(alpha))
    sample = torch.softmax(logs, -1).to(alpha.dtype)
    form = torch.finfo(alpha.dtype)
    return sample.clamp(form.tiny, 1 - form.eps / 2)


def _poisson_kernel(key: Tensor, folds: Ints, rate: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.keyed(kernel, _cuda_kernel.KEYED_POISSON, key, folds, rate)
    if not bool((rate >= 0).all()):
        raise ValueError(
            "poisson: expected rates of 0 or more, got a negative one or NaN. Map them to "
            "positive numbers first, for instance with softplus."
        )
    return _rejection.poisson(key, folds, _wide(rate)).to(rate.dtype)


def _binomial_kernel(key: Tensor, folds: Ints, count: Tensor, prob: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.keyed(kernel, _cuda_kernel.KEYED_BINOMIAL, key, folds, count, prob)
    found = _rejection.binomial(key, folds, _wide(count).floor(), _wide(prob))
    return found.to(count.dtype)


def _von_mises_kernel(key: Tensor, folds: Ints, concentration: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        family = _cuda_kernel.KEYED_VON_MISES
        return _cuda_samplers.keyed(kernel, family, key, folds, concentration)
    found = _rejection.von_mises(key, folds, _wide(concentration))
    return found.to(concentration.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_rejection.compute_dtype(tensor.device))


# Operators. The first argument of a vmap rule's function is the size of the mapped dimension.


def _rows(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Move the mapped dimension of a vmap to the front of each tensor; expand tensors without it."""
    return [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]


def _define(name: str, arguments: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Define an operator `(key, folds, *parameters)` that draws samples, and its vmap rule.

    A sampler that proposes values until all are accepted reads on the host if some are left. A kernel on
    CUDA does not; where the kernels cannot be loaded, a capture as a CUDA graph fails, with a warning.
    """

    def rule(info: Any, dims: Any, key: Tensor, folds: Ints, *params: Tensor) -> Any:
        rows = _rows(info.batch_size, (dims[0], *dims[2:]), (key, *params))
        return operator(rows[0], folds, *rows[1:]), 0

    operator: Callable[..., Tensor] = _operators._define(
        f"threefry_{name}(Tensor key, int[] folds, {arguments})",
        kernel,
        lambda key, folds, *params: key.new_empty(params[0].shape, dtype=params[0].dtype),
        rule,
    )
    return operator


_gamma = _define("gamma", "Tensor alpha", _gamma_kernel)
_dirichlet = _define("dirichlet", "Tensor alpha", _dirichlet_kernel)
_poisson = _define("poisson", "Tensor rate", _poisson_kernel)
_binomial = _define("binomial", "Tensor count, Tensor prob", _binomial_kernel)
_von_mises = _define("von_mises", "Tensor concentration", _von_mises_kernel)


def _define_slope(name: str, arguments: str, kernel: Callable[..., Tensor]) -> Any:
    """Define an operator, with a vmap rule, for a torch function that differentiates a sample."""

    def rule(info: Any, dims: Any, *tensors: Tensor) -> Any:
        return operator(*_rows(info.batch_size, dims, tensors)), 0

    operator = _operators._define(
        f"{name}({arguments})",
        kernel,
        lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
        rule,
    )
    return operator


_gamma_slope = _define_slope("gamma_slope", "Tensor a, Tensor x", SLOPES["gamma"])
_dirichlet_slope = _define_slope(
    "dirichlet_slope", "Tensor x, Tensor a, Tensor total", SLOPES["dirichlet"]
)


class _Slope(torch.autograd.Function):
    """Derivative of a sample with respect to its parameters; a second derivative raises."""

    @staticmethod
    def forward(operator: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return operator(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing, because the backward pass only raises an error."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(
            "the second derivative of a gamma or Dirichlet sample with respect to its parameters is not "
            "implemented, as in torch. Call detach() on the sample, or on the first derivative."
        )

    @staticmethod
    def vmap(info: Any, dims: Any, operator: Callable[..., Tensor], *tensors: Tensor) -> Any:
        rows = _rows(info.batch_size, dims[1:], tensors)
        return _Slope.apply(operator, *rows), 0  # type: ignore[no-untyped-call]


_slope: Callable[..., Tensor] = _Slope.apply


class _Sample(torch.autograd.Function):
    """Base autograd function of samplers `(key, *parameters, folds)`; subclasses add the derivative."""

    operator: Callable[..., Tensor]

    @classmethod
    def sampled(cls, key: Tensor, *rest: Any) -> Tensor:
        *params, folds = rest
        return cls.operator(key, folds, *params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *params, _ = inputs
        ctx.save_for_backward(*params, output)
        ctx.save_for_forward(*params, output)


class _Gamma(_Sample):
    operator = staticmethod(_gamma)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _Gamma.sampled(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        alpha, sample = ctx.saved_tensors
        return None, grad * _slope(_gamma_slope, alpha, sample), None

    @staticmethod
    def jvp(ctx: Any, key: None, alpha: Tensor, folds: None) -> Tensor:
        return alpha * _slope(_gamma_slope, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, alpha: Tensor, folds: Ints) -> Any:
        key, alpha = _rows(info.batch_size, dims[:2], (key, alpha))
        return gamma(key, folds, alpha), 0


class _Dirichlet(_Sample):
    operator = staticmethod(_dirichlet)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _Dirichlet.sampled(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        alpha, x = ctx.saved_tensors
        slope = _slope(_dirichlet_slope, x, alpha, alpha.sum(-1, True).expand_as(alpha))
        return None, slope * (grad - (x * grad).sum(-1, True)), None

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, alpha: Tensor, folds: Ints) -> Any:
        key, alpha = _rows(info.batch_size, dims[:2], (key, alpha))
        return dirichlet(key, folds, alpha), 0


class _Poisson(_Sample):
    operator = staticmethod(_poisson)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _Poisson.sampled(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, torch.zeros_like(grad), None

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, rate: Tensor, folds: Ints) -> Any:
        key, rate = _rows(info.batch_size, dims[:2], (key, rate))
        return poisson(key, folds, rate), 0


class _Binomial(_Sample):
    operator = staticmethod(_binomial)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _Binomial.sampled(*args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(
            "a binomial sample has no derivative with respect to its parameters, as in torch. Draw it "
            "from detached parameters."
        )

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, count: Tensor, prob: Tensor, folds: Ints) -> Any:
        key, count, prob = _rows(info.batch_size, dims[:3], (key, count, prob))
        return binomial(key, folds, count, prob), 0
