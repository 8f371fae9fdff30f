"""Prodigy: the distance it finds, and optax's on the same problem."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import random_tree

SHAPES = [(), (7,), (5, 3)]


@functools.cache
def optax_run(safeguard):
    """One program for all draws: parameters and distances after each step."""

    @jax.jit
    def run(rate, b1, b2, d0, decay, params, grads):
        optimizer = optax.contrib.prodigy(
            rate, (b1, b2), estim_lr0=d0, weight_decay=decay, safeguard_warmup=safeguard
        )

        def step(carry, g):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state.estim_lr)

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    return run


@given(
    st.sampled_from([0.5, 0.9]), st.sampled_from([0.9, 0.999]), st.sampled_from([0.0, 0.1]),
    st.booleans(), st.sampled_from([1e-6, 1e-3]), st.floats(0.5, 1.0), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=6)
def test_optax_while_the_distance_grows(b1, b2, decay, safeguard, d0, rate, seed):
    """Gradients that mostly point one way, over 100 steps: random ones leave the distance at d0."""
    params = random_tree(seed, SHAPES, torch.float64, 0.5)
    way = random_tree(seed + 1, SHAPES, torch.float64, 0.5)
    noise = [random_tree(seed + 2 + t, SHAPES, torch.float64, 0.5) for t in range(100)]
    grads = [tree.map(lambda w, n: w + 0.3 * n, way, n) for n in noise]
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        stacked = {name: np.stack([g[name].numpy() for g in grads]) for name in params}
        start = {name: p.numpy() for name, p in params.items()}
        theirs, distances = optax_run(safeguard)(rate, b1, b2, d0, decay, start, stacked)
        theirs = {name: torch.tensor(np.asarray(x)) for name, x in theirs.items()}
    finally:
        jax.config.update("jax_enable_x64", before)
    ours = optim.prodigy(
        rate, b1, b2, d0=d0, weight_decay=decay, safeguard_warmup=safeguard, mask=optim.everything
    )
    state = ours.init(params)
    for t, g in enumerate(grads):
        updates, state = ours.update(g, state, params)
        params = optim.apply_updates(params, updates)
        assert state.distance.item() == pytest.approx(float(distances[t]), rel=1e-12)
        for name, found in params.items():
            assert (found - theirs[name][t]).norm() <= 1e-12 * theirs[name][t].norm(), (t, name)
    assert state.distance > 1.2 * d0


TARGET = {"a": [1.0, -2.0, 3.0], "b": [[-1.0, 0.5], [2.0, 0.25]]}
CURVATURES = {"a": [1.0, 3.0, 0.5], "b": [[2.0, 0.1], [0.3, 1.0]]}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.floats(-3, 3).map(lambda e: 10.0**e))
@settings(max_examples=5)
def test_the_size_of_the_loss_does_not_matter(scale):
    """Without eps the trajectory is the same: there is no rate that would have to fit."""
    runs = []
    for factor in (1.0, scale):
        optimizer = optim.prodigy(eps=0.0, d0=1e-3)
        params = {name: torch.zeros_like(tensor(t)) for name, t in TARGET.items()}
        state = optimizer.init(params)
        for _ in range(20):
            grads = {
                name: factor * tensor(CURVATURES[name]) * (p - tensor(TARGET[name]))
                for name, p in params.items()
            }
            updates, state = optimizer.update(grads, state, params)
            params = optim.apply_updates(params, updates)
        runs.append(params)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-10, atol=1e-12)


def test_the_distance_never_falls_and_zero_gradients_change_nothing():
    optimizer = optim.prodigy()
    params = {"w": torch.ones(3)}
    state, distances = optimizer.init(params), []
    for t in range(50):
        grads = {"w": torch.sin(torch.tensor([1.0, 2.0, 3.0]) * t) * (t % 7 != 0)}
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        assert torch.isfinite(params["w"]).all()
        distances.append(state.distance.item())
    assert distances == sorted(distances)
    state = optimizer.init(params)
    updates, state = optimizer.update({"w": torch.zeros(3)}, state, params)
    assert torch.equal(updates["w"], torch.zeros(3))
    assert state.distance == 1e-6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be a finite number >= 0"),
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\)"),
        ({"b3": 1.0}, r"b3 must lie in \[0, 1\)"),
        ({"d0": 0.0}, "d0 must be a finite number > 0"),
        ({"d_coef": 0.0}, "d_coef must be a finite number > 0"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optim.prodigy(**kwargs)
