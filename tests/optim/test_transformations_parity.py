"""Test transformations against optax and torch: 100 steps, random trees and settings.

The relative norm of the difference of each leaf at every step is at most 1e-12 in float64 and 4e-6 in
float32. Transformations with the same operations as torch must be equal to the bit.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import random, tree
from tests.campaign import examples
from tests.optim.cases import SHAPES, random_tree

STEPS = 100
BOUND = {torch.float32: 4e-6, torch.float64: 1e-12}
seeds = st.integers(0, 2**31)
# Each takes two hyper-parameters, x in (0, 1) and y in (0, 10).
EVERY = {
    "clip": (lambda x, y: optim.clip(y), lambda x, y: optax.clip(y)),
    "clip_by_block_rms": (
        lambda x, y: optim.clip_by_block_rms(y),
        lambda x, y: optax.clip_by_block_rms(y),
    ),
    "centralize": (lambda x, y: optim.centralize(), lambda x, y: optax.centralize()),
    "normalize_by_update_norm": (
        lambda x, y: optim.normalize_by_update_norm(y, x),
        lambda x, y: optax.normalize_by_update_norm(y, x),
    ),
    "scale_by_lion": (
        lambda x, y: optim.scale_by_lion(x, y / 10),
        lambda x, y: optax.scale_by_lion(x, y / 10),
    ),
    "scale_by_param_block_rms": (
        lambda x, y: optim.scale_by_param_block_rms(y),
        lambda x, y: optax.scale_by_param_block_rms(y),
    ),
    "scale_by_rms": (
        lambda x, y: optim.scale_by_rms(x, y),
        lambda x, y: optax.scale_by_rms(x, y, eps_in_sqrt=False),
    ),
    "scale_by_schedule": (
        lambda x, y: optim.scale_by_schedule(optim.polynomial(y, x, 80, power=2)),
        lambda x, y: optax.scale_by_schedule(  # of an int32 it makes a float32
            lambda count: optax.polynomial_schedule(y, x, 2, 80)(count.astype(jnp.float64))
        ),
    ),
    "scale_by_sign": (lambda x, y: optim.scale_by_sign(), lambda x, y: optax.scale_by_sign()),
    "scale_by_trust_ratio": (
        lambda x, y: optim.scale_by_trust_ratio(y, min_norm=x, eps=x / 10),
        lambda x, y: optax.scale_by_trust_ratio(x, y, x / 10),
    ),
    "trace": (lambda x, y: optim.trace(x), lambda x, y: optax.trace(x)),
    "add_decayed_weights": (
        lambda x, y: optim.add_decayed_weights(y, mask=optim.everything),
        lambda x, y: optax.add_decayed_weights(y),
    ),
    "zero_nans": (
        lambda x, y: optim.chain(holes(y), optim.zero_nans()),
        lambda x, y: optax.chain(their_holes(y), optax.zero_nans()),
    ),
}


def holes(y):
    """Return a transformation that replaces large gradients by NaN."""

    def update(grads, state, params=None, **extra):
        return tree.map(lambda g: torch.where(g > y, math.nan, g), grads), state

    return optim.GradientTransformation(lambda params: (), update)


def their_holes(y):
    return optax.stateless(lambda g, p: jax.tree.map(lambda g: jnp.where(g > y, jnp.nan, g), g))


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def to_jax(t):
    return {key: jnp.asarray(value.numpy()) for key, value in t.items()}


@functools.cache
def program(build):
    """All steps of optax's transformation in one program, compiled once for all hyper-parameters."""

    @jax.jit
    def run(x, y, grads, params):
        transformation = build(x, y)

        def step(state, g):
            updates, state = transformation.update(g, state, params)
            return state, updates

        return jax.lax.scan(step, transformation.init(params), grads)[1]

    return run


def hold(ours, theirs, hyper, grads, params):
    """Raise unless the updates of every step match those of optax's transformation."""
    stacked = tree.map(lambda *gs: torch.stack(gs), *grads)
    expected = program(theirs)(*hyper, to_jax(stacked), to_jax(params))
    for key in params:
        wanted = torch.tensor(np.asarray(expected[key]), dtype=torch.float64)
        found = torch.stack([u[key] for u in ours]).double()
        assert found.shape == wanted.shape
        steps = range(len(ours))
        error, size = ([t[i].norm() for i in steps] for t in (found - wanted, wanted))
        bound = BOUND[params[key].dtype]
        assert all(e <= bound * s for e, s in zip(error, size, strict=True)), key


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("name", EVERY)
@given(x=st.floats(0.05, 0.95), y=st.floats(0.05, 9.5), seed=seeds)
@settings(max_examples=2)
def test_transformations_match_optax(name, dtype, x, y, seed):
    ours, theirs = EVERY[name]
    params = random_tree(seed, SHAPES, dtype)
    grads = [random_tree(seed + step + 1, SHAPES, dtype) for step in range(STEPS)]
    transformation, updates = ours(x, y), []
    state = transformation.init(params)
    for g in grads:
        u, state = transformation.update(g, state, params)
        updates.append(u)
    hold(updates, theirs, (x, y), grads, params)


