"""Laws on two models of the zoo, with state and batches on a CUDA device."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch

import ftrain
from ftrain import checkpoint, optim, random, testing, tree
from ftrain.core.random import _families
from tests.zoo import ZOO

values = pytest.mark.values

each = pytest.mark.parametrize(
    ("model", "precision", "mode"),
    [
        ("mlp", "32-true", "eager"),
        ("mlp", "16-mixed", "eager"),
        ("gpt", "32-true", "eager"),
        ("gpt", "bf16-mixed", "eager"),
        pytest.param("mlp", "16-mixed", "inductor", marks=pytest.mark.inductor),
        pytest.param("gpt", "32-true", "inductor", marks=pytest.mark.inductor),
    ],
)


def on_cuda(state: Any) -> Any:
    return tree.map(lambda leaf: leaf.cuda(), state)


@functools.cache
def made(model: str, precision: str, accumulate: int = 1, randomless: bool = False) -> Any:
    case = ZOO[model]
    return ftrain.make_steps(
        case.randomless if randomless else case.model,
        case.loss_fn,
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-2)),
        precision=precision,
        accumulate=accumulate,
    )


@functools.cache
def train_step(model: str, precision: str, mode: str) -> Any:
    step = made(model, precision).train_step
    return step if mode == "eager" else ftrain.compile(step)


def start(model: str, precision: str, mode: str) -> tuple[Any, Any, list[Any]]:
    """Return a step, an initial state and four batches."""
    batches = [on_cuda(ZOO[model].batch(seed, 8)) for seed in range(4)]
    return (
        train_step(model, precision, mode),
        on_cuda(made(model, precision).init_state(3)),
        batches,
    )


def poisoned(batch: Any) -> Any:
    """Return a batch whose gradients are not finite."""
    return {
        name: leaf * float("inf") if leaf.is_floating_point() else leaf
        for name, leaf in batch.items()
    }


@values
@each
def test_step_is_pure_deterministic_and_keeps_the_structure_of_the_state(model, precision, mode):
    step, state, batches = start(model, precision, mode)
    for batch in batches[:2]:
        testing.assert_pure(step, state, batch)
        testing.assert_deterministic(step, state, batch, times=5)
        testing.assert_fixpoint(step, state, batch)
        state, _ = step(state, batch)


@values
@each
def test_resumed_run_has_the_bits_of_an_uninterrupted_run(model, precision, mode):
    testing.assert_resumes(*start(model, precision, mode))


@values
@each
def test_skipped_step_keeps_the_state(model, precision, mode):
    step, state, batches = start(model, precision, mode)
    testing.assert_skips(step, state, poisoned(batches[0]))


@values
@each
def test_evaluation_does_not_change_training(model, precision, mode):
    step, state, batches = start(model, precision, mode)
    evaluate = made(model, precision).eval_step
    testing.assert_evaluation_is_pure(step, evaluate, state, batches[0])


@values
@each
def test_donated_step_has_the_bits_of_the_plain_step(model, precision, mode):
    """Compare three donated steps with plain ones."""
    _, state, batches = start(model, precision, mode)
    backend = "eager" if mode == "eager" else "inductor"
    plain = ftrain.compile(made(model, precision).train_step, backend=backend)
    donating = ftrain.compile(made(model, precision).train_step, donate=True, backend=backend)
    donated = on_cuda(made(model, precision).init_state(3))
    for batch in batches[:3]:
        state, metrics = plain(state, batch)
        donated, donated_metrics = donating(donated, batch)
        testing.assert_same_bits(donated, state)
        testing.assert_same_bits(donated_metrics, metrics)


@values
@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_accumulated_gradients_match_full_batch_gradients(model):
    state = on_cuda(made(model, "32-true", 1, True).init_state(3))
    batch = on_cuda(ZOO[model].batch(0, 8))
    found = [made(model, "32-true", k, True).train_step(state, batch)[0] for k in (1, 4)]
    testing.assert_close_norm(found[1].opt_state[1].mu, found[0].opt_state[1].mu, 4e-6)


@values
@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_each_row_of_a_vmapped_step_matches_a_single_step(model):
    steps = made(model, "32-true")
    states = [on_cuda(steps.init_state(seed)) for seed in range(3)]
    batch = on_cuda(ZOO[model].batch(0, 8))
    testing.assert_vmap_rows(steps.train_step, states, batch, relative=1e-4)


@values
def test_step_from_a_loaded_checkpoint_has_the_bits_of_the_step_from_the_saved_state(tmp_path):
    step, state, batches = start("gpt", "16-mixed", "eager")
    state, _ = step(state, batches[0])
    checkpoint.save(tmp_path / "a", state)
    loaded, _ = checkpoint.load(tmp_path / "a", state)
    testing.assert_same_bits(loaded, state)
    testing.assert_same_bits(step(loaded, batches[1]), step(state, batches[1]))


@values
@pytest.mark.parametrize(
    ("model", "precision", "mode"),
    [
        ("gpt", "bf16-mixed", "eager"),
        pytest.param("mlp", "16-mixed", "inductor", marks=pytest.mark.inductor),
        pytest.param("gpt", "32-true", "inductor", marks=pytest.mark.inductor),
    ],
)
def test_run_finished_in_a_new_process_has_the_bits_of_a_run_in_one_process(
    model, precision, mode, tmp_path
):
    step, state, batches = start(model, precision, mode)
    state, _ = step(state, batches[0])
    checkpoint.save(tmp_path / "a", state)
    for batch in batches[1:]:
        state, _ = step(state, batch)
    command = [sys.executable, "-m", "tests.cuda.fresh", model, precision, mode, tmp_path / "a"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [tree.digest(state)]


@values
def test_random_draws_on_cuda_have_the_bits_of_draws_on_the_cpu():
    key = random.key(3)

    def alpha(key: torch.Tensor) -> torch.Tensor:
        """Return 9,000 parameters from 0.002 to 18."""
        return torch.arange(1, 9001, device=key.device) * (1 / 512)

    def keyed(key: torch.Tensor, draw, *parameters: torch.Tensor) -> torch.Tensor:
        with random.keyed(key):
            return draw(*parameters)

    draws = {
        "bits": lambda k: random.bits(k, (9999,)),
        "bernoulli": lambda k: random.bernoulli(k, 0.3, (9999,)),
        "uniform": lambda k: random.uniform(k, (9999,), minval=-1.0, maxval=2.5),
        "randint": lambda k: random.randint(k, (9999,), 0, 10**12, torch.int64),
        "permutation": lambda k: random.permutation(k, 999),
        "split": lambda k: random.split(k, 5),
        "fold_in": lambda k: random.fold_in(k, 7),
        "normal": lambda k: random.normal(k, (9999,)),
        "exponential": lambda k: random.exponential(k, (9999,)),
        "laplace": lambda k: random.laplace(k, (9999,)),
        "gumbel": lambda k: random.gumbel(k, (9999,)),
        "categorical": lambda k: random.categorical(k, torch.ones(7, device=k.device)),
        "truncated_normal": lambda k: random.truncated_normal(k, -alpha(k), alpha(k)),
        "gamma": lambda k: random.gamma(k, alpha(k)),
        "gamma64": lambda k: random.gamma(k, alpha(k).double()),
        "beta": lambda k: random.beta(k, alpha(k), alpha(k).flip(0)),
        "dirichlet": lambda k: random.dirichlet(k, alpha(k).view(-1, 100)),
        "dirichlet of few": lambda k: random.dirichlet(k, alpha(k).view(-1, 3)),
        "poisson": lambda k: random.poisson(k, alpha(k)),
        "choice": lambda k: random.choice(k, 9000, (999,), p=alpha(k)),
        "ball": lambda k: random.ball(k, 700, 2.0, (9,)),
        "beta of numbers": lambda k: random.beta(k, 0.7, 3.2, (999,)),
        "poisson of a number": lambda k: random.poisson(k, 14.3, (999,)),
        "keyed gamma": lambda k: keyed(k, torch._standard_gamma, alpha(k)),
        "keyed poisson": lambda k: keyed(k, torch.poisson, alpha(k) * 9),
        "keyed binomial": lambda k: keyed(k, torch.binomial, alpha(k).floor() * 9, alpha(k) / 18),
        "keyed von Mises": lambda k: _families.von_mises(k, (1,), alpha(k)),
        "rademacher": lambda k: random.rademacher(k, (999,), torch.bfloat16),
        "between": lambda k: random.uniform(k, (9000,), torch.float32, -alpha(k), alpha(k)),
        "randint between": lambda k: random.randint(k, (9000,), 0, (alpha(k) * 1e6).long()),
        "float64": lambda k: random.normal(k, (9999,), torch.float64),
        "float16": lambda k: random.uniform(k, (9999,), torch.float16),
        "bfloat16": lambda k: random.normal(k, (9999,), torch.bfloat16),
    }
    for name, draw in draws.items():
        testing.assert_same_bits(draw(key.cuda()).cpu(), draw(key), name)


@each
def test_step_does_not_wait_for_the_device(model, precision, mode):
    step, state, batches = start(model, precision, mode)
    state, _ = step(state, batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            state, _ = step(state, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
