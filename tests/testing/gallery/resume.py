"""Steps that give another result in a run resumed from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import (
    FEATURES,
    HIDDEN,
    batches,
    descend,
    mlp,
    params_of,
    seeded,
)


@broken(
    "resume",
    says=["resuming before step", "the step changes optimizer.state", "Put it into the state"],
    seen="https://github.com/NVlabs/stylegan2-ada-pytorch/issues/108",
)
def optimizer_state_is_not_saved() -> Case:
    """The checkpoint holds the weights, and Adam's moments stay in the optimizer object."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(state: Any, batch: Any) -> Any:
        model.load_state_dict(state["params"])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()
        return {"params": params_of(model)}, {"loss": loss.detach()}

    return Case(step, batches(4), {"params": params_of(model)})


@broken(
    "resume",
    says=["resuming before step", "'last_epoch' of schedule", "Put it into the state"],
    seen="https://github.com/lightly-ai/lightly-train/pull/301",
    compiled=["compiled (train_)?step gives other results", "tensor of the state"],
    compiled_law="compiled",
)
def schedule_object_is_not_saved() -> Case:
    """A schedule object counts the steps; after a restart it begins anew."""
    model = mlp()

    class Warmup:
        last_epoch = 0

        def step(self) -> float:
            self.last_epoch += 1
            return 0.1 * min(1.0, self.last_epoch / 10)

    schedule = Warmup()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads, schedule.step())}, {"loss": loss}

    return Case(step, batches(4), {"params": params_of(model)})


class Queue(nn.Module):
    """Momentum contrast: a queue of keys, and a Python integer that says where the next one goes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, HIDDEN)
        self.pointer = 0

    def forward(self, x: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        keys = F.normalize(self.encoder(x), dim=-1)
        rows = (torch.arange(len(x)) + self.pointer) % len(queue)
        self.pointer = (self.pointer + len(x)) % len(queue)
        logits = keys @ queue.T
        return logits, queue.index_copy(0, rows, keys.detach())


@broken(
    "resume",
    says=["resuming before step", "'pointer' of model", "Put it into the state"],
    seen="https://github.com/pytorch/pytorch/issues/120248",
    compiled=["compiled (train_)?step gives other results", "tensor of the state"],
    compiled_law="compiled",
)
def queue_pointer_is_a_python_integer() -> Case:
    """The queue is in the state, and the pointer into it is a Python integer on the module."""
    model = seeded(Queue)

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logits, queue = functional_call(model, params, (batch["x"], state["queue"]))
            return F.cross_entropy(logits / 0.2, batch["y"]), queue

        grads, (loss, queue) = grad_and_value(loss_fn, has_aux=True)(state["params"])
        return {"params": descend(state["params"], grads), "queue": queue}, {"loss": loss}

    queue = seeded(lambda: F.normalize(torch.randn(16, HIDDEN), dim=-1))
    return Case(step, batches(4), {"params": params_of(model), "queue": queue})


@broken(
    "resume",
    says=["resuming before step", "'count' of normalize", "Put it into the state"],
    seen="https://github.com/isaac-sim/IsaacLab/issues/2635",
    compiled=["compiled (train_)?step gives other results", "tensor of the state"],
    compiled_law="compiled",
)
def observation_statistics_are_not_saved() -> Case:
    """A normalizer object keeps running statistics of the inputs, as VecNormalize does."""
    model = mlp()

    class Normalizer:
        count, mean, square = 1e-4, torch.zeros(FEATURES), torch.ones(FEATURES)

        def __call__(self, x: Tensor) -> Tensor:
            self.count += len(x)
            self.mean = self.mean + (x - self.mean).sum(0) / self.count
            self.square = self.square + (x.square() - self.square).sum(0) / self.count
            return (x - self.mean) / (self.square - self.mean.square()).clamp(min=1e-2).sqrt()

    normalize = Normalizer()

    def step(state: Any, batch: Any) -> Any:
        x = normalize(batch["x"])

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (x,)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(4), {"params": params_of(model)})


@broken(
    "resume",
    says=["resuming before step", "not in the checkpoint", "Put it into the state"],
    seen="https://github.com/pytorch/data/issues/1437",
)
def extra_data_comes_from_a_captured_iterator() -> Case:
    """An unlabelled batch is taken from an endless iterator; after a restart it begins anew."""
    model = mlp()
    endless = iter(batches(50))

    def step(state: Any, batch: Any) -> Any:
        other = next(endless)

        def loss_fn(params: Any) -> Tensor:
            loss = F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])
            p = functional_call(model, params, (other["x"],)).softmax(-1)
            return loss - 0.1 * (p * p.log()).sum(-1).mean()

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(4), {"params": params_of(model)})
