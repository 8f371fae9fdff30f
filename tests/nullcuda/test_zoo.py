"""Each model of the zoo in each precision, with and without accumulation and dropout.

A step neither waits for the device nor copies from or to the host, keeps every leaf on the device, and
launches at most the number of kernels stated below. Compiled, all its launches become one CUDA graph.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest

import ftrain
from ftrain import optim, tree
from tests.campaign import product
from tests.nullcuda.device import Counts, counted
from tests.zoo import PRECISIONS, ZOO

#: Most launches of a step with AdamW and clipping, for one batch and for four micro-batches: the largest
#: number over precisions, with and without dropout (torch 2.14.1), and a twentieth more. The stub of
#: cuBLAS also counts the ten or so calls by which cuBLASLt prepares an `addmm`.
#:
#: Compiled, each layer of an LSTM is an operator that runs torch's kernels: those of every time step,
#: and in the backward pass those of the forward once more. Of 290 launches in float32, 238 are theirs
#: (14 products and 7 cells a layer; 75 for its derivative); of 493 under autocast 439, since it casts
#: the weights at every time step, as in eager mode. cuDNN, which is off here, has its own kernels.
LAUNCHES = {
    "eager": {"mlp": (350, 720), "convnet": (350, 620), "gpt": (1100, 2340), "lstm": (730, 1980)},
    "traced": {"mlp": (310, 710), "convnet": (310, 610), "gpt": (980, 2230), "lstm": (810, 2540)},
    "compiled": {"mlp": (90, 360), "convnet": (80, 230), "gpt": (285, 980), "lstm": (530, 2110)},
}
CASES = list(itertools.product(ZOO, PRECISIONS, (1, 4), (True, False)))
NAMES = ("model", "precision", "accumulate", "dropout")


def made(model: str, precision: Any, accumulate: int, dropout: bool) -> Any:
    case = ZOO[model]
    if not dropout and case.randomless is case.model:
        pytest.skip("has no dropout in either form")
    return ftrain.make_steps(
        case.model if dropout else case.randomless,
        case.loss_fn,
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)),
        precision=precision,
        accumulate=accumulate,
    )


def on_cuda(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.cuda(), value)


def step_counted(step: Any, state: Any, batch: Any) -> tuple[Any, Counts]:
    """Return the next state and the counts of a step; check that its outputs are on the device."""
    with counted() as counts:
        state, metrics = step(state, batch)
    assert all(leaf.is_cuda for leaf in tree.leaves((state, metrics)))
    return state, counts


@pytest.mark.parametrize("form", ["eager", "traced"])
@pytest.mark.parametrize(NAMES, CASES)
def test_step_launches_few_kernels_and_neither_waits_for_the_device_nor_copies(
    model: str, precision: Any, accumulate: int, dropout: bool, form: str
) -> None:
    steps = made(model, precision, accumulate, dropout)
    step: Any = steps.train_step
    if form == "traced":
        step = ftrain.compile(step, donate=True, backend="eager")
    state, batch = on_cuda(steps.init_state(0)), on_cuda(ZOO[model].batch(0, 8))
    state, _ = step(state, batch)
    state, counts = step_counted(step, state, batch)
    assert counts.waits == 0, counts
    assert counts.launches <= LAUNCHES[form][model][accumulate > 1]


@pytest.mark.inductor
@pytest.mark.parametrize(NAMES, product(tuple(ZOO), PRECISIONS, (1, 4), (True, False)))
def test_compiled_step_launches_few_kernels_and_is_replayed_as_one_cuda_graph(
    model: str, precision: Any, accumulate: int, dropout: bool
) -> None:
    steps = made(model, precision, accumulate, dropout)
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    state = on_cuda(steps.init_state(0))
    batches = [on_cuda(ZOO[model].batch(seed, 8)) for seed in range(6)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs without a CUDA graph")
        state, _ = step(state, batches[0])
        state, launched = step_counted(step, state, batches[1])
        for batch in batches[2:5]:
            state, _ = step(state, batch)
        state, replayed = step_counted(step, state, batches[5])
    assert step.n_compiles == 1
    assert launched.waits == 0, launched
    assert (replayed.graphs, replayed.waits, replayed.bad_captures) == (1, 0, 0), replayed
    assert replayed.launches <= 16, replayed  # copies of the batch and of the metrics
    assert launched.launches <= LAUNCHES["compiled"][model][accumulate > 1]
