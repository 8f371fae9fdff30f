"""Transformed steps on CUDA: no wait, no copy and no leaf on the host in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim, transforms, tree
from tests.nullcuda.device import counted
from tests.zoo import ZOO

CASE = ZOO["mlp"]


def steps_of(**options: Any) -> Any:
    optimizer = optim.with_hyperparams(optim.adamw, learning_rate=1e-3)
    return ftrain.make_steps(CASE.model, CASE.loss_fn, optimizer, **options)


def on_cuda(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.cuda(), value)


def batch_of(seed: int = 0) -> Any:
    return on_cuda(CASE.batch(seed, 8))


def swept(**options: Any) -> Any:
    over = {"learning_rate": [1e-3, 1e-2], "seed": [0, 1]}
    steps = transforms.sweep(steps_of(), over=over, **options)
    return steps.train_step, on_cuda(steps.init_state(0)), batch_of()


def swept_with_own_batches() -> Any:
    step, state, _ = swept(batches="own")
    return step, state, transforms.stack([batch_of(seed) for seed in range(4)])


def scanned() -> Any:
    steps = steps_of()
    batches = transforms.stack([batch_of(seed) for seed in range(3)])

    def train(state: Any, batches: Any) -> Any:
        return ftrain.scan(steps.train_step, state, batches)

    return train, on_cuda(steps.init_state(0)), batches


def averaged() -> Any:
    steps = transforms.with_ema(steps_of(precision="16-mixed"), 0.9)
    return steps.train_step, on_cuda(steps.init_state(0)), batch_of()


def per_sample() -> Any:
    grads_of = transforms.per_sample_grads(CASE.model, CASE.loss_fn)

    def step(state: Any, batch: Any) -> Any:
        return state, grads_of(state, batch)

    return step, on_cuda(steps_of().init_state(0)), batch_of()


def private() -> Any:
    steps = transforms.private_steps(
        CASE.model, CASE.loss_fn, optim.sgd(0.1), clip_norm=1.0, noise_multiplier=1.1
    )
    return steps.train_step, on_cuda(steps.init_state(0)), batch_of()


def sharpness_aware() -> Any:
    gradients = transforms.with_sam(ftrain.gradients(CASE.model, CASE.loss_fn))
    step = transforms.from_gradients(gradients, optim.adamw(1e-3))
    steps = ftrain.make_steps(CASE.model, CASE.loss_fn, optim.adamw(1e-3))
    return step, on_cuda(steps.init_state(0)), batch_of()


def evaluated() -> Any:
    steps = steps_of()

    def step(state: Any, batch: Any) -> Any:
        return state, steps.eval_step(state, batch)

    return step, on_cuda(steps.init_state(0)), batch_of()


def vmapped() -> Any:
    steps = steps_of()
    states = transforms.stack([on_cuda(steps.init_state(seed)) for seed in range(3)])
    return torch.vmap(steps.train_step, in_dims=(0, None)), states, batch_of()


STEPS: dict[str, Callable[[], Any]] = {
    "sweep": swept,
    "sweep in chunks": lambda: swept(chunk_size=2),
    "sweep with own batches": swept_with_own_batches,
    "scan": scanned,
    "ema": averaged,
    "per-sample gradients": per_sample,
    "private": private,
    "sam": sharpness_aware,
    "evaluation": evaluated,
    "vmap": vmapped,
}


def check(step: Any, state: Any, batch: Any) -> None:
    state, _ = step(state, batch)
    with counted() as counts:
        outputs = step(state, batch)
    assert counts.waits == 0, counts
    assert all(leaf.is_cuda for leaf in tree.leaves(outputs))


@pytest.mark.parametrize("name", STEPS)
def test_transformed_step_neither_waits_for_the_device_nor_copies(name: str) -> None:
    check(*STEPS[name]())


@pytest.mark.parametrize("name", STEPS)
def test_traced_transformed_step_neither_waits_for_the_device_nor_copies(name: str) -> None:
    step, state, batch = STEPS[name]()
    check(ftrain.compile(step, backend="eager"), state, batch)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["sweep", "scan", "per-sample gradients"])
def test_compiled_transformed_step_neither_waits_for_the_device_nor_copies(name: str) -> None:
    step, state, batch = STEPS[name]()
    check(ftrain.compile(step), state, batch)
