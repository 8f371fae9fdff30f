"""Draws that do not come from the state's key."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, descend, mlp, params_of, seeded


@broken(
    "keyed",
    says=[
        "torch's global generator",
        "aten.bernoulli",
        r"1 \(Dropout\)",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/pytorch/functorch/issues/408",
    compiled=["bernoulli|dropout", r"randomness\.py:\d+", "keyed"],
)
def dropout_from_the_global_generator() -> Case:
    """Dropout in a hand-written step draws its mask from torch's global generator."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "keyed",
    says=[
        "torch's global generator",
        "aten.randn_like",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/RasmussenLab/vamb/issues/46",
    compiled=["randn_like", r"randomness\.py:\d+", "keyed"],
)
def latent_noise_from_randn_like() -> Case:
    """A variational autoencoder draws its noise with `torch.randn_like`."""
    params = seeded(lambda: {"enc": 0.3 * torch.randn(4, 4), "dec": 0.3 * torch.randn(2, 4)})

    def step(state: Any, batch: Any) -> Any:
        def elbo(p: Any) -> Tensor:
            mean, log_std = (batch["x"] @ p["enc"]).chunk(2, dim=-1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            kl = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(-1)
            return ((z @ p["dec"] - batch["x"]).square().sum(-1) + kl).mean()

        grads, loss = grad_and_value(elbo)(state["params"])
        return {"params": descend(state["params"], grads, 0.01)}, {"loss": loss}

    return Case(step, batches(), {"params": params})


@broken(
    "keyed",
    says=[
        "torch's global generator",
        "aten.randint",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/huggingface/diffusers/issues/175",
    compiled=["randint", r"randomness\.py:\d+", "keyed"],
)
def diffusion_timesteps_from_randint() -> Case:
    """A diffusion step draws its time steps with `torch.randint`."""
    model = seeded(lambda: nn.Linear(5, 4))
    alphas = torch.linspace(0.99, 0.01, 10)

    def step(state: Any, batch: Any) -> Any:
        x = batch["x"]
        t = torch.randint(0, 10, (x.shape[0],), device=x.device)
        noise = ftrain.random.normal(state["rng"], x.shape)
        noisy = alphas[t, None].sqrt() * x + (1 - alphas[t, None]).sqrt() * noise

        def loss_fn(params: Any) -> Tensor:
            inputs = torch.cat([noisy, t[:, None] / 10], dim=1)
            return F.mse_loss(functional_call(model, params, (inputs,)), noise)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        rng = ftrain.random.fold_in(state["rng"], 1)
        return {"params": descend(state["params"], grads), "rng": rng}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "rng": ftrain.random.key(0)})


@broken(
    "keyed",
    says=[
        "NumPy's global generator",
        "np.random.beta",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/mosaicml/composer/issues/793",
    compiled=["NumPy", r"randomness\.py:\d+", "key"],
)
def mixup_coefficient_from_numpy() -> Case:
    """Mixup draws its coefficient with `np.random.beta`, as in the paper's code."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        lam = float(np.random.beta(0.4, 0.4))
        x, y = batch["x"], F.one_hot(batch["y"], 3).float()
        x, y = lam * x + (1 - lam) * x.flip(0), lam * y + (1 - lam) * y.flip(0)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (x,)), y)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


class StochasticDepth(nn.Module):
    """Residual branch that training drops with a Python draw."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or random.random() < 0.5:
            x = x + self.branch(x)
        return self.head(x)


@broken(
    "keyed",
    says=[
        "Python's global generator",
        r"random\.random\(\)",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/MIC-DKFZ/batchgenerators/issues/17",
    compiled=["Python", r"randomness\.py:\d+", "key"],
)
def stochastic_depth_from_python_random() -> Case:
    """Stochastic depth decides with `random.random()`: traced, the decision is burned in."""

    def loss_fn(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    return Case(ftrain.make_steps(StochasticDepth, loss_fn, optim.sgd(0.1)), batches())


@broken(
    "keyed",
    says=[
        "torch's global generator",
        "aten.exponential_",
        "F.gumbel_softmax",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/pytorch/pytorch/issues/114107",
    compiled=["exponential", r"randomness\.py:\d+", "keyed"],
)
def gumbel_softmax_hides_its_draw() -> Case:
    """A discrete bottleneck calls `F.gumbel_softmax`, which draws inside torch."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            logits = functional_call(model, params, (batch["x"],))
            codes = F.gumbel_softmax(logits, tau=0.5)
            return -(codes * F.one_hot(batch["y"], 3)).sum(-1).mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "keyed",
    says=[
        "the generator `generator`",
        "aten.randperm",
        r"randomness\.py:\d+",
        "Draw from a key in the state",
    ],
    seen="https://github.com/soran-ghaderi/torchebm/issues/245",
)
def captured_generator_moves_with_each_call() -> Case:
    """Negatives are shuffled with a `torch.Generator` that the step captures and no checkpoint saves."""
    model = mlp()
    generator = torch.Generator().manual_seed(0)

    def step(state: Any, batch: Any) -> Any:
        order = torch.randperm(batch["x"].shape[0], generator=generator)

        def loss_fn(params: Any) -> Tensor:
            z = functional_call(model, params, (batch["x"],))
            near, far = (z - z.roll(1, 0)).square().sum(-1), (z - z[order]).square().sum(-1)
            return F.relu(near - far + 1.0).mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "keyed",
    says=["state.'rng'. and returns it unchanged", "Split it"],
    seen="https://github.com/p-doom/jasmine/pull/239",
    compiled=["state.'rng'. and returns it unchanged", "Split it"],
)
def key_is_used_again_at_every_step() -> Case:
    """The step draws from its key and returns the same key: each step has the same mask."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        mask = ftrain.random.bernoulli(state["rng"], 0.8, batch["x"].shape)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"] * mask,)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads), "rng": state["rng"].clone()}, {
            "loss": loss
        }

    return Case(step, batches(), {"params": params_of(model), "rng": ftrain.random.key(0)})
