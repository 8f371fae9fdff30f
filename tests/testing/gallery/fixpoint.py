"""Steps whose new state has another structure, dtype, shape or layout than the old one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import (
    FEATURES,
    batches,
    descend,
    mlp,
    params_of,
    seeded,
)


def _gradients(model: nn.Module, params: Any, batch: Any) -> Any:
    def loss_fn(params: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

    return grad_and_value(loss_fn)(params)


@broken(
    "fixpoint",
    says=["learning_rate", "got float", "torch.tensor"],
    seen="https://github.com/pytorch/pytorch/issues/107076",
    compiled=["learning_rate", "got float", "torch.tensor"],
)
def learning_rate_is_a_python_float() -> Case:
    """The learning rate in the state is a Python float, so each new value compiles the step again."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        params = descend(state["params"], grads, state["learning_rate"])
        return {"params": params, "learning_rate": 0.9 * state["learning_rate"]}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "learning_rate": 0.1})


@broken(
    "fixpoint",
    says=["new .'momentum'.", "Give the initial state every entry"],
    seen="https://github.com/KempnerInstitute/KempnerForge/pull/115",
    compiled=["momentum", "initial state"],
)
def momentum_appears_at_the_first_step() -> Case:
    """The optimizer creates its momentum at the first step, so a fresh state cannot hold a saved one."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        momentum = state.get("momentum")
        momentum = (
            {k: 0.9 * momentum[k] + g for k, g in grads.items()} if momentum is not None else grads
        )
        return {"params": descend(state["params"], momentum), "momentum": momentum}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "fixpoint",
    says=["history", "another shape", "Allocate its final shape"],
    seen="https://github.com/jostmey/NakedAttention/issues/1",
    compiled=["history", "another shape", "Allocate its final shape"],
)
def history_of_losses_grows() -> Case:
    """The state concatenates each loss to a history, so each step has a new shape."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        history = torch.cat([state["history"], loss[None]])
        return {"params": descend(state["params"], grads), "history": history}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "history": torch.zeros(0)})


@broken(
    "fixpoint",
    says=["'step'", "expected int64, got float32", "Cast the operand"],
    seen="https://github.com/google/flax/issues/924",
    compiled=["'step'", "expected int64, got float32", "Cast the operand"],
)
def step_count_turns_into_a_float() -> Case:
    """Adding a float to the int64 step count makes it float32."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        count = state["step"] + 1.0
        params = descend(state["params"], grads, 0.1 / count.sqrt())
        return {"params": params, "step": count}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "step": torch.tensor(0)})


@broken(
    "fixpoint",
    says=["0.bias", "expected bfloat16, got float32", "Cast the operand"],
    seen="https://github.com/google-deepmind/optax/issues/377",
    compiled=["0.bias", "expected bfloat16, got float32", "Cast the operand"],
)
def parameters_are_promoted_by_the_update() -> Case:
    """bfloat16 parameters minus a float32 update are float32 from the second step on."""
    model = mlp().to(torch.bfloat16)

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], {**batch, "x": batch["x"].bfloat16()})
        norm = torch.stack([g.float().square().sum() for g in grads.values()]).sum().sqrt()
        clipped = {k: g.float() * (1.0 / norm.clamp(min=1.0)) for k, g in grads.items()}
        return {"params": descend(state["params"], clipped)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "fixpoint",
    says=["momentum", "another strides", "contiguous"],
    seen="https://github.com/pytorch/pytorch/issues/126585",
    compiled=["momentum", "another strides", "contiguous"],
)
def momentum_is_stored_transposed() -> Case:
    """Muon transposes tall matrices, and stores the momentum with the strides of the transpose."""
    weight = seeded(lambda: torch.randn(FEATURES, 3))

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(weight: Tensor) -> Tensor:
            return F.cross_entropy(batch["x"] @ weight, batch["y"])

        grad, loss = grad_and_value(loss_fn)(state["weight"])
        momentum = 0.9 * state["momentum"].T.contiguous() + grad.T.contiguous()
        update = momentum / momentum.norm()
        return {"weight": state["weight"] - 0.1 * update.T, "momentum": momentum.T}, {"loss": loss}

    state = {"weight": weight, "momentum": torch.zeros_like(weight)}
    return Case(step, batches(), state)


@broken(
    "fixpoint",
    says=["momentum", "strides", "contiguous"],
    seen="https://github.com/lucidrains/titans-pytorch/issues/64",
)
def momentum_begins_as_one_expanded_zero() -> Case:
    """The momentum begins as one zero that `expand` repeats; its strides change with the first step."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        momentum = {k: 0.9 * m + grads[k] for k, m in state["momentum"].items()}
        return {"params": descend(state["params"], momentum), "momentum": momentum}, {"loss": loss}

    params = params_of(model)
    zeros = {k: torch.zeros(()).expand(p.shape) for k, p in params.items()}
    return Case(step, batches(), {"params": params, "momentum": zeros})


@broken(
    "fixpoint",
    says=["'step'", "float32", "stops at 16,777,216", "Count in int64"],
    seen="https://github.com/pytorch/ao/pull/4915",
    compiled=["'step'", "float32", "stops at 16,777,216", "Count in int64"],
)
def step_count_in_float32_stops_at_2_to_the_24() -> Case:
    """The step count is a float32 tensor: 16,777,216 + 1 is 16,777,216, where the schedule stops."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        count = state["step"] + 1
        params = descend(state["params"], grads, 0.05 * (1 + (count % 1000 * math.pi / 1000).cos()))
        return {"params": params, "step": count}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "step": torch.zeros(())})


@broken(
    "fixpoint",
    says=["running_loss", "requires_grad", "detach"],
    seen="https://github.com/google/brax/pull/152",
)
def running_loss_keeps_its_graph() -> Case:
    """A running loss in the state is not detached, so each step keeps the graphs of all earlier ones."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        params = {k: p.detach().requires_grad_() for k, p in state["params"].items()}
        loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
        running = 0.9 * state["running_loss"] + 0.1 * loss
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
        new = {k: (p - 0.1 * g).detach() for (k, p), g in zip(params.items(), grads, strict=True)}
        return {"params": new, "running_loss": running}, {"loss": loss.detach()}

    return Case(step, batches(), {"params": params_of(model), "running_loss": torch.zeros(())})


class Tied(nn.Module):
    """Autoencoder whose decoder is the transpose of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).tanh())


@broken(
    "fixpoint",
    says=["encoder.weight", "decoder.weight", "share memory", "Keep one leaf"],
    seen="https://github.com/NVIDIA-NeMo/Automodel/pull/2511",
)
def tied_weights_come_apart() -> Case:
    """The state takes tied weights from `state_dict()` as two leaves, which the update sets apart."""
    model = seeded(Tied)

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.mse_loss(
                functional_call(model, params, (batch["x"],), tie_weights=False), batch["x"]
            )

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": dict(model.state_dict())})
