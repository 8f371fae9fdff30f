"""Steps that change the state of the process: classes, caches, environment variables, settings."""

from __future__ import annotations

import functools
import os
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value

from tests.testing.gallery.entries import Case, broken
from tests.testing.gallery.parts import CLASSES, batches, descend, mlp, params_of


class Tracker:
    """Tracker whose dict, meant for each object, is that of the class."""

    seen: ClassVar[dict[str, Tensor]] = {}
    steps = 0


@functools.lru_cache(maxsize=8)
def smoothed(rows: int) -> Tensor:
    return torch.full((rows, CLASSES), 0.1 / CLASSES)


def fitted(state: Any, loss_fn: Any) -> Any:
    grads, loss = grad_and_value(loss_fn)(state["params"])
    return {"params": descend(state["params"], grads)}, {"loss": loss}


@broken(
    "pure",
    says=["'steps' of Tracker", "part of the state"],
    seen="https://github.com/talmolab/sleap-nn/pull/592",
)
def class_attribute_counts_steps() -> Case:
    """The warmup reads a counter on a class, which a second run of the process finds advanced."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        Tracker.steps += 1
        scale = min(1.0, Tracker.steps / 10)

        def loss_fn(params: Any) -> Tensor:
            return scale * F.cross_entropy(
                functional_call(model, params, (batch["x"],)), batch["y"]
            )

        return fitted(state, loss_fn)

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["Tracker.seen", "part of the state"],
    seen="https://github.com/talmolab/sleap-nn/pull/592",
)
def dict_of_a_class_is_filled_by_every_run() -> Case:
    """A class has one dict for all of its objects, into which each step writes."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        new, metrics = fitted(state, loss_fn)
        Tracker.seen[str(len(Tracker.seen))] = metrics["loss"]
        return new, metrics

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["cached result 1", "aten.add_|aten.scatter", "part of the state"],
    seen="https://github.com/sktime/sktime/pull/6451",
)
def cached_table_is_written_in_place() -> Case:
    """Smoothed labels are written into the table that `lru_cache` returns again at the next step."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        labels = smoothed(len(batch["y"])).add_(0.9 * F.one_hot(batch["y"], CLASSES))

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), labels)

        return fitted(state, loss_fn)

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["environment variables GALLERY_SCALE", "restore it"],
    seen="https://github.com/pytorch/pytorch/pull/41377",
)
def environment_variable_is_set_in_the_step() -> Case:
    """The step hands a value on through the environment, where other code of the process reads it."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        os.environ["GALLERY_SCALE"] = str(len(batch["y"]))

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        return fitted(state, loss_fn)

    return Case(step, batches(), {"params": params_of(model)})


@broken(
    "pure",
    says=["flushing of subnormal floats", "restore it"],
    seen="https://github.com/ashvardanian/NumKong/issues/328",
)
def subnormal_floats_are_flushed_from_then_on() -> Case:
    """The step switches subnormal floats off for speed, for all later arithmetic of the thread."""
    model = mlp()

    def step(state: Any, batch: Any) -> Any:
        torch.set_flush_denormal(True)

        def loss_fn(params: Any) -> Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        return fitted(state, loss_fn)

    return Case(step, batches(), {"params": params_of(model)})
