"""`compile(vmap(init_state))` and vmapped training: an ensemble as one program."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from tests.campaign import long
from tests.compile.cases import same_bytes
from tests.zoo import ZOO

SEEDS = torch.arange(3)


class SetsData(nn.Linear):
    """Model whose constructor cannot run under vmap, since torch refuses `.data` there."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.weight.data = torch.randn(3, 6) * 0.02
        self.bias.data.normal_(0.0, 0.1)


class Initialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Embedding(5, 4, padding_idx=0)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.tied.weight
        self.square = nn.Parameter(torch.empty(4, 4))
        nn.init.orthogonal_(self.square)
        self.scale = nn.Parameter(torch.randn(3) * 0.02)
        self.register_buffer("places", torch.arange(3.0))


MODELS = {
    **{name: case.model for name, case in ZOO.items()},
    "sets data": SetsData,
    "initialised": Initialised,
    "bfloat16": lambda: nn.Linear(3, 2, dtype=torch.bfloat16),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "a module": nn.Linear(3, 2),
}


def stacked(states):
    return tree.map(lambda *rows: torch.stack(rows), *states)


@pytest.mark.parametrize("name", MODELS)
def test_vmapped_init_state_equals_single_init_states(name):
    init_state, *_ = ftrain.make_steps(MODELS[name], lambda m, b: None, optim.adamw(1e-3))
    expected = stacked([init_state(seed) for seed in SEEDS.tolist()])
    assert same_bytes(torch.vmap(init_state)(SEEDS), expected)
    compiled = ftrain.compile(torch.vmap(init_state), backend="eager")
    assert same_bytes(compiled(SEEDS), expected)
    one = ftrain.compile(init_state, backend="eager")(SEEDS[1])
    assert same_bytes(one, init_state(1))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "a module"])
def test_step_on_vmapped_initial_states_is_compiled_once(name, precision):
    case = ZOO.get(name)
    loss_fn = case.loss_fn if case else lambda m, b: m(b).square().mean()
    batch = case.batch(0, 4) if case else torch.ones(4, 3)
    optimizer = optim.adamw(optim.warmup_cosine(1e-3, 2, 10))
    steps = ftrain.make_steps(MODELS[name], loss_fn, optimizer, precision=precision)
    states = torch.vmap(steps.init_state)(SEEDS)
    assert all(leaf.is_contiguous() for leaf in tree.leaves(states))
    step = ftrain.compile(torch.vmap(steps.train_step, in_dims=(0, None)), backend="eager")
    for _ in range(2):
        states, _ = step(states, batch)
    assert step.n_compiles == 1


@pytest.mark.parametrize("name", ["mlp", "convnet", "sets data"])
def test_vmapped_bind_init_equals_single_inits(name):
    apply = ftrain.bind(MODELS[name])
    keys = random.split(random.key(7), 3)
    expected = stacked([apply.init(key) for key in keys])
    assert same_bytes(torch.vmap(apply.init)(keys), expected)
    assert same_bytes(ftrain.compile(torch.vmap(apply.init), backend="eager")(keys), expected)
    nested = torch.vmap(torch.vmap(apply.init))(keys.view(3, 1, 2))
    assert same_bytes(nested, tree.map(lambda x: x.unsqueeze(1), expected))


def ensemble(model, loss_fn, batches):
    """Return functions that train an ensemble, `seeds -> (states, metrics)`, and one ensemble member."""
    init_state, train_step, _ = ftrain.make_steps(model, loss_fn, optim.sgd(0.1, momentum=0.9))
    stack = stacked(batches)

    def run(seeds):
        states = torch.vmap(init_state)(seeds)
        body = torch.vmap(lambda state, batch: train_step(state, batch), in_dims=(0, None))
        return ftrain.scan(body, states, stack)

    def row(seed):
        state, found = init_state(seed), []
        for batch in batches:
            state, metrics = train_step(state, batch)
            found.append(metrics)
        return state, stacked(found)

    return run, row


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_ensemble_init_and_training_compile_into_one_program(name):
    case = ZOO[name]
    run, row = ensemble(case.randomless, case.loss_fn, [case.batch(i, 4) for i in range(2)])
    compiled = ftrain.compile(run, backend="eager")
    states, metrics = compiled(SEEDS)
    assert same_bytes((states, metrics), run(SEEDS))
    assert compiled.n_compiles == 1
    for i, seed in enumerate(SEEDS.tolist()):
        expected, found = row(seed)
        torch.testing.assert_close(metrics["loss"][:, i], found["loss"], rtol=1e-5, atol=1e-6)
        for a, b in zip(tree.leaves(states), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-5)  # products of other shapes


@pytest.mark.parametrize("name", ["convnet", "lstm"])
def test_vmapped_train_step_may_capture_its_batch(name):
    case = ZOO[name]
    init_state, train_step, _ = ftrain.make_steps(case.model, case.loss_fn, optim.sgd(0.1))
    states, batch = torch.vmap(init_state)(SEEDS), case.batch(0, 4)
    fn = torch.vmap(lambda state: train_step(state, batch))
    assert same_bytes(ftrain.compile(fn, backend="eager")(states), fn(states))


@pytest.mark.inductor
@long
def test_inductor_compiled_vmapped_init_state_matches_eager():
    init_state, *_ = ftrain.make_steps(lambda: nn.Linear(3, 1), lambda m, b: None, optim.sgd(0.1))
    found = ftrain.compile(torch.vmap(init_state))(SEEDS)
    for a, b in zip(tree.leaves(found), tree.leaves(torch.vmap(init_state)(SEEDS)), strict=True):
        torch.testing.assert_close(a, b)
