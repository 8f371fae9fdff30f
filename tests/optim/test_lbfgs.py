"""Test L-BFGS: fixed steps against optax and torch, line searches against Wolfe conditions."""

from __future__ import annotations

import functools

import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.optim._line_search import strong_wolfe
from tests.campaign import examples
from tests.optim.cases import random_tree
from tests.optim.parity import Parity, drawn

MATRIX = random_tree(0, [(30, 10)], torch.float64, 0.0)["p0"]
MIXING = np.eye(23) + random_tree(0, [(23, 23)], torch.float64, 0.0)["p0"].numpy() / 30


def convex(params):
    """Return a sum of logistic losses and a quadratic, of a vector of 8 and a one-row matrix."""
    ys = MATRIX @ torch.concatenate([params["w"], params["m"][0]])
    return torch.log(1 + torch.exp(ys)).sum() / 30 + 0.05 * (ys**2).sum()


def start():
    found = random_tree(1, [(8,), (1, 2)], torch.float64, 0.0)
    return {"w": found["p0"], "m": found["p1"]}


def downhill(scale, lowest):
    """Return a convex loss that is not quadratic, minimal where mixed leaves equal `lowest`."""

    def loss(leaves, module):
        x = module.concatenate([leaf.reshape(-1) for leaf in leaves])
        ys = module.asarray(MIXING, dtype=x.dtype) @ x - lowest
        return scale * ((ys**2).sum() + module.sqrt((ys**4).sum()))

    return loss


# torch remembers nothing below 1e-10, and starts from the gradient itself only where |g|_1 < 1.
TORCH = Parity(
    "lbfgs", "torch", drawn((-2, -1.3), memory=st.integers(1, 10)),
    lambda h: optim.lbfgs(h["rate"], h["memory"], line_search_fn=None),
    lambda h: functools.partial(
        torch.optim.LBFGS, lr=h["rate"], history_size=h["memory"], max_iter=1,
        tolerance_grad=0, tolerance_change=0,
    ),
    shapes=((), (0,), (7,), (5, 3)), loss=downhill(5e-4, 10), descends=True, float32=3e-4,
)  # fmt: skip
OPTAX = Parity(
    "lbfgs", "optax", drawn((-1.7, -1.3), memory=st.sampled_from([1, 10])),
    lambda h: optim.lbfgs(h["rate"], h["memory"], line_search_fn=None),
    lambda h: optax.chain(optax.scale_by_lbfgs(h["memory"]), optax.scale(-h["rate"])),
    shapes=TORCH.shapes, loss=downhill(1.0, 3), descends=True, float32=1e-4,
)  # fmt: skip


def quintic(c):
    """Return a function of one variable with negative slope at 0 that finally grows."""
    a, b, d = c
    return lambda t: a * (t - b) ** 2 + d * torch.cos(3 * t) * torch.exp(-t) + 1e-3 * t**4


@given(
    st.tuples(st.floats(0.01, 10), st.floats(0.1, 20), st.floats(-0.3, 0.3)),
    st.floats(-3, 2).map(lambda e: 10.0**e),
    st.sampled_from([0.1, 0.5, 0.9]),
)
@settings(max_examples=examples(20, 60))
def test_line_search_step_meets_both_wolfe_conditions(c, first, c2):
    f = quintic(c)
    slope_at = torch.func.grad(f)
    zero = torch.tensor(0.0, dtype=torch.float64)
    value, slope = f(zero), slope_at(zero)
    if slope >= 0:
        return
    trials = 0

    def line(t):
        nonlocal trials
        trials += 1
        return f(t), slope_at(t)

    t = strong_wolfe(
        line, value, slope, torch.tensor(first, dtype=torch.float64), trials=40, c1=1e-4, c2=c2
    )
    assert t > 0
    assert f(t) <= value + 1e-4 * t * slope + 1e-14 * value.abs()
    assert slope_at(t).abs() <= c2 * slope.abs()
    assert trials < 40


