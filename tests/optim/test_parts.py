"""Test wrappers that select parameters: `masked`, `freeze` and `partition`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import examples
from tests.optim.cases import OPTIMIZERS, SHAPES, random_tree, steps

names = st.sampled_from(sorted(OPTIMIZERS))
seeds = st.integers(0, 2**31)
masks = st.lists(st.booleans(), min_size=len(SHAPES), max_size=len(SHAPES))


def dict_of(mask):
    return {f"p{i}": bit for i, bit in enumerate(mask)}


@given(names, masks, seeds)
@settings(max_examples=examples(20, 30))
def test_masked_updates_only_chosen_leaves_and_matches_training_them_alone(name, mask, seed):
    params, grads = (random_tree(seed + i, SHAPES, torch.float32) for i in range(2))
    optimizer = OPTIMIZERS[name](0.1)
    chosen = [key for key, bit in dict_of(mask).items() if bit]
    alone, _ = optimizer.update(
        *({k: t[k] for k in chosen} for t in (grads,)),
        optimizer.init({k: params[k] for k in chosen}),
        {k: params[k] for k in chosen},
    )
    masked = optim.masked(optimizer, dict_of(mask))
    updates, _ = masked.update(grads, masked.init(params), params)
    frozen = optim.freeze(optimizer, {key: not bit for key, bit in dict_of(mask).items()})
    moved, _ = frozen.update(grads, frozen.init(params), params)
    for key, bit in dict_of(mask).items():
        assert tree.digest(updates[key]) == tree.digest(alone[key] if bit else grads[key])
        if bit:
            assert tree.digest(moved[key]) == tree.digest(alone[key])
    after = optim.apply_updates(params, moved)
    for key, bit in dict_of(mask).items():
        assert bit or tree.digest(after[key]) == tree.digest(params[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_frozen_parameters_keep_every_bit(dtype):
    """Including signed zeros, infinities and denormals. (A bfloat16 NaN may change its payload.)"""
    odd = [-0.0, 0.0, torch.inf, -torch.inf, torch.finfo(dtype).tiny / 2]
    params = {"w": torch.tensor(odd, dtype=dtype)}
    updates, _ = optim.set_to_zero().update(params, ())
    assert tree.digest(optim.apply_updates(params, updates)) == tree.digest(params)


@given(
    st.lists(names, min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    seeds,
)
@settings(max_examples=20)
def test_partition_matches_separate_optimizers(three, owners, seed):
    groups = {
        f"g{i}": ({f"p{j}": owner == i for j, owner in enumerate(owners)}, OPTIMIZERS[name](0.1))
        for i, name in enumerate(three)
    }
    together, _ = steps(optim.partition(groups), seed, 3)
    start = random_tree(seed, SHAPES, torch.float32, 1.0)
    for i, (_, optimizer) in enumerate(groups.values()):
        mine = {f"p{j}": start[f"p{j}"] for j, owner in enumerate(owners) if owner == i}
        if mine:
            alone, _ = steps(optimizer, seed, 3, params=mine)
            for found, expected in zip(together, alone, strict=True):
                assert tree.digest({k: found[k] for k in mine}) == tree.digest(expected)


def test_partition_assigns_groups_by_pattern_and_predicate_in_order():
    """A smaller rate for the backbone; adamw by default does not decay norms and biases."""
    params = {
        "backbone.conv.weight": torch.ones(2, 2),
        "backbone.norm.weight": torch.ones(2),
        "head.weight": torch.ones(2, 2),
        "head.bias": torch.ones(2),
    }
    optimizer = optim.partition(
        {
            "backbone": (r"^backbone\.", optim.adamw(1e-4, weight_decay=0.5)),
            "head": (optim.everything, optim.adamw(1e-3, weight_decay=0.5)),
        }
    )
    state = optimizer.init(params)
    zeros = tree.map(torch.zeros_like, params)
    updates, state = optimizer.update(zeros, state, params)
    assert {name: round(u.flatten()[0].item(), 7) for name, u in updates.items()} == {
        "backbone.conv.weight": -5e-5,
        "backbone.norm.weight": 0,
        "head.weight": -5e-4,
        "head.bias": 0,
    }
    assert optim.get(state, "backbone", "learning_rate") == torch.tensor(1e-4)
    assert optim.get(state, "head", "learning_rate") == torch.tensor(1e-3)
    no_biases = optim.matching(lambda name, p: not name.endswith("bias") and p.ndim > 1)
    assert no_biases(params) == {name: p.ndim == 2 for name, p in params.items()}


def test_matching_passes_torch_parameter_names_to_its_predicate_for_nested_trees():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    nested = [dict(layer.named_parameters()) for layer in module]
    seen = []
    optim.matching(lambda name, p: seen.append(name) or True)(nested)
    assert sorted(seen) == sorted(name for name, _ in module.named_parameters())


def test_train_step_reports_the_learning_rate_of_each_group():
    init_state, train_step, _ = ftrain.make_steps(
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)),
        lambda model, batch: model(batch).square().mean(),
        optim.partition(
            {"first": ("^0", optim.adamw(1e-4)), "rest": (optim.everything, optim.sgd(1e-2))}
        ),
    )
    _, metrics = train_step(init_state(0), torch.ones(4, 2))
    assert metrics["learning_rate['first'].learning_rate"] == torch.tensor(1e-4)
    assert metrics["learning_rate['rest'].learning_rate"] == torch.tensor(1e-2)


def test_partition_restricts_grad_fn_to_the_parameters_of_a_group():
    """SAM on one group perturbs that group alone and leaves the other parameters unchanged."""
    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}

    def gradient(p):
        return {"a": 2 * p["a"] * p["b"], "b": (p["a"] ** 2).sum().reshape(1)}

    optimizer = optim.partition(
        {"a": ("a", optim.sam(optim.sgd(1.0), 0.5)), "b": ("b", optim.sgd(1.0))}
    )
    grads = gradient(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, grad_fn=gradient)
    climbed = params["a"] + 0.5 * grads["a"] / grads["a"].norm()
    torch.testing.assert_close(updates["a"], -gradient({**params, "a": climbed})["a"])
    torch.testing.assert_close(updates["b"], -grads["b"])
