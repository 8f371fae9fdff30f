"""Correct training steps in plain PyTorch, with dicts as states, which every check must accept."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import ftrain

State = dict[str, Any]
Step = tuple[State, dict[str, Any]]


def batches(n: int = 3, rows: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return classification batches, the same ones each time."""
    g = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(rows, 4, generator=g),
            "y": torch.randint(0, 3, (rows,), generator=g),
        }
        for _ in range(n)
    ]


def network() -> nn.Module:
    """Return a small network with dropout and BatchNorm."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.2), nn.Linear(6, 3)
    )


SKELETON = network().to("meta")
LINEAR = nn.Linear(4, 3).to("meta")


def start(seed: int = 0) -> State:
    """Return the state before the first step."""
    with ftrain.random.keyed(ftrain.random.key(seed)):
        model = network()
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {
        "params": params,
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "momentum": {name: torch.zeros_like(p) for name, p in params.items()},
        "key": ftrain.random.key(seed),
        "step": torch.tensor(0),
    }


def keyed_step(state: State, batch: Any) -> Step:
    """SGD with momentum through `torch.func`, dropout from the key, skipping non-finite gradients."""
    key, use = ftrain.random.split(state["key"]).unbind()

    def loss_of(params: Any) -> Any:
        buffers = {name: b.clone() for name, b in state["buffers"].items()}
        with ftrain.random.keyed(use):
            logits = functional_call(SKELETON, {**params, **buffers}, batch["x"])
        return F.cross_entropy(logits, batch["y"]), buffers

    grads, (loss, buffers) = torch.func.grad_and_value(loss_of, has_aux=True)(state["params"])
    good = torch.stack([g.isfinite().all() for g in grads.values()]).all()
    momentum = {n: 0.9 * state["momentum"][n] + g for n, g in grads.items()}
    new = {
        "params": {n: p - 0.1 * momentum[n] for n, p in state["params"].items()},
        "buffers": buffers,
        "momentum": momentum,
        "key": key,
        "step": state["step"] + 1,
    }
    kept = ftrain.tree.map(lambda a, b: torch.where(good, a, b), new, {**state, "key": key})
    return kept, {"loss": loss, "skipped": (~good).long()}


def optimizer_step(state: State, batch: Any) -> Step:
    """Step with a module and a `torch.optim` optimizer that live for one step."""
    model = copy.deepcopy(LINEAR).to_empty(device="cpu")
    model.load_state_dict(state["params"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p, buffer in zip(
        model.parameters(), (state["momentum"][n] for n, _ in model.named_parameters()), strict=True
    ):
        optimizer.state[p] = {"momentum_buffer": buffer.clone()}
    loss = F.cross_entropy(model(batch["x"]), batch["y"])
    loss.backward()
    optimizer.step()
    new = {
        "params": {name: p.detach().clone() for name, p in model.named_parameters()},
        "momentum": {
            name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()
        },
    }
    return new, {"loss": loss.detach()}


def generator_step(state: State, batch: Any) -> Step:
    """Step whose noise comes from a generator that is seeded from the state."""
    g = torch.Generator().manual_seed(int(state["seed"]))
    noise = 0.1 * torch.randn(state["w"].shape, generator=g)
    loss = (batch["x"] @ state["w"]).square().mean()
    grad = 2 * batch["x"].T @ (batch["x"] @ state["w"]) / batch["x"].shape[0]
    return {"w": state["w"] - 0.1 * (grad + noise), "seed": state["seed"] + 1}, {"loss": loss}


def averaging_step(state: State, batch: Any) -> Step:
    """Least squares with an exponential moving average of the weights."""
    error = batch["x"] @ state["w"] - batch["y"]
    w = state["w"] - 0.1 * batch["x"].T @ error / batch["x"].shape[0]
    ema = torch.lerp(state["ema"], w, 0.01)
    good = w.isfinite().all()
    new = {"w": torch.where(good, w, state["w"]), "ema": torch.where(good, ema, state["ema"])}
    return new, {"loss": error.square().mean()}


def linear_start() -> State:
    """Return the state of `optimizer_step` before the first step."""
    params = {"weight": torch.linspace(-1, 1, 12).view(3, 4), "bias": torch.zeros(3)}
    return {"params": params, "momentum": {name: torch.zeros_like(p) for name, p in params.items()}}
