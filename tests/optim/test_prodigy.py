"""Test Prodigy: its distance estimate, and parity with optax on the same problem."""

from __future__ import annotations

import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from tests.optim.cases import random_tree
from tests.optim.parity import (
    EVERY,
    Parity,
    decays,
    drawn,
    fractions,
    gradients,
    powers,
    small,
)

OPTAX = Parity(
    "prodigy", "optax",
    drawn(
        (-1, 0), b1=fractions, b2=st.floats(0.5, 0.999), eps=small, d0=powers(-6, -2),
        coef=st.floats(0.5, 1.0), decay=decays, safeguard=st.booleans(),
    ),
    lambda h: optim.prodigy(
        h["rate"], h["b1"], h["b2"], eps=h["eps"], d0=h["d0"], d_coef=h["coef"],
        weight_decay=h["decay"], safeguard_warmup=h["safeguard"], mask=EVERY,
    ),
    lambda h: optax.contrib.prodigy(
        h["rate"], (h["b1"], h["b2"]), eps=h["eps"], estim_lr0=h["d0"], estim_lr_coef=h["coef"],
        weight_decay=h["decay"], safeguard_warmup=h["safeguard"],
    ),
    shapes=((), (0,), (7,), (5, 3)), spread=0.5, drift=1.0, float32=3e-5,
)  # fmt: skip


def test_prodigy_distance_grows_in_the_run_that_is_compared_with_optax():
    """With a constant distance the comparison would only compare Adam."""
    h = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "decay": 0.0, "coef": 1.0, "safeguard": False}
    optimizer = OPTAX.ours({"rate": 1.0, "d0": 1e-4, **h})
    params = random_tree(0, OPTAX.shapes, torch.float64, 0.5)
    state = optimizer.init(params)
    for grads in gradients(OPTAX, 0, torch.float64):
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    assert state.distance > 100 * 1e-4


TARGET = {"a": [1.0, -2.0, 3.0], "b": [[-1.0, 0.5], [2.0, 0.25]]}
CURVATURES = {"a": [1.0, 3.0, 0.5], "b": [[2.0, 0.1], [0.3, 1.0]]}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.floats(-3, 3).map(lambda e: 10.0**e))
@settings(max_examples=5)
def test_prodigy_trajectory_does_not_depend_on_the_scale_of_the_loss(scale):
    """With `eps=0` the trajectory is the same for every scale."""
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


def test_prodigy_distance_never_decreases_and_zero_gradients_keep_it():
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
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number >= 0"),
        ({"b1": 1.0}, r"b1: expected a number in \[0, 1\)"),
        ({"b2": -0.1}, r"b2: expected a number in \[0, 1\)"),
        ({"b3": 1.0}, r"b3: expected a number in \[0, 1\)"),
        ({"d0": 0.0}, "d0: expected a finite number > 0"),
        ({"d_coef": 0.0}, "d_coef: expected a finite number > 0"),
    ],
)
def test_prodigy_refuses_invalid_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optim.prodigy(**kwargs)
