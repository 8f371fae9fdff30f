"""Losses whose gradients are not their derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, mlp, seeded


@broken(
    "gradients",
    says=["expected the derivative", r"\.item\(\)", "Remove the cut"],
    seen="https://github.com/guopengf/FL-MRCM/issues/10",
    compiled=["expected the derivative", "item"],
)
def penalty_is_rebuilt_with_torch_tensor() -> Case:
    """A penalty is put into `torch.tensor(...)`, a new leaf without a gradient."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        penalty = torch.tensor(sum(p.square().sum().item() for p in model.parameters()))
        return F.cross_entropy(model(batch["x"]), batch["y"]) + 0.1 * penalty

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


@broken(
    "gradients",
    says=["expected the derivative", "detach", "Remove the cut"],
    seen="https://github.com/openpifpaf/openpifpaf/pull/244",
    compiled=["expected the derivative"],
)
def weight_of_the_loss_is_detached() -> Case:
    """The weight of a focal loss is detached, so the gradient is not that of the loss."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        weights = (1 - (-losses).exp()).square().detach()
        return (weights * losses).mean()

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


class InverseSquareRootUnit(torch.autograd.Function):
    """x / sqrt(1 + x²), with a backward pass that forgets the incoming gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(1 + x.square())
        return x * scale, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _scale: Any) -> Tensor:
        (scale,) = ctx.saved_tensors
        return scale**3  # not multiplied by `grad`


@broken(
    "gradients",
    says=["expected the derivative", "autograd.Function"],
    seen="https://github.com/pytorch/pytorch/issues/4355",
    compiled=["expected the derivative"],
)
def backward_forgets_the_incoming_gradient() -> Case:
    """A custom `autograd.Function` returns its local derivative and not the product."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        z, _ = InverseSquareRootUnit.apply(model(batch["x"]))
        return F.cross_entropy(z, batch["y"])

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


@broken(
    "gradients",
    says=["expected the derivative", "no_grad", "Remove the cut"],
    seen="https://github.com/nianticlabs/monodepth2/issues/24",
    compiled=["expected the derivative"],
)
def trained_encoder_runs_without_gradients() -> Case:
    """The encoder runs under `torch.no_grad()` although it is trained."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            features = model[0](batch["x"])
        return F.cross_entropy(model[2](model[1](features)), batch["y"])

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


def data_clamped(params: Any) -> Tensor:
    """Return a loss after writing into `.data`, which autograd does not record."""
    weight = 1.0 * params["w"]
    scaled = weight.square()
    weight.data.clamp_(-0.5, 0.5)
    return (scaled * weight).sum()


@broken(
    "gradients",
    says=["expected the derivative", r"\.data"],
    seen="https://github.com/meta-pytorch/torchrec/pull/2836",
)
def intermediate_value_is_clamped_through_data() -> Case:
    """A value saved for the backward pass is clamped through `.data`, unseen by autograd."""
    params = seeded(lambda: {"w": torch.randn(4, 4)})
    return Case(data_clamped, (), options={"args": (params,)})
