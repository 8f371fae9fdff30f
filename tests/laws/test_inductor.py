"""The laws on inductor code, for few models, since each compiles for many seconds."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim, testing
from ftrain.core import tree
from tests.campaign import choice
from tests.zoo import GPT, ZOO

pytestmark = pytest.mark.inductor

# A second block is the same code once more, and as long to compile.
MODELS = {name: case.model for name, case in ZOO.items()} | {"gpt": lambda: GPT(blocks=1)}

FEW = [("mlp", "16-mixed", 4), ("gpt", "32-true", 1)]
CASES = choice(
    FEW, [*FEW, ("convnet", "32-true", 1), ("gpt", "bf16-mixed", 4), ("lstm", "32-true", 1)]
)
# float32: another order of summation; bfloat16: inductor keeps in float32 what eager mode rounds.
TOLERANCE = {"32-true": 1e-5, "bf16-mixed": 2e-2, "16-mixed": 2e-3}


@functools.cache
def steps(model: str, precision: str, accumulate: int) -> ftrain.Steps:
    case = ZOO[model]
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.sgd(optim.warmup_cosine(1e-1, 2, 20), momentum=0.9)
    )
    return ftrain.make_steps(
        MODELS[model], case.loss_fn, optimizer, precision=precision, accumulate=accumulate
    )


@pytest.mark.parametrize(("model", "precision", "accumulate"), CASES)
def test_inductor_compiled_steps_are_pure_deterministic_resumable_and_donatable(
    model: str, precision: str, accumulate: int
) -> None:
    """Laws 1 to 4, 6, 7, 9 and 10; the plain and the donated step compile once each."""
    init_state, eager, eval_step = steps(model, precision, accumulate)
    plain, donating = ftrain.compile(eager), ftrain.compile(eager, donate=True)
    evaluate = ftrain.compile(eval_step) if model == "mlp" else eval_step
    batches = [ZOO[model].batch(seed, 8) for seed in range(4)]
    state = init_state(0)

    testing.assert_pure(plain, state, batches[0])  # law 1
    testing.assert_deterministic(plain, state, batches[0], times=3)  # law 2
    testing.assert_resumes(plain, state, batches)  # law 7
    testing.assert_evaluation_is_pure(plain, evaluate, state, batches[0])  # law 10

    # Law 4: other masks would be another loss altogether.
    same, other = plain(state, batches[0])[1]["loss"], eager(state, batches[0])[1]["loss"]
    assert float(same) == pytest.approx(float(other), rel=TOLERANCE[precision])

    kept, donated = state, tree.map(torch.clone, state)  # law 9
    for batch in batches:
        testing.assert_fixpoint(plain, kept, batch)  # law 3
        kept, metrics = plain(kept, batch)
        donated, donated_metrics = donating(donated, batch)
        testing.assert_same_bits(donated, kept)
        testing.assert_same_bits(donated_metrics, metrics)

    spoilt = "mask" if model == "gpt" else "x"
    batch = {**batches[1], spoilt: torch.full_like(batches[1][spoilt], float("nan"))}
    testing.assert_skips(plain, kept, batch)  # law 6
    assert (plain.n_compiles, donating.n_compiles) == (1, 1)


def test_donated_inductor_step_compiles_once_over_200_steps() -> None:
    """The run has a schedule, a loss scaler and two skipped steps."""
    init_state, train_step, _ = steps("mlp", "16-mixed", 4)
    step = ftrain.compile(train_step, donate=True)
    state, skipped = init_state(0), 0
    for i in range(200):
        batch = ZOO["mlp"].batch(i % 5, 8)
        if i in (50, 120):
            batch["x"] = batch["x"] * float("nan")
        state, metrics = step(state, batch)
        skipped += int(metrics["skipped"])
    assert step.n_compiles == 1
    assert (skipped, int(state.step)) == (2, 198)


def test_inductor_compiled_vmapped_step_matches_single_steps() -> None:
    """Law 8, with eight models in one graph."""
    init_state, train_step, _ = steps("mlp", "32-true", 1)
    states: list[Any] = [init_state(seed) for seed in range(8)]
    testing.assert_vmap_rows(
        train_step, states, ZOO["mlp"].batch(0, 8), relative=1e-5, compile=ftrain.compile
    )