# torch puts the output axis first, JAX last; a vector has none.
UNITS = {"p0": (), "p1": (0,), "p2": (1, 0), "p3": (2, 3, 1, 0)}


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@given(x=st.floats(1e-3, 1), eps=st.floats(1e-4, 10), seed=seeds)
@settings(max_examples=4)
def test_adaptive_clip_matches_optax_in_the_transposed_layout(dtype, x, eps, seed):
    params, *grads = (
        random_tree(seed + i, [(), (7,), (33, 5), (6, 4, 3, 2)], dtype, 1.0) for i in range(11)
    )

    def turned(t):
        return {key: value.permute(UNITS[key]).contiguous() for key, value in t.items()}

    ours = [turned(optim.adaptive_clip(x, eps).update(g, (), params)[0]) for g in grads]
    hold(ours, optax.adaptive_grad_clip, (x, eps), [turned(g) for g in grads], turned(params))


@pytest.mark.parametrize("dtype", [*BOUND, torch.bfloat16], ids=str)
@given(st.floats(-3, 3).map(lambda e: 10.0**e), seeds)
@settings(max_examples=20)
def test_clip_equals_torch_bit_for_bit(dtype, bound, seed):
    grads = random_tree(seed, SHAPES, dtype)
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for q, g in zip(theirs, grads.values(), strict=True):
        q.grad = g.clone()
    torch.nn.utils.clip_grad_value_(theirs, bound, foreach=False)
    clipped, _ = optim.clip(bound).update(grads, ())
    for found, q in zip(clipped.values(), theirs, strict=True):
        assert tree.digest(found) == tree.digest(q.grad)


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@given(st.floats(0, 0.999), st.floats(1e-10, 1), st.floats(1e-4, 1), seeds)
@settings(max_examples=3)
def test_scale_by_rms_matches_the_direction_of_torch_rmsprop(dtype, decay, eps, rate, seed):
    ours = optim.chain(optim.scale_by_rms(decay, eps), optim.scale_by_learning_rate(rate))
    params = random_tree(seed, SHAPES, dtype)
    state = ours.init(params)
    theirs = [torch.nn.Parameter(p.clone()) for p in params.values()]
    reference = torch.optim.RMSprop(theirs, rate, decay, eps, foreach=False)
    for step in range(STEPS):
        grads = random_tree(seed + step + 1, SHAPES, dtype)
        before = [q.detach().clone() for q in theirs]
        for q, g in zip(theirs, grads.values(), strict=True):
            q.grad = g.clone()
        reference.step()
        updates, state = ours.update(grads, state, params)
        for u, q, old in zip(updates.values(), theirs, before, strict=True):
            error = torch.linalg.vector_norm((old + u) - q.detach())
            # The sum of parameter and step is rounded once more than the step.
            assert error <= BOUND[dtype] * torch.linalg.vector_norm(q.detach())
    for nu, q in zip(state[0].nu.values(), theirs, strict=True):
        torch.testing.assert_close(nu, reference.state[q]["square_avg"], rtol=BOUND[dtype], atol=0)


values = st.lists(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0, 1.01, 2.0, math.nan]), max_size=40)
plateaus = {
    "values": values,
    "factor": st.floats(0.1, 0.9),
    "patience": st.integers(0, 3),
    "cooldown": st.integers(0, 3),
    "threshold": st.sampled_from([0.0, 1e-4, 0.05, 0.5]),
    "smallest": st.sampled_from([0.0, 1e-3, 0.2]),
}


def scales(transformation, values):
    params = {"w": torch.ones(2, dtype=torch.float64)}
    state, found = transformation.init(params), []
    for value in values:
        updates, state = transformation.update(params, state, params, loss=torch.tensor(value))
        assert updates["w"].tolist() == [state.scale.item()] * 2
        found.append(state.scale.item())
    return found, state.best.item()


