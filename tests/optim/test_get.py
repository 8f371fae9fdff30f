"""Test `get` and `set_hyperparams`: read and replace entries of an optimizer state by name."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import SHAPES, random_tree, ulps

PARAMS = {"w": torch.ones(2, 3), "b": torch.ones(3)}

NESTED = optim.ema(
    optim.chain(
        optim.clip_by_global_norm(1.0),
        optim.partition(
            {
                "fast": ("w", optim.with_hyperparams(optim.adamw, learning_rate=0.1, b1=0.5)),
                "slow": ("b", optim.with_hyperparams(optim.sgd, learning_rate=0.01)),
            }
        ),
    )
)


# --- get ---


def test_get_finds_values_in_states_of_chain_partition_and_with_hyperparams():
    state = NESTED.init(PARAMS)
    assert optim.get(state, "ema").keys() == PARAMS.keys()
    assert tree.leaves(optim.get(state, "mu"))[0].shape == (2, 3)
    assert optim.get(state, "fast", "learning_rate") == torch.tensor(0.1)
    assert optim.get(state, "slow", "count") == 0
    assert optim.get(state, "slow", "hyperparams", "learning_rate").dtype is torch.float64
    assert optim.get(state, "b1") == 0.5
    assert type(optim.get(state, "fast", "inner")).__name__ == "AdamState"


def test_get_returns_the_field_despite_a_parameter_of_the_same_name():
    state = optim.adam(0.1).init({"count": torch.ones(2), "learning_rate": torch.ones(2)})
    assert optim.get(state, "count").shape == ()
    assert optim.get(state, "learning_rate") == torch.tensor(0.1)


def test_get_raises_on_ambiguous_names_and_lists_their_paths():
    state = NESTED.init(PARAMS)
    with pytest.raises(ValueError, match="2 entries of this state are called 'count'") as caught:
        optim.get(state, "count")
    assert ".inner[1]['fast'].inner.count" in str(caught.value)
    assert ".inner[1]['slow'].inner.count" in str(caught.value)
    with pytest.raises(LookupError, match="no entry of this state is called 'nu2'.*ema, inner"):
        optim.get(state, "nu2")
    with pytest.raises(LookupError, match="called 'mu'. Its entries are: "):
        optim.get(state, "slow", "mu")


def test_paths_listed_for_an_ambiguous_name_are_valid_python():
    state = NESTED.init(PARAMS)
    with pytest.raises(ValueError, match="entries") as caught:
        optim.get(state, "count")
    for line in str(caught.value).splitlines():
        if line.startswith("  ."):
            assert eval(f"state{line.strip()}").ndim == 0


# --- with_hyperparams ---

BUILDS = {
    "adamw": (optim.adamw, {"learning_rate": 0.013, "b1": 0.81, "b2": 0.97, "weight_decay": 0.07}),
    "adam": (optim.adam, {"learning_rate": 0.1, "eps": 1e-5}),
    "sgd": (optim.sgd, {"learning_rate": 0.1}),
    "momentum": (
        optim.sgd,
        {"learning_rate": 0.3, "momentum": 0.7, "nesterov": True, "weight_decay": 0.01},
    ),
    "dampened": (optim.sgd, {"learning_rate": 0.3, "momentum": 0.7, "dampening": 0.1}),
    "rmsprop": (optim.rmsprop, {"learning_rate": 0.1}),
    "nadam": (optim.nadam, {"learning_rate": 0.1}),
    "lion": (optim.lion, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "adagrad": (optim.adagrad, {"learning_rate": 0.1}),
    "lamb": (optim.lamb, {"learning_rate": 0.1}),
}


@pytest.mark.parametrize("name", BUILDS)
@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(max_examples=4)
def test_with_hyperparams_matches_the_plain_optimizer(name, seed, dtype):
    """Bit for bit, in eager mode."""
    build, options = BUILDS[name]
    plain, held = build(**options), optim.with_hyperparams(build, **options)
    params = random_tree(seed, SHAPES, dtype, 1.0)
    state, held_state = plain.init(params), held.init(params)
    for step in range(4):
        grads = random_tree(seed + step + 1, SHAPES, dtype)
        expected, state = plain.update(grads, state, params)
        found, held_state = held.update(grads, held_state, params)
        assert tree.digest(found) == tree.digest(expected)
        assert tree.digest(held_state.inner) == tree.digest(state)
        params = optim.apply_updates(params, found)


def test_set_hyperparams_matches_a_rebuilt_optimizer_without_recompiling():
    optimizer = optim.with_hyperparams(optim.adamw, learning_rate=0.1, b1=0.9, weight_decay=0.1)
    update = ftrain.compile(optimizer.update, backend="eager")
    params, grads = (random_tree(seed, SHAPES, torch.float32, 1.0) for seed in (0, 1))
    state = optimizer.init(params)
    _, state = update(grads, state, params)
    for rate, b1 in ((0.2, 0.5), (torch.tensor(0.3), 0.0), (0.0, 0.99)):
        changed = optim.set_hyperparams(state, learning_rate=rate, b1=b1)
        rebuilt = optim.adamw(float(rate), b1, weight_decay=0.1)
        expected, _ = rebuilt.update(grads, state.inner, params)
        found, _ = update(grads, changed, params)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            # 0.3 was a float32; as a number it is rounded later.
            assert ulps(a, b) <= (2 if isinstance(rate, torch.Tensor) else 0)
    assert optim.get(state, "hyperparams")["learning_rate"] == 0.1  # the old state is as it was
    assert update.n_compiles == 1


def test_a_vmapped_learning_rate_sweep_equals_separate_runs():
    """Each of four rows equals a separate run bit for bit."""
    rates = [1e-3, 1e-2, 0.1, 1.0]
    optimizer = optim.with_hyperparams(optim.adamw, learning_rate=0.1, weight_decay=0.1)
    params = random_tree(0, SHAPES, torch.float32, 1.0)
    rows = tree.map(lambda p: torch.stack([p] * 4), params)
    state = torch.vmap(optimizer.init)(rows)
    state = optim.set_hyperparams(state, learning_rate=torch.tensor(rates, dtype=torch.float64))
    singles = [(params, optim.adamw(r, weight_decay=0.1).init(params)) for r in rates]
    for step in range(3):
        grads = random_tree(step, SHAPES, torch.float32)
        update = torch.vmap(optimizer.update, in_dims=(None, 0, 0))
        updates, state = update(grads, state, rows)
        rows = torch.vmap(optim.apply_updates)(rows, updates)
        for i, rate in enumerate(rates):
            one = optim.adamw(rate, weight_decay=0.1)
            u, s = one.update(grads, singles[i][1], singles[i][0])
            singles[i] = (optim.apply_updates(singles[i][0], u), s)
    for i, (expected, s) in enumerate(singles):
        assert tree.digest(tree.map(lambda x, i=i: x[i], rows)) == tree.digest(expected)
        assert tree.digest(tree.map(lambda x, i=i: x[i], state.inner)) == tree.digest(s)


def test_set_hyperparams_selects_the_group_by_name():
    state = NESTED.init(PARAMS)
    changed = optim.set_hyperparams(state, "slow", learning_rate=0.5)
    assert optim.get(changed, "slow", "hyperparams")["learning_rate"] == 0.5
    assert optim.get(changed, "fast", "hyperparams")["learning_rate"] == 0.1
    assert optim.get(optim.set_hyperparams(state, b1=0.25), "b1") == 0.25  # there is one only
    with pytest.raises(
        ValueError, match="2 hyper-parameters .* 'learning_rate'.*\n.*fast"
    ) as caught:
        optim.set_hyperparams(state, learning_rate=0.5)
    assert "['slow'].hyperparams['learning_rate']" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"learning_rate": -1.0},
            ValueError,
            "learning_rate: expected a finite number >= 0, got -1.0",
        ),
        (
            {"learning_rate": float("nan")},
            ValueError,
            "learning_rate: expected a finite number >= 0",
        ),
        ({"b1": 1.0}, ValueError, r"b1: expected a number in \[0, 1\), got 1.0"),
        ({"b1": "high"}, TypeError, "b1: expected a number, got str 'high'"),
        (
            {"rate": 0.1},
            LookupError,
            r"called 'rate'. Did you mean 'learning_rate'\? It has: .hyperparams\['b1'\]",
        ),
        (
            {"b1": torch.zeros(3)},
            ValueError,
            r"b1: expected .* of shape \(\), .* got shape \(3,\). .* stack states",
        ),
    ],
)
def test_set_hyperparams_refuses_invalid_values(values, error, message):
    optimizer = optim.with_hyperparams(optim.adamw, learning_rate=0.1, b1=0.9)
    with pytest.raises(error, match=message):
        optim.set_hyperparams(optimizer.init(PARAMS), **values)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: optim.with_hyperparams(optim.adamw),
            TypeError,
            "expected at least one number to keep",
        ),
        (
            lambda: optim.with_hyperparams(optim.adamw, learning_rate=-1.0),
            ValueError,
            "learning_rate: expected a finite number >= 0, got -1.0",
        ),
        (
            lambda: optim.with_hyperparams(optim.adamw, learning_rate=0.1, b1=1.0),
            ValueError,
            r"b1: expected a number in \[0, 1\)",
        ),
        (
            lambda: optim.with_hyperparams(optim.adamw, learning_rate=0.1, beta=0.9),
            TypeError,
            "no argument 'beta'",
        ),
    ],
)
def test_with_hyperparams_refuses_invalid_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_set_hyperparams_refuses_a_state_without_hyperparameters():
    with pytest.raises(LookupError, match="It has: none; `with_hyperparams` keeps them"):
        optim.set_hyperparams(optim.sgd(0.1).init(PARAMS), learning_rate=0.1)


def test_with_hyperparams_accepts_a_functools_partial_with_fixed_integers():
    build = functools.partial(optim.lookahead, optim.sgd(0.1), 3)
    optimizer = optim.with_hyperparams(build, alpha=0.5)
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert optim.get(state, "alpha") == 0.5
