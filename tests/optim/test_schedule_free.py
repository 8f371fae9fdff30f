"""Test Schedule-Free: evaluation uses the weighted average of the iterates."""

from __future__ import annotations

import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import SHAPES, random_tree
from tests.optim.parity import EVERY, Parity, decays, drawn, slow, small

BOTH = [optim.schedule_free_sgd, optim.schedule_free_adamw]
SGD = Parity(
    "schedule_free_sgd", "optax",
    drawn((-3, -1), b1=st.floats(0.5, 0.98), decay=decays),
    lambda h: optim.schedule_free_sgd(h["rate"], h["b1"], weight_decay=h["decay"], mask=EVERY),
    lambda h: optax.contrib.schedule_free_sgd(
        h["rate"], b1=h["b1"], weight_decay=h["decay"]
    ),
)  # fmt: skip
ADAMW = Parity(
    "schedule_free_adamw", "optax",
    drawn(b1=st.floats(0.5, 0.98), b2=slow, eps=small, decay=decays),
    lambda h: optim.schedule_free_adamw(
        h["rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["decay"], mask=EVERY
    ),
    lambda h: optax.contrib.schedule_free_adamw(
        h["rate"], b1=h["b1"], b2=h["b2"], eps=h["eps"], weight_decay=h["decay"]
    ),
)  # fmt: skip


@pytest.mark.parametrize("build", BOTH)
@given(
    st.floats(0.1, 0.99), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 1.0, 2.0]),
    st.integers(1, 12), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=10)
def test_schedule_free_eval_params_equal_the_weighted_average(
    build, b1, decay, power, warmup, seed
):
    """`x = sum w_t z_t / sum w_t`; gradients are computed at `(1 - b1) z + b1 x`."""
    rate = optim.linear_warmup(0.3, warmup)
    optimizer = build(rate, b1, weight_decay=decay, weight_lr_power=power, mask=optim.everything)
    params = random_tree(seed, SHAPES, torch.float64, 1.0)
    state = optimizer.init(params)
    total, weights = tree.map(torch.zeros_like, params), 0.0
    for t in range(20):
        grads = random_tree(seed + t + 1, SHAPES, torch.float64, 1.0)
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        weight = rate(torch.tensor(t)).item() ** power
        weights += weight
        total = tree.map(lambda s, z, w=weight: s + w * z, total, state.z)
        if weights:
            average = tree.map(lambda s, w=weights: s / w, total)
            found = optim.schedule_free_eval_params(state, params)
            between = tree.map(lambda z, x: (1 - b1) * z + b1 * x, state.z, average)
            # Rounding is magnified by 1 / b1 at each step's end, and summed over 20 of them.
            torch.testing.assert_close(found, average, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(params, between, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", BOTH)
def test_schedule_free_with_a_first_rate_of_zero_keeps_params(build):
    optimizer = build(optim.linear_warmup(0.1, 5))
    params = {"w": torch.ones(3)}
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert torch.equal(updates["w"], torch.zeros(3))
    assert torch.equal(optim.schedule_free_eval_params(state, params)["w"], params["w"])


def test_schedule_free_eval_params_is_pure_and_finds_the_nested_state():
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.schedule_free_adamw(0.1))
    params = {"w": torch.ones(3, 2, dtype=torch.bfloat16)}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        params = optim.apply_updates(params, updates)
    before = tree.digest((state, params))
    found = optim.schedule_free_eval_params(state, params)
    assert found["w"].dtype is torch.bfloat16
    assert not torch.equal(found["w"], params["w"])
    assert tree.digest((state, params)) == before
    inside = optim.schedule_free_eval_params({"one": [state[1]]}, params)
    assert tree.digest(inside) == tree.digest(found)
    stacked = tree.map(lambda x: torch.stack([x, x]), (state, params))
    mapped = torch.vmap(optim.schedule_free_eval_params)(*stacked)
    assert tree.digest(mapped["w"][1]) == tree.digest(found["w"])


def test_schedule_free_eval_params_requires_exactly_one_schedule_free_state():
    params = {"w": torch.ones(2)}
    one = optim.schedule_free_sgd(0.1).init(params)
    for state, count in ((optim.sgd(0.1).init(params), 0), ((one, one), 2)):
        with pytest.raises(
            ValueError, match=f"expected one state of a schedule-free optimizer, got {count}"
        ):
            optim.schedule_free_eval_params(state, params)
    with pytest.raises(ValueError, match=r"`params` at \['w'\]: shape \(3,\)"):
        optim.schedule_free_eval_params(one, {"w": torch.ones(3)})


@pytest.mark.parametrize("build", BOTH)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number >= 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected"),
        ({"b1": 0.0}, "b1: expected a finite number > 0"),
        ({"b1": 1.0}, r"b1: expected a number in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay: expected"),
    ],
)
def test_schedule_free_optimizers_refuse_invalid_arguments(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**{"learning_rate": 0.1, **kwargs})