@given(mode=st.sampled_from(["min", "max"]), kind=st.sampled_from(["rel", "abs"]), **plateaus)
@settings(max_examples=examples(60, 200))
@example([1.0] * 30, 0.5, 2, 3, 0.0, 0.0, "min", "rel")
def test_reduce_on_plateau_equals_torch(
    values, factor, patience, cooldown, threshold, smallest, mode, kind
):
    values = [torch.tensor(v).item() for v in values]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor, patience, threshold, kind, cooldown, smallest, eps=0.0
    )
    expected = []
    for value in values:
        scheduler.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    ours = optim.reduce_on_plateau(
        factor, patience, mode=mode, threshold=threshold, threshold_mode=kind, cooldown=cooldown,
        min_scale=smallest,
    )  # fmt: skip
    assert scales(ours, values)[0] == expected


@given(size=st.integers(1, 4), kind=st.sampled_from(["rel", "abs"]), **plateaus)
@settings(max_examples=15)
@example([1.0] * 30, 0.5, 2, 3, 0.05, 0.0, 2, "rel")
def test_reduce_on_plateau_matches_optax_if_the_patience_of_optax_is_one_larger(
    values, factor, patience, cooldown, threshold, smallest, size, kind
):
    values = [torch.tensor(0.7 if math.isnan(v) else v).item() for v in values]
    if not values or threshold == 0.0:
        return  # optax wants a threshold
    tolerance = (
        {"rtol": threshold, "atol": 0.0} if kind == "rel" else {"rtol": 0.0, "atol": threshold}
    )
    theirs = optax.contrib.reduce_on_plateau(
        factor, patience + 1, **tolerance, cooldown=cooldown, accumulation_size=size,
        min_scale=smallest,
    )  # fmt: skip
    params = {"w": jnp.ones(2)}

    def step(state, value):
        _, state = theirs.update(params, state, params, value=value)
        return state, state.scale

    last, expected = jax.lax.scan(step, theirs.init(params), jnp.asarray(values))
    ours = optim.reduce_on_plateau(
        factor, patience, threshold=threshold, threshold_mode=kind, cooldown=cooldown,
        min_scale=smallest, accumulation_size=size,
    )  # fmt: skip
    found, best = scales(ours, values)
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert best == pytest.approx(float(last.best_value), rel=1e-12)


def test_add_noise_matches_the_variance_of_the_paper_and_optax():
    """Each update draws a new sample of standard deviation sqrt(eta / (1 + t)^gamma)."""
    noisy = optim.add_noise(0.3, 0.8, key=7)
    grads = {"a": torch.zeros(40_000), "b": torch.zeros(40_000)}
    theirs = optax.add_noise(0.3, 0.8, jax.random.key(7))
    state, reference = noisy.init(grads), theirs.init(to_jax(grads))
    seen = []
    for t in range(3):
        updates, state = noisy.update(grads, state)
        expected, reference = theirs.update(to_jax(grads), reference)
        deviation = math.sqrt(0.3 / (1 + t) ** 0.8)
        for key, u in updates.items():
            # Four standard errors of a standard deviation from 40,000 draws: 1.4 %.
            assert u.std().item() == pytest.approx(deviation, rel=0.014)
            assert float(expected[key].std()) == pytest.approx(deviation, rel=0.014)
            assert abs(u.mean().item()) < 4 * deviation / 200
            seen.append(u / deviation)
    correlations = torch.corrcoef(torch.stack(seen)) - torch.eye(6)
    assert correlations.abs().max() < 4.5 / 200


@given(seed=st.integers(0, 2**62), step=st.integers(0, 3))
@settings(max_examples=10)
def test_add_noise_is_a_function_of_its_key(seed, step):
    """A seed equals its key; each update splits the key of the update before it."""
    grads = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    key = random.key(seed)
    states = [optim.add_noise(1.0, 0.0, key=k).init(grads) for k in (seed, key)]
    assert tree.digest(states[0]) == tree.digest(states[1])
    noisy, state = optim.add_noise(1.0, 0.0, key=0), states[0]
    for _ in range(step):
        _, state = noisy.update(grads, state)
        key, _ = random.split(key).unbind()
    updates, _ = noisy.update(grads, state)
    _, draw = random.split(key).unbind()
    for index, name in enumerate(grads):
        assert torch.equal(
            updates[name], random.normal(random.fold_in(draw, index), grads[name].shape)
        )
