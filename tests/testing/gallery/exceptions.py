"""Steps that do not undo a temporary change if an exception interrupts them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, descend, mlp, params_of


@broken(
    "exception_safety",
    says=["an exception at operator", "model.0.bias", "Restore it in a finally clause"],
    seen="https://github.com/mir-group/nequip/pull/590",
)
def swapped_weights_are_lost_in_an_exception() -> Case:
    """The step loads its weights into a shared module and restores the others without `finally`."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        kept = params_of(model)
        model.load_state_dict(state["params"])
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        grads = dict(
            zip(state["params"], torch.autograd.grad(loss, list(model.parameters())), strict=True)
        )
        model.load_state_dict(kept)
        return {"params": descend(state["params"], grads)}, {"loss": loss.detach()}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "exception_safety",
    says=["an exception at operator", "'training' of model", "Restore it in a finally clause"],
    seen="https://github.com/huggingface/lerobot/pull/3721",
)
def eval_mode_is_lost_in_an_exception() -> Case:
    """Pseudo-labels are made in eval mode, and an exception leaves the module in it."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        model.eval()
        with torch.no_grad():
            labels = functional_call(model, state["params"], (batch["x"],)).argmax(-1)
        model.train()

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), labels)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "exception_safety",
    says=["an exception at operator", "the grad mode", "Restore it in a finally clause"],
    seen="https://github.com/Lightning-AI/pytorch-lightning/issues/2180",
)
def grad_mode_is_lost_in_an_exception() -> Case:
    """Targets are computed between `set_grad_enabled(False)` and `(True)`, without `with`."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        torch.set_grad_enabled(False)
        target = functional_call(model, state["target"], (batch["x"],)).softmax(-1)
        torch.set_grad_enabled(True)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), target)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        params = descend(state["params"], grads)
        return {"params": params, "target": {k: t.clone() for k, t in state["target"].items()}}, {
            "loss": loss
        }

    params = params_of(model)
    return Case(
        step, batches(), {"params": params, "target": {k: 0.5 * p for k, p in params.items()}}
    )


@broken(
    "exception_safety",
    says=["an exception at operator", "_forward_hooks", "Restore it in a finally clause"],
    seen="https://github.com/huggingface/peft/pull/2761",
)
def hook_is_lost_in_an_exception() -> Case:
    """A feature hook is removed at the end of the step, which an exception never reaches."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        features: list[Tensor] = []
        handle = model[0].register_forward_hook(lambda _module, _args, out: features.append(out))

        def loss_fn(params: Any) -> Tensor:
            loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
            return loss + 0.01 * features[-1].square().mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        handle.remove()
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "exception_safety",
    says=[
        "an exception at operator",
        "the random state of torch",
        "Restore it in a finally clause",
    ],
    seen="https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/4529",
)
def random_state_is_lost_in_an_exception() -> Case:
    """The step seeds the global generator and restores its state at the end, without `finally`."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        kept = torch.get_rng_state()
        torch.manual_seed(0)
        noise = torch.randn(batch["x"].shape)
        grads, loss = grad_and_value(
            lambda p: F.cross_entropy(functional_call(model, p, (batch["x"] + noise,)), batch["y"])
        )(state["params"])
        torch.set_rng_state(kept)
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})
