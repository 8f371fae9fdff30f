"""Steps whose result depends on more than the bytes of their inputs."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import batches, descend, mlp, params_of, seeded

TASKS = {"detection", "segmentation", "depth", "normals", "captioning", "retrieval", "pose"}


@broken(
    "deterministic",
    says=["two equal calls differ", "aten.randn", "from a key in the state"],
    seen="https://github.com/apache/mxnet/pull/3001",
)
def noise_is_seeded_by_the_clock() -> Case:
    """Each step seeds a generator of its own with the time, so that no run can be repeated."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        generator = torch.Generator().manual_seed(time.time_ns() % 2**32)
        x = batch["x"] + 0.1 * torch.randn(batch["x"].shape, generator=generator)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (x,)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "deterministic",
    says=["two equal calls differ", "changes calls", "Make it a part of the state"],
    seen="https://github.com/paiml/entrenar/issues/113",
    compiled=["compiled step gives other results", "a counter", "tensor of the state"],
    compiled_law="compiled",
)
def schedule_counts_its_own_calls() -> Case:
    """The schedule counts its calls in a closure: two equal calls use two learning rates."""
    model = mlp()
    calls = 0

    def step(state: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        learning_rate = 0.1 * 0.9**calls

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_fn)(state["params"])
        return {"params": descend(state["params"], grads, learning_rate)}, {"loss": loss}

    return Case(step, batches(), {"params": params_of(model)})


def hash_ordered_weights(state: Any, batch: Any) -> Any:
    """Give each task the next weight, in the order of a set of strings."""
    weights = {task: 0.5**i for i, task in enumerate(TASKS)}
    columns = torch.tensor([weights[task] for task in sorted(TASKS)])

    def loss_fn(params: Any) -> Tensor:
        return ((batch["x"] @ params["w"]).square().mean(0) * columns).sum()

    grads, loss = grad_and_value(loss_fn)(state["params"])
    return {"params": descend(state["params"], grads)}, {"loss": loss}


@broken(
    "deterministic",
    says=["a new process gives other bits", "order of a set", "Sort"],
    seen="https://github.com/allenai/allennlp/issues/243",
)
def order_of_a_set_differs_between_processes() -> Case:
    """Task weights are given in the order of a set of strings, which each process hashes anew."""
    params = seeded(lambda: {"w": torch.randn(4, len(TASKS))})
    return Case(hash_ordered_weights, batches(1), {"params": params}, {"fresh_processes": 1})


@broken(
    "deterministic",
    says=["have other bits than", "torch.set_num_threads", "use_deterministic_algorithms"],
    seen="https://github.com/pytorch/pytorch/issues/51366",
)
def gradient_of_indexing_depends_on_the_threads() -> Case:
    """The gradient of `table[indices]` adds duplicates in the order in which threads arrive."""
    table = seeded(lambda: torch.randn(16, 64))
    given = seeded(
        lambda: [{"i": torch.randint(0, 16, (4096,)), "y": torch.randn(4096, 64)} for _ in range(3)]
    )

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(table: Tensor) -> Tensor:
            return (table[batch["i"]] - batch["y"]).square().sum()

        grad, loss = grad_and_value(loss_fn)(state["table"])
        return {"table": state["table"] - 1e-4 * grad}, {"loss": loss}

    return Case(step, given, {"table": table}, {"threads": (1, 2)})
