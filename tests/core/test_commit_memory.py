"""Memory of the state that an eager step returns: not copied if new, copied if anything refers to it."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim

BATCH = {"x": torch.ones(4, 3)}


@pytest.fixture(autouse=True, params=[0, None], ids=["all large", "all small"])
def small(request, monkeypatch):
    """Treat all tensors as large, then all of them as small: those are copied unseen."""
    if request.param is not None:
        monkeypatch.setattr(sys.modules["ftrain.core.commit"], "_SMALL", request.param)
    return request.param is None


def loss_fn(model, batch):
    return model(batch["x"]).square().mean()


def storages(values):
    return [leaf.untyped_storage().data_ptr() for leaf in ftrain.tree.leaves(values)]


def steps_with(new_memory, **options):
    """Return the functions of a run whose optimizer state is a dict that `new_memory` makes."""

    def init(params):
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(grads, state, params, **extra):
        updates = {name: -0.1 * g for name, g in grads.items()}
        return updates, new_memory(grads, state, params, updates)

    optimizer = optim.GradientTransformation(init, update)
    return ftrain.make_steps(lambda: nn.Linear(3, 2), loss_fn, optimizer, **options)


KEPT = []

MAKERS = {
    "gradients": lambda grads, state, params, updates: grads,
    "gradients in another dict": lambda grads, state, params, updates: dict(grads),
    "old memory": lambda grads, state, params, updates: state,
    "parameters": lambda grads, state, params, updates: params,
    "updates": lambda grads, state, params, updates: updates,
    "batch": lambda grads, state, params, updates: {
        "weight": BATCH["x"][:2], "bias": BATCH["x"][0, :2]
    },
    "one tensor twice": lambda grads, state, params, updates: dict.fromkeys(
        ("bias", "weight"), torch.zeros(2)
    ),
    "slices": lambda grads, state, params, updates: {
        "weight": torch.ones(4, 3)[1:3], "bias": torch.ones(5)[1:3]
    },
    "a tensor kept elsewhere": lambda grads, state, params, updates: {
        name: KEPT.append(g * 2) or KEPT[-1] for name, g in grads.items()
    },
    "a view kept elsewhere": lambda grads, state, params, updates: {
        name: (made := g * 2, KEPT.append(made.view(-1)))[0] for name, g in grads.items()
    },
    "NumPy's memory": lambda grads, state, params, updates: {
        name: torch.from_numpy(g.numpy() * 2) for name, g in grads.items()
    },
    "expanded": lambda grads, state, params, updates: {
        "weight": torch.ones(1).expand(2, 3), "bias": torch.ones(1).expand(2)
    },
    "new": lambda grads, state, params, updates: {name: g * 2 for name, g in grads.items()},
}  # fmt: skip


@pytest.mark.parametrize("maker", [m for m in MAKERS if m != "one tensor twice"])
def test_leaves_of_a_state_after_an_eager_step_share_no_memory_whatever_the_optimizer_returns(
    maker,
):
    KEPT.clear()
    init_state, train_step, _ = steps_with(MAKERS[maker])
    state = init_state(0)
    held = [state, BATCH, KEPT]
    new, metrics = train_step(state, BATCH)
    addresses = storages((new, dict(metrics)))
    assert len(set(addresses)) == len(addresses)
    assert not {*addresses} & {*storages(held)}
    for leaf in ftrain.tree.leaves(new):
        assert leaf.untyped_storage().nbytes() == leaf.nbytes


def test_eager_step_copies_a_tensor_that_its_optimizer_state_contains_twice():
    def init(params):
        return {"a": torch.zeros(2), "b": torch.zeros(2)}

    def update(grads, state, params, **extra):
        return {name: -g for name, g in grads.items()}, dict.fromkeys("ab", state["a"] + 1)

    optimizer = optim.GradientTransformation(init, update)
    init_state, train_step, _ = ftrain.make_steps(lambda: nn.Linear(3, 2), loss_fn, optimizer)
    new, _ = train_step(init_state(0), BATCH)
    assert len(set(storages(new.opt_state))) == 2


def test_leaves_of_an_initial_state_share_no_memory_whatever_the_optimizer_returns():
    constant = torch.ones(2)

    def init(params):
        return {"slow": params, "view": params["weight"][0], "wide": constant.expand(3, 2)}

    def update(grads, state, params, **extra):
        return {name: -g for name, g in grads.items()}, ftrain.tree.map(torch.clone, state)

    optimizer = optim.GradientTransformation(init, update)
    steps = ftrain.make_steps(lambda: nn.Linear(3, 2), loss_fn, optimizer)
    state = steps.init_state(0)
    addresses = storages((state, constant))
    assert len(set(addresses)) == len(addresses)
    new, _ = steps.train_step(state, BATCH)
    assert ftrain.tree.digest(new.opt_state) == ftrain.tree.digest(state.opt_state)


def test_initial_state_keeps_the_tensors_that_the_optimizer_made():
    made = []

    def init(params):
        state = ftrain.tree.map(torch.zeros_like, params)
        made.extend(storages(state))
        return state

    optimizer = optim.GradientTransformation(init, lambda *args, **extra: args[:2])
    state = ftrain.make_steps(lambda: nn.Linear(3, 2), loss_fn, optimizer).init_state(0)
    assert storages(state.opt_state) == made


def with_graph(grads):
    with torch.enable_grad():
        return {name: g.clone().requires_grad_() * 2 for name, g in grads.items()}


def in_inference_mode(grads):
    with torch.inference_mode():
        return {name: g * 2 for name, g in grads.items()}


def with_attribute(grads):
    made = {name: g * 2 for name, g in grads.items()}
    for tensor in made.values():
        tensor.source = "optimizer"
    return made


def shared_between_processes(grads):
    return {name: (g * 2).share_memory_() for name, g in grads.items()}


@pytest.mark.parametrize(
    "maker", [with_graph, in_inference_mode, with_attribute, shared_between_processes]
)
def test_eager_step_returns_ordinary_tensors_whatever_tensors_the_optimizer_makes(maker):
    init_state, train_step, _ = steps_with(lambda grads, *rest: maker(grads))
    state, _ = train_step(init_state(0), BATCH)
    for leaf in ftrain.tree.leaves(state):
        assert not leaf.requires_grad
        assert not leaf.is_inference()
        assert not leaf.is_shared()
        assert not vars(leaf)
    train_step(state, BATCH)


def test_eager_step_copies_new_parameters_only_if_they_are_small(monkeypatch, small):
    init_state, train_step, _ = ftrain.make_steps(
        lambda: nn.Linear(3, 2), loss_fn, optim.adamw(1e-3)
    )
    state = init_state(0)
    made = []
    apply_updates = ftrain.core.step.apply_updates

    def watched(params, updates):
        news = apply_updates(params, updates)
        made.extend(storages(news))
        return news

    monkeypatch.setattr(ftrain.core.step, "apply_updates", watched)
    new, _ = train_step(state, BATCH)
    assert (storages(new.params) != made) is small


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**31), st.sampled_from(["skip", "ignore", "raise"]))
def test_eager_step_equals_gradients_update_and_commit_to_the_bit(seed, nonfinite):
    init_state, train_step, _ = ftrain.make_steps(
        lambda: nn.Linear(3, 2), loss_fn, optim.adamw(1e-3), nonfinite=nonfinite
    )
    state = init_state(seed)
    new, _ = train_step(state, BATCH)
    result = train_step.gradients(state, BATCH)
    proposed = ftrain.update(optim.adamw(1e-3), state, result)
    pieces, _ = ftrain.commit(state, proposed, result)
    assert ftrain.tree.digest(new) == ftrain.tree.digest(pieces)
    assert not {*storages(pieces)} & {*storages((proposed, result.grads, state))}
