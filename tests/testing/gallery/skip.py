"""Steps that skip a batch with non-finite gradients, but change the state nevertheless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import (
    Params,
    batch_norm_mlp,
    batches,
    buffers_of,
    descend,
    mlp,
    params_of,
    zeros_like,
)


def finite(grads: Params) -> Tensor:
    return torch.stack([g.isfinite().all() for g in grads.values()]).all()


def choose(good: Tensor, new: Params, old: Params) -> Params:
    return {k: torch.where(good, new[k], old[k]) for k in old}


def _classifier(model: Any) -> Callable[[Any, Any], Any]:
    def gradients(params: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        return grad_and_value(loss_fn)(params)

    return gradients


@broken(
    "skip",
    says=["a skipped step changed the state at", "params", "torch.where"],
    seen="https://github.com/NovaSky-AI/SkyRL/pull/1635",
    compiled=["a skipped step changed the state at", "params", "torch.where"],
)
def update_is_masked_by_multiplication() -> Case:
    """The update is multiplied by 0 to skip it, and 0 times NaN is NaN."""
    model = mlp()
    gradients = _classifier(model)

    def step(state: Any, batch: Any) -> Any:
        grads, loss = gradients(state["params"], batch)
        good = finite(grads)
        masked = {k: g * good for k, g in grads.items()}
        return {"params": descend(state["params"], masked)}, {"loss": loss, "skipped": ~good}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "skip",
    says=["a skipped step changed the state at", "momentum", "torch.where"],
    seen="https://github.com/anthonytorlucci/rlevo/issues/184",
    compiled=["a skipped step changed the state at", "momentum", "torch.where"],
)
def moments_absorb_the_nan() -> Case:
    """Parameters are kept by `torch.where`, and the momentum absorbs the NaN."""
    model = mlp()
    gradients = _classifier(model)

    def step(state: Any, batch: Any) -> Any:
        grads, loss = gradients(state["params"], batch)
        good = finite(grads)
        momentum = {k: 0.9 * m + grads[k] for k, m in state["momentum"].items()}
        params = choose(good, descend(state["params"], momentum), state["params"])
        return {"params": params, "momentum": momentum}, {"loss": loss, "skipped": ~good}

    params = params_of(model)
    return Case(step, batches(), {"params": params, "momentum": zeros_like(params)})


@broken(
    "skip",
    says=["a skipped step changed the state at", "buffers", "torch.where"],
    seen="https://github.com/pytorch/pytorch/issues/1206",
    compiled=["a skipped step changed the state at", "buffers", "torch.where"],
)
def batch_norm_absorbs_the_nan() -> Case:
    """The optimizer skips the batch, whose NaN is in the running statistics by then."""
    model = batch_norm_mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            buffers = {k: b.clone() for k, b in state["buffers"].items()}
            logits = functional_call(model, (params, buffers), (batch["x"],))
            return F.cross_entropy(logits, batch["y"]), buffers

        grads, (loss, buffers) = grad_and_value(loss_fn, has_aux=True)(state["params"])
        good = finite(grads)
        params = choose(good, descend(state["params"], grads), state["params"])
        return {"params": params, "buffers": buffers}, {"loss": loss, "skipped": ~good}

    return Case(step, batches(), {"params": params_of(model), "buffers": buffers_of(model)})


@broken(
    "skip",
    says=["a skipped step changed the state at", "schedule", "torch.where"],
    seen="https://github.com/Lightning-AI/pytorch-lightning/issues/18828",
    compiled=["a skipped step changed the state at", "schedule", "torch.where"],
)
def scheduler_advances_on_skipped_steps() -> Case:
    """The schedule advances with every batch, also with those that the scaler skips."""
    model = mlp()
    gradients = _classifier(model)

    def step(state: Any, batch: Any) -> Any:
        grads, loss = gradients(state["params"], batch)
        good = finite(grads)
        learning_rate = 0.1 * 0.99 ** state["schedule"]
        params = descend(state["params"], grads, learning_rate)
        params = choose(good, params, state["params"])
        return {"params": params, "schedule": state["schedule"] + 1}, {
            "loss": loss,
            "skipped": ~good,
        }

    return Case(step, batches(), {"params": params_of(model), "schedule": torch.tensor(0)})


@broken(
    "skip",
    says=["a skipped step changed the state at", "ema", "torch.where"],
    seen="https://github.com/SWivid/F5-TTS/issues/631",
    compiled=["a skipped step changed the state at", "ema", "torch.where"],
)
def average_moves_on_skipped_steps() -> Case:
    """The moving average of the weights is updated with every batch, skipped or not."""
    model = mlp()
    gradients = _classifier(model)

    def step(state: Any, batch: Any) -> Any:
        grads, loss = gradients(state["params"], batch)
        good = finite(grads)
        params = choose(good, descend(state["params"], grads), state["params"])
        ema = {k: e + 0.01 * (params[k] - e) for k, e in state["ema"].items()}
        return {"params": params, "ema": ema}, {"loss": loss, "skipped": ~good}

    params = params_of(model)
    return Case(step, batches(), {"params": params, "ema": zeros_like(params)})


@broken(
    "skip",
    says=[
        "the step with non-finite gradients was not skipped",
        "tests the loss alone",
        "Test every gradient",
    ],
    seen="https://github.com/facebookresearch/mmf/pull/1073",
    compiled=[
        "the step with non-finite gradients was not skipped",
        "tests the loss alone",
        "Test every gradient",
    ],
)
def only_the_loss_is_checked() -> Case:
    """The step checks the loss, which is finite where the gradient is not: a square root at 0."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            z = functional_call(model, params, (batch["x"],))
            return (z - z[batch["pair"]]).square().sum(-1).sqrt().mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        good = loss.isfinite()
        params = choose(good, descend(state["params"], grads), state["params"])
        return {"params": params}, {"loss": loss, "skipped": ~good}

    given = [{"x": b["x"], "pair": torch.arange(6).roll(1)} for b in batches()]
    equal = {"x": given[0]["x"], "pair": torch.arange(6)}  # distance 0, derivative 1 / 0
    return Case(step, given, {"params": params_of(model)}, {"poison": lambda _batch: equal})


@broken(
    "skip",
    says=["changes the next update", "depends on .'scale'.", "Unscale the gradients first"],
    seen="https://github.com/Lightning-AI/pytorch-lightning/issues/9599",
    compiled=["changes the next update", "depends on .'scale'.", "Unscale the gradients first"],
)
def gradients_are_clipped_before_they_are_unscaled() -> Case:
    """Scaled gradients are clipped, so the update depends on the loss scale."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        scale = state["scale"]

        def loss_fn(params: Any) -> Tensor:
            logits = functional_call(model, params, (batch["x"],))
            return F.cross_entropy(logits, batch["y"]) * scale

        grads, loss = grad_and_value(loss_fn)(state["params"])
        good = finite(grads)
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        grads = {k: g / norm.clamp(min=1.0) / scale for k, g in grads.items()}
        params = choose(good, descend(state["params"], grads), state["params"])
        scale = torch.where(good, scale, 0.5 * scale)
        return {"params": params, "scale": scale}, {"loss": loss / state["scale"], "skipped": ~good}

    state = {"params": params_of(model), "scale": torch.tensor(1024.0)}
    return Case(step, batches(), state, {"free": ("scale",)})