def test_line_search_stops_at_the_first_step_that_meets_the_wolfe_conditions():
    calls = 0

    def value_fn(params):
        nonlocal calls
        calls += 1
        return convex(params)

    optimizer, params = optim.lbfgs(), start()
    state = optimizer.init(params)
    for t in range(8):
        calls = 0
        loss, grads = ftrain.value_and_grad(convex)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=value_fn, loss=loss)
        params = optim.apply_updates(params, updates)
        if t > 2:
            assert calls == 1  # quasi-Newton steps are good as they are
    calls, (_, grads) = 0, ftrain.value_and_grad(convex)(params)
    optimizer.update(grads, state, params, value_fn=value_fn)
    assert calls == 2  # without a loss, its own


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_lbfgs_minimizes_a_quadratic_in_25_steps(dtype):
    """Exact line searches would need at most ten steps; these searches are inexact."""
    matrix = MATRIX.mT.to(dtype) @ MATRIX.to(dtype)

    def value_fn(p):
        return 0.5 * p @ matrix @ p

    optimizer, params = optim.lbfgs(memory_size=12), torch.ones(10, dtype=dtype)
    state, first = optimizer.init(params), value_fn(params)
    for _ in range(25):
        _, grads = ftrain.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=value_fn)
        params = optim.apply_updates(params, updates)
    bound = {torch.float64: 1e-18, torch.float32: 1e-9, torch.bfloat16: 1e-3}[dtype]
    assert value_fn(params) < bound * first


def test_failed_line_search_keeps_params_and_clears_the_history():
    """The negated gradient makes the loss rise in the search direction."""
    optimizer, params = optim.lbfgs(max_line_search_steps=5), start()
    state = optimizer.init(params)
    for _ in range(3):
        _, grads = ftrain.value_and_grad(convex)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=convex)
        params = optim.apply_updates(params, updates)
    assert (state.weights > 0).any()
    wrong = tree.map(torch.neg, ftrain.value_and_grad(convex)(params)[1])
    updates, state = optimizer.update(wrong, state, params, value_fn=convex)
    assert all(torch.equal(u, torch.zeros_like(u)) for u in tree.leaves(updates))
    assert state.step_size == 0
    assert not state.weights.any()


def test_lbfgs_does_not_store_pairs_without_positive_curvature():
    optimizer = optim.scale_by_lbfgs(3)
    params = {"w": torch.zeros(2)}
    state = optimizer.init(params)
    for x in (0.0, 1.0, 2.0):
        params = {"w": torch.full((2,), x)}
        _, state = optimizer.update({"w": -params["w"]}, state, params)  # a maximum
        assert not state.weights.any()


def squares(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def test_compiled_lbfgs_train_step_matches_eager():
    """The size of the graph does not depend on the maximal number of trials."""
    x = random_tree(0, [(32, 4)], torch.float32, 0.0)["p0"]
    batch = (x, x[:, :1].sin() + x[:, 1:2] * x[:, 2:3])
    build = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))  # noqa: E731
    sizes = []
    for trials in (3, 30):
        optimizer = optim.lbfgs(max_line_search_steps=trials)
        steps = ftrain.make_steps(build, squares, optimizer)
        state = steps.init_state(0)
        compiled = ftrain.compile(steps.train_step, backend="eager")
        graph = compiled.graph(state, batch)
        sizes.append(sum(len(m.graph.nodes) for m in graph.modules() if hasattr(m, "graph")))
        first = steps.eval_step(state, batch)["loss"]
        for _ in range(20 if trials == 3 else 5):
            expected, _ = steps.train_step(state, batch)
            found, _ = compiled(state, batch)
            assert tree.digest(found) == tree.digest(expected)
            state = expected
        assert compiled.n_compiles == 1
        assert trials == 30 or steps.eval_step(state, batch)["loss"] < 0.1 * first
    assert sizes[0] == sizes[1]


def test_lbfgs_requires_value_fn_and_params():
    optimizer, params = optim.lbfgs(), start()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"`lbfgs`: expected `value_fn`, .* got None"):
        optimizer.update(params, state, params)
    with pytest.raises(ValueError, match="`lbfgs`: expected the parameters"):
        optimizer.update(params, state, value_fn=convex)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number >= 0"),
        ({"memory_size": 0}, "memory_size: expected an integer of at least 1"),
        ({"max_line_search_steps": 0}, "max_line_search_steps: expected an integer of at least 1"),
        ({"line_search_fn": "armijo"}, "'strong_wolfe' or None, got 'armijo'"),
        ({"c1": 0.9, "c2": 0.1}, "0 < c1 < c2 < 1"),
    ],
)
def test_lbfgs_refuses_invalid_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optim.lbfgs(**kwargs)
