"""Steps that compute another result when compiled, or that cannot be compiled in one graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, descend, mlp, params_of


def _gradients(model: nn.Module, params: Any, batch: Any) -> Any:
    def loss_fn(params: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

    return grad_and_value(loss_fn)(params)


@broken(
    "compiled",
    says=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        r"loss\.item\(\)",
        "torch.where|ftrain.cond",
    ],
    seen="https://github.com/open-edge-platform/physical-ai-studio/pull/877",
    compiled=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        r"loss\.item\(\)",
        "torch.where|ftrain.cond",
    ],
)
def learning_rate_is_cut_when_the_loss_is_large() -> Case:
    """`if loss.item() > 1` decides in Python on a value that a graph does not have."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        learning_rate = 0.1
        if loss.item() > 1.0:
            learning_rate = 0.01
        return {"params": descend(state["params"], grads, learning_rate)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "compiled",
    says=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        'state."step". < 100',
        "torch.where|ftrain.cond",
    ],
    seen="https://github.com/pytorch/pytorch/issues/120934",
    compiled=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        'state."step". < 100',
        "torch.where|ftrain.cond",
    ],
)
def warmup_branches_on_the_step_count() -> Case:
    """`if step < 100` asks for the value of the step count, a tensor."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        learning_rate = torch.tensor(0.1)
        if state["step"] < 100:
            learning_rate = 0.001 * (state["step"] + 1)
        new = {"params": descend(state["params"], grads, learning_rate), "step": state["step"] + 1}
        return new, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "step": torch.tensor(0)})


@broken(
    "compiled",
    says=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        r"math\.cos",
        "torch.where|ftrain.cond",
    ],
    seen="https://github.com/pytorch/pytorch/issues/163093",
    compiled=[
        "cannot become one graph",
        r"compiled\.py:\d+ in step",
        r"math\.cos",
        "torch.where|ftrain.cond",
    ],
)
def schedule_is_computed_with_math() -> Case:
    """A cosine schedule takes the step count as a Python number and calls `math.cos`."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        learning_rate = 0.05 * (1 + math.cos(math.pi * float(state["step"]) / 100))
        new = {"params": descend(state["params"], grads, learning_rate), "step": state["step"] + 1}
        return new, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "step": torch.tensor(0)})


@broken(
    "compiled",
    says=["hands a tensor to NumPy", r"compiled\.py:\d+", "Use the torch function"],
    seen="https://github.com/pseeth/autoclip/issues/6",
    compiled=["hands a tensor to NumPy", r"compiled\.py:\d+", "Use the torch function"],
)
def gradients_are_clipped_with_numpy() -> Case:
    """Gradients go through NumPy to be clipped at a percentile, which leaves the graph."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        limit = max(np.percentile(np.abs(g.numpy()), 90) for g in grads.values())
        clipped = {k: g.clamp(-float(limit), float(limit)) for k, g in grads.items()}
        return {"params": descend(state["params"], clipped)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


class CountsForwards(nn.Module):
    """Module that anneals a gate by the number of its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * min(1.0, self.calls / 10)


@broken(
    "compiled",
    says=["compiled step gives other results", r"self\.calls", "a counter", "tensor of the state"],
    seen="https://github.com/pytorch/pytorch/issues/128319",
    compiled=["compiled step gives other results", r"self\.calls", "tensor of the state"],
)
def module_counts_its_forward_passes() -> Case:
    """A module counts its calls in a Python integer, which a trace keeps at its first value."""
    model = CountsForwards()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "compiled",
    says=[r"x\[mask\] depends on values", r"compiled\.py:\d+", "torch.where"],
    seen="https://github.com/pytorch/pytorch/issues/114220",
    compiled=[r"x\[mask\] depends on values", r"compiled\.py:\d+", "torch.where"],
)
def hard_examples_are_selected_by_a_mask() -> Case:
    """Indexing with a boolean mask gives a tensor whose size depends on the values."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return losses[losses > losses.mean()].mean()

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


@broken(
    "compiled",
    says=["compiled step gives other results", r"compiled\.py", "order"],
    seen="https://github.com/piergiaj/pytorch-i3d/issues/38",
    compiled=["compiled step gives other results", r"compiled\.py", "order"],
)
def features_are_concatenated_in_dict_order() -> Case:
    """Features are concatenated in the order of the batch's keys, which differs between two loaders."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        x = torch.cat([x for name, x in batch.items() if name != "y"], dim=1)
        grads, loss = _gradients(model, state["params"], {"x": x, "y": batch["y"]})
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    first, second = ({"a": b["x"][:, :2], "b": b["x"][:, 2:], "y": b["y"]} for b in batches(2))
    reordered = {name: second[name] for name in ("b", "a", "y")}
    return Case(step, [first, reordered], {"params": params_of(model)})
