"""Test the algebra of `chain`, and the arguments that each link's `update` receives."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import CASES, OPTIMIZERS, random_tree, ulps

names = st.sampled_from(sorted(OPTIMIZERS))
SHAPES = [(3, 2), (4,), ()]


def run(optimizer, seed, steps=3):
    params = random_tree(seed, SHAPES, torch.float32)
    state = optimizer.init(params)
    for step in range(steps):
        grads = random_tree(seed + step + 1, SHAPES, torch.float32)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    return tree.digest(params), [tree.digest(x) for x in tree.leaves(state)]


@given(names, names, names, st.integers(0, 1000))
@settings(max_examples=20)
def test_chain_is_associative_and_identity_is_neutral(a, b, c, seed):
    """Bit for bit; the empty chain is neutral as well."""
    x, y, z = (OPTIMIZERS[name](0.1) for name in (a, b, c))
    expected = run(optim.chain(x, y, z), seed)
    for same in (
        optim.chain(optim.chain(x, y), z),
        optim.chain(x, optim.chain(y, z)),
        optim.chain(optim.identity(), x, y, optim.chain(), z, optim.identity()),
    ):
        assert run(same, seed) == expected


def test_chain_passes_extra_arguments_to_every_link():
    seen = []

    def spy(name):
        def update(grads, state, params=None, **extra):
            seen.append((name, params, extra))
            return grads, state

        return optim.GradientTransformation(lambda params: (), update)

    optimizer = optim.chain(spy("a"), optim.chain(optim.scale(1.0), spy("b")))
    optimizer.update({}, optimizer.init({}), {}, loss=1.0)
    assert seen == [("a", {}, {"loss": 1.0}), ("b", {}, {"loss": 1.0})]


def test_adamw_and_sgd_match_chains_of_single_transformations():
    """Within 4 ulp, because the products are computed in another order."""
    pairs = [
        (
            optim.adamw(0.1, weight_decay=0.1),
            optim.chain(
                optim.scale_by_adam(),
                optim.add_decayed_weights(0.1),
                optim.scale_by_learning_rate(0.1),
            ),
        ),
        (
            optim.sgd(0.1, 0.9, nesterov=True, weight_decay=0.1),
            optim.chain(
                optim.add_decayed_weights(0.1),
                optim.trace(0.9, nesterov=True),
                optim.scale_by_learning_rate(0.1),
            ),
        ),
    ]
    params = random_tree(0, SHAPES, torch.float32)
    for whole, parts in pairs:
        states = whole.init(params), parts.init(params)
        for seed in range(5):
            grads = random_tree(seed, SHAPES, torch.float32)
            one, new_whole = whole.update(grads, states[0], params)
            two, new_parts = parts.update(grads, states[1], params)
            states = new_whole, new_parts
            for key in params:
                assert ulps(one[key], two[key], params[key] * 0.01) <= 4


def test_tree_find_returns_the_learning_rate_of_any_optimizer_state():
    params = {"w": torch.ones(2, 2)}
    rated = [name for name in OPTIMIZERS if CASES[name].one_rate]
    for name, schedule in itertools.product(rated, (0.25, optim.constant(0.25))):
        optimizer = OPTIMIZERS[name](schedule)
        state = optimizer.init(params)
        for _ in range(2):
            (rate,) = tree.find(state, "learning_rate").values()
            assert (rate.dtype, rate.shape, rate.item()) == (torch.float32, (), 0.25)
            _, state = optimizer.update(params, state, params)
        assert {int(c) for c in tree.find(state, "count").values()} == {2}
