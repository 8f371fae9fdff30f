"""Steps whose accumulated micro-batches give other gradients than the whole batch.

A hand-written `accumulate(state, parts)` takes a list of micro-batches; the step on the whole batch is
`accumulate(state, [batch])`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import (
    Params,
    batches,
    descend,
    mlp,
    params_of,
    ragged,
    zeros_like,
)


def _case(accumulate: Callable[[Any, list[Any]], Any], given: list[Any], params: Params) -> Case:
    def step(state: Any, batch: Any) -> Any:
        return accumulate(state, [batch])

    return Case(step, given, {"params": params}, {"accumulated": accumulate})


def _gradients(model: Any, params: Params, batch: Any) -> Any:
    def loss_fn(params: Any) -> Tensor:
        return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

    return grad_and_value(loss_fn)(params)


def _add(a: Params, b: Params) -> Params:
    return {k: a[k] + b[k] for k in a}


@broken(
    "accumulation",
    says=["another gradient", "tokens", "ftrain.Mean"],
    seen="https://github.com/huggingface/blog/pull/2414",
    compiled=["another gradient", "tokens", "ftrain.Mean"],
)
def mean_of_the_means_of_micro_batches() -> Case:
    """A mean over tokens is averaged again over micro-batches with other numbers of tokens."""

    def masked_loss(model: Any, batch: Any) -> Tensor:
        logits = model(batch["x"]).flatten(0, 1)
        losses = F.cross_entropy(logits, batch["y"].flatten(), reduction="none")
        mask = batch["mask"].flatten()
        return (losses * mask).sum() / mask.sum().clamp(min=1.0)

    return Case(ftrain.make_steps(mlp, masked_loss, optim.sgd(0.1)), ragged())


@broken(
    "accumulation",
    says=["another update than the whole batch", "summed and not averaged", "divide once"],
    seen="https://github.com/fastai/fastai/issues/3023",
    compiled=["another update than the whole batch", "summed and not averaged", "divide once"],
)
def gradients_are_summed_and_not_divided() -> Case:
    """Gradients of micro-batches are added, and nobody divides by their number."""
    model = mlp()

    def accumulate(state: Any, parts: list[Any]) -> Any:
        total, losses = zeros_like(state["params"]), []
        for part in parts:
            grads, loss = _gradients(model, state["params"], part)
            total, losses = _add(total, grads), [*losses, loss]
        return {"params": descend(state["params"], total)}, {"loss": torch.stack(losses).mean()}

    return _case(accumulate, batches(rows=8), params_of(model))


@broken(
    "accumulation",
    says=["another update than the whole batch", "gradients are clipped", "once for each part"],
    seen="https://github.com/swathikirans/GSM/issues/22",
    compiled=["another update than the whole batch", "gradients are clipped", "once for each part"],
)
def gradients_are_clipped_after_each_micro_batch() -> Case:
    """Gradients are clipped after every micro-batch, not once for the whole batch."""
    model = mlp()

    def accumulate(state: Any, parts: list[Any]) -> Any:
        total, losses = zeros_like(state["params"]), []
        for part in parts:
            grads, loss = _gradients(model, state["params"], part)
            total, losses = _add(total, grads), [*losses, loss]
            norm = torch.stack([g.square().sum() for g in total.values()]).sum().sqrt()
            total = {k: g / (norm / 0.1).clamp(min=1.0) for k, g in total.items()}
        mean = {k: g / len(parts) for k, g in total.items()}
        return {"params": descend(state["params"], mean)}, {"loss": torch.stack(losses).mean()}

    return _case(accumulate, batches(rows=8), params_of(model))


@broken(
    "accumulation",
    says=["another update than the whole batch", "weights decayed", "once for each part"],
    seen="https://github.com/keras-team/keras/issues/19990",
    compiled=["another update than the whole batch", "weights decayed", "once for each part"],
)
def weights_decay_at_every_micro_batch() -> Case:
    """Weight decay is applied after every micro-batch, so four of them decay four times."""
    model = mlp()

    def accumulate(state: Any, parts: list[Any]) -> Any:
        decayed, total, losses = state["params"], zeros_like(state["params"]), []
        for part in parts:
            grads, loss = _gradients(model, state["params"], part)
            total, losses = _add(total, grads), [*losses, loss]
            decayed = {k: 0.99 * p for k, p in decayed.items()}
        mean = {k: g / len(parts) for k, g in total.items()}
        return {"params": descend(decayed, mean)}, {"loss": torch.stack(losses).mean()}

    return _case(accumulate, batches(rows=8), params_of(model))


@broken(
    "accumulation",
    says=["another update than the whole batch", "divide once"],
    seen="https://github.com/huggingface/transformers/pull/39659",
    compiled=["another update than the whole batch", "divide once"],
)
def incomplete_window_is_divided_by_the_whole_number() -> Case:
    """The last window of an epoch has fewer micro-batches, and is divided by their usual number."""
    model = mlp()
    usual = 4

    def accumulate(state: Any, parts: list[Any]) -> Any:
        total, losses = zeros_like(state["params"]), []
        for part in parts:
            grads, loss = _gradients(model, state["params"], part)
            total, losses = _add(total, grads), [*losses, loss]
        mean = {k: g / usual for k, g in total.items()}
        return {"params": descend(state["params"], mean)}, {"loss": torch.stack(losses).mean()}

    return _case(accumulate, batches(rows=8), params_of(model))


@broken(
    "accumulation",
    says=["another update than the whole batch", "got nan", "positive weights", "divide once"],
    seen="https://github.com/ml-explore/mlx-lm/pull/1413",
    compiled=["another update than the whole batch", "got nan", "positive weights", "divide once"],
)
def micro_batch_without_tokens_gives_nan() -> Case:
    """The micro-batch of padding alone has the loss 0/0, which makes the whole gradient NaN."""
    model = mlp()

    def accumulate(state: Any, parts: list[Any]) -> Any:
        tokens = torch.stack([part["mask"].sum() for part in parts]).sum()
        total, losses = zeros_like(state["params"]), []
        for part in parts:

            def loss_fn(params: Any, part: Any = part) -> Tensor:
                logits = functional_call(model, params, (part["x"],)).flatten(0, 1)
                each = F.cross_entropy(logits, part["y"].flatten(), reduction="none")
                weight = part["mask"].sum()
                return (each * part["mask"].flatten()).sum() / weight * (weight / tokens)

            grads, loss = grad_and_value(loss_fn)(state["params"])
            total, losses = _add(total, grads), [*losses, loss]
        return {"params": descend(state["params"], total)}, {"loss": torch.stack(losses).sum()}

    return _case(accumulate, ragged(rows=8), params_of(model))


@broken(
    "accumulation",
    says=["another loss than the whole batch", "Sum totals and weights"],
    seen="https://github.com/allenai/allennlp/pull/4706",
    compiled=["another loss than the whole batch", "Sum totals and weights"],
)
def loss_of_the_last_micro_batch_is_reported() -> Case:
    """The reported loss is that of the last micro-batch."""
    model = mlp()

    def accumulate(state: Any, parts: list[Any]) -> Any:
        total, loss = zeros_like(state["params"]), torch.zeros(())
        for part in parts:
            grads, loss = _gradients(model, state["params"], part)
            total = _add(total, grads)
        mean = {k: g / len(parts) for k, g in total.items()}
        return {"params": descend(state["params"], mean)}, {"loss": loss}

    return _case(accumulate, batches(rows=8), params_of(model))
