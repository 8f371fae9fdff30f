"""Hand-written steps without a mistake: the checks that apply to them must pass.

Each step is the corrected form of some faulty steps of the gallery.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

import ftrain
from tests.testing.gallery.entries import Case, correct
from tests.testing.gallery.parts import (
    HIDDEN,
    Params,
    batch_norm_mlp,
    batches,
    buffers_of,
    descend,
    mlp,
    params_of,
    ragged,
    seeded,
    zeros_like,
)

ALL = (
    "pure",
    "deterministic",
    "fixpoint",
    "keyed",
    "resume",
    "compiled",
    "exception_safety",
)


def _gradients(model: Any, params: Any, batch: Any) -> Any:
    def loss_fn(params: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

    return grad_and_value(loss_fn)(params)


@correct(*ALL, "vmap")
def adam_on_dicts() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        grads, loss = _gradients(model, state["params"], batch)
        count = state["step"] + 1
        mean = {k: 0.9 * m + 0.1 * grads[k] for k, m in state["mean"].items()}
        square = {k: 0.99 * v + 0.01 * grads[k].square() for k, v in state["square"].items()}
        rate = 1e-2 * torch.minimum(count / 10, torch.ones(()))
        params = {
            k: p
            - rate * (mean[k] / (1 - 0.9**count)) / ((square[k] / (1 - 0.99**count)).sqrt() + 1e-8)
            for k, p in state["params"].items()
        }
        return {"params": params, "mean": mean, "square": square, "step": count}, {"loss": loss}

    params = params_of(model)
    zeros = zeros_like(params)
    state = {"params": params, "mean": zeros, "square": zeros_like(params), "step": torch.tensor(0)}
    return Case(step, batches(), state)


@correct(*ALL)
def batch_norm_on_copies_of_the_buffers() -> Case:
    model = batch_norm_mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            buffers = {k: b.clone() for k, b in state["buffers"].items()}
            logits = functional_call(model, (params, buffers), (batch["x"],))
            return F.cross_entropy(logits, batch["y"]), buffers

        grads, (loss, buffers) = grad_and_value(loss_fn, has_aux=True)(state["params"])
        return {"params": descend(state["params"], grads), "buffers": buffers}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "buffers": buffers_of(model)})


@correct(*ALL, "vmap")
def dropout_from_the_key() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        rng, mask_key = ftrain.random.split(state["rng"]).unbind()
        mask = ftrain.random.bernoulli(mask_key, 0.8, batch["x"].shape) / 0.8
        grads, loss = _gradients(model, state["params"], {**batch, "x": batch["x"] * mask})
        return {"params": descend(state["params"], grads), "rng": rng.clone()}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "rng": ftrain.random.key(0)})


@correct(*ALL)
def torch_dropout_in_a_keyed_context() -> Case:
    model = seeded(
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
        )
    )

    def step(state: Any, batch: Any) -> Any:
        with ftrain.random.keyed(state["rng"]):
            grads, loss = _gradients(model, state["params"], batch)
        rng = ftrain.random.fold_in(state["rng"], 1)
        return {"params": descend(state["params"], grads), "rng": rng}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model), "rng": ftrain.random.key(0)})


@correct(*ALL, "skip", skip={"free": ["scale"]})
def skipped_step_with_scaler_schedule_and_average() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        scale = state["scale"]

        def loss_fn(params: Any) -> Tensor:
            logits = functional_call(model, params, (batch["x"],))
            return F.cross_entropy(logits, batch["y"]) * scale

        grads, loss = grad_and_value(loss_fn)(state["params"])
        grads = {k: g / scale for k, g in grads.items()}
        good = torch.stack([g.isfinite().all() for g in grads.values()]).all()
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        grads = {k: g / norm.clamp(min=1.0) for k, g in grads.items()}
        params = descend(state["params"], grads, 0.1 * 0.99 ** state["count"])
        ema = {k: e + 0.01 * (params[k] - e) for k, e in state["ema"].items()}
        new = {"params": params, "ema": ema, "count": state["count"] + 1}
        old = {k: state[k] for k in new}
        kept = ftrain.tree.map(lambda n, o: torch.where(good, n, o), new, old)
        return {**kept, "scale": torch.where(good, scale, 0.5 * scale)}, {
            "loss": loss / scale,
            "skipped": ~good,
        }

    params = params_of(model)
    state = {
        "params": params,
        "ema": zeros_like(params),
        "count": torch.tensor(0),
        "scale": torch.tensor(1024.0),
    }
    return Case(step, batches(), state)


@correct(*ALL)
def queue_with_a_tensor_as_pointer() -> Case:
    encoder = seeded(lambda: torch.nn.Linear(4, HIDDEN))

    def step(state: Any, batch: Any) -> Any:
        rows = (torch.arange(len(batch["x"])) + state["pointer"]) % len(state["queue"])

        def loss_fn(params: Any) -> Any:
            keys = F.normalize(functional_call(encoder, params, (batch["x"],)), dim=-1)
            queue = state["queue"].index_copy(0, rows, keys.detach())
            return F.cross_entropy(keys @ state["queue"].T / 0.2, batch["y"]), queue

        grads, (loss, queue) = grad_and_value(loss_fn, has_aux=True)(state["params"])
        pointer = (state["pointer"] + len(batch["x"])) % len(state["queue"])
        new = {"params": descend(state["params"], grads), "queue": queue, "pointer": pointer}
        return new, {"loss": loss}

    queue = seeded(lambda: F.normalize(torch.randn(16, HIDDEN), dim=-1))
    state = {"params": params_of(encoder), "queue": queue, "pointer": torch.tensor(0)}
    return Case(step, batches(), state)


@correct(*ALL, "vmap")
def statistics_of_the_observations_in_the_state() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        count = state["count"] + len(batch["x"])
        mean = state["mean"] + (batch["x"] - state["mean"]).sum(0) / count
        square = state["square"] + (batch["x"].square() - state["square"]).sum(0) / count
        x = (batch["x"] - mean) / (square - mean.square()).clamp(min=1e-2).sqrt()
        grads, loss = _gradients(model, state["params"], {**batch, "x": x})
        new = {
            "params": descend(state["params"], grads),
            "count": count,
            "mean": mean,
            "square": square,
        }
        return new, {"loss": loss}

    state = {
        "params": params_of(model),
        "count": torch.tensor(1),
        "mean": torch.zeros(4),
        "square": torch.ones(4),
    }
    return Case(step, batches(), state)


@correct(*ALL)
def target_network_synchronized_every_second_step() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        goal = functional_call(model, state["target"], (batch["x"],)).max(-1).values.detach()

        def loss_fn(params: Any) -> Tensor:
            q = functional_call(model, params, (batch["x"],))
            return F.mse_loss(q.gather(1, batch["y"][:, None])[:, 0], 0.9 * goal)

        grads, loss = grad_and_value(loss_fn)(state["params"])
        params, count = descend(state["params"], grads), state["step"] + 1
        due = count % 2 == 0
        target = {k: torch.where(due, params[k], t) for k, t in state["target"].items()}
        return {"params": params, "target": target, "step": count}, {"loss": loss}

    params = params_of(model)
    state = {"params": params, "target": params_of(model), "step": torch.tensor(0)}
    return Case(step, batches(), state)


class Momentum(NamedTuple):
    """State that is a NamedTuple."""

    params: Params
    trace: Params


@correct(*ALL)
def autograd_on_detached_parameters() -> Case:
    model = mlp()

    def step(state: Momentum, batch: Any) -> Any:
        params = {k: p.detach().requires_grad_() for k, p in state.params.items()}
        loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
        grads = torch.autograd.grad(loss, list(params.values()))
        with torch.no_grad():
            trace = {k: 0.9 * m + g for (k, m), g in zip(state.trace.items(), grads, strict=True)}
            new = {k: p - 0.1 * trace[k] for k, p in params.items()}
        return Momentum(new, trace), {"loss": loss.detach()}

    params = params_of(model)
    return Case(step, batches(), Momentum(params, zeros_like(params)))


@correct(*ALL)
def micro_batches_weighted_by_tokens() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        total, tokens, losses = zeros_like(state["params"]), batch["mask"].sum(), []
        for i in range(4):
            part = {k: v[2 * i : 2 * i + 2] for k, v in batch.items()}

            def loss_fn(params: Any, part: Any = part) -> Tensor:
                logits = functional_call(model, params, (part["x"],)).flatten(0, 1)
                each = F.cross_entropy(logits, part["y"].flatten(), reduction="none")
                return (each * part["mask"].flatten()).sum() / tokens

            grads, loss = grad_and_value(loss_fn)(state["params"])
            total = {k: t + grads[k] for k, t in total.items()}
            losses.append(loss)
        return {"params": descend(state["params"], total)}, {"loss": torch.stack(losses).sum()}

    return Case(step, ragged(), {"params": params_of(model)})


@correct(*ALL)
def many_updates_in_one_step_by_scan() -> Case:
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def inner(params: Any, rows: Any) -> Any:
            grads, loss = _gradients(model, params, rows)
            return descend(params, grads), loss

        cut = {k: v.view(2, 3, *v.shape[1:]) for k, v in batch.items()}
        params, losses = ftrain.scan(inner, state["params"], cut)
        return {"params": params}, {"loss": losses.mean()}

    return Case(step, batches(), {"params": params_of(model)})
