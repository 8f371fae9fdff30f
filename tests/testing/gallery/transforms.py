"""Steps that cannot be vmapped, and steps that fail with donated memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

import ftrain
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import Params, batches, descend, mlp, params_of


@broken(
    "vmap",
    says=["cannot be mapped", "index_put_", r"transforms\.py:\d+", "out-of-place"],
    seen="https://github.com/facebookresearch/theseus/issues/650",
)
def confusion_matrix_is_filled_in_place() -> Case:
    """A metric is written into a fresh tensor in place, which has no row of its own under vmap."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logits = functional_call(model, params, (batch["x"],))
            return F.cross_entropy(logits, batch["y"]), logits

        grads, (loss, logits) = grad_and_value(loss_fn, has_aux=True)(state["params"])
        confusion = torch.zeros(3, 3)
        confusion.index_put_((batch["y"], logits.argmax(-1)), torch.ones(6), accumulate=True)
        return {"params": descend(state["params"], grads)}, {"loss": loss, "confusion": confusion}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "vmap",
    says=["cannot be mapped", "if norm > 1.0", r"transforms\.py:\d+", "torch.where"],
    seen="https://github.com/le2333/RTRRL/issues/86",
)
def row_decides_for_all_rows() -> Case:
    """`if norm > 1` asks for one truth value of all rows."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        if norm > 1.0:
            grads = {k: g / norm for k, g in grads.items()}
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@ftrain.tree.register_dataclass
class Training:
    """State of a hand-written step."""

    params: Params
    momentum: Params


@broken(
    "donation",
    says=["share memory", "params.*momentum", "torch.clone"],
    seen="https://github.com/google-deepmind/optax/pull/1059",
)
def target_network_is_the_online_network() -> Case:
    """Online and target weights start as the same tensors, so donated memory has two owners."""
    model = mlp()

    def step(state: Training, batch: Any) -> Any:
        with torch.no_grad():
            goal = functional_call(model, state.momentum, (batch["x"],)).max(-1).values

        def loss_fn(params: Any) -> Tensor:
            q = functional_call(model, params, (batch["x"],))
            return F.mse_loss(q.gather(1, batch["y"][:, None])[:, 0], 0.9 * goal)

        grads, loss = grad_and_value(loss_fn)(state.params)
        params = descend(state.params, grads)
        return Training(params, params), {"loss": loss}

    params = params_of(model)
    return Case(step, batches(), Training(params, params))
