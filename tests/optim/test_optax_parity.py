"""Test that a step matches that of optax within 4 ulp of the larger of parameter and step.

optax computes `1 - b ** t` in JAX's default float: in float32 that is wrong by 3e-5 at b = 0.999 and
t = 1, so the comparison runs with 64-bit types on, which changes no parameter's dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import SHAPES, random_tree, ulps


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def matrices(params):
    return jax.tree.map(lambda p: p.ndim >= 2, params)


EVERY = {
    "sgd": lambda r, b1, b2, d: (optim.sgd(r), optax.sgd(r)),
    "momentum": lambda r, b1, b2, d: (optim.sgd(r, b1), optax.sgd(r, b1)),
    "nesterov": lambda r, b1, b2, d: (
        optim.sgd(r, b1, nesterov=True),
        optax.sgd(r, b1, nesterov=True),
    ),
    "adam": lambda r, b1, b2, d: (optim.adam(r, b1, b2), optax.adam(r, b1, b2)),
    "adamw": lambda r, b1, b2, d: (
        optim.adamw(r, b1, b2, weight_decay=d),
        optax.adamw(r, b1, b2, weight_decay=d, mask=matrices),
    ),
    "parts": lambda r, b1, b2, d: (
        optim.chain(
            optim.scale(0.5),
            optim.trace(b1, nesterov=True),
            optim.add_decayed_weights(d, mask=optim.everything),
            optim.scale_by_learning_rate(optim.warmup_cosine(r, 10, 50)),
        ),
        optax.chain(
            optax.scale(0.5),
            optax.trace(b1, nesterov=True),
            optax.add_decayed_weights(d),
            optax.scale_by_learning_rate(optax.warmup_cosine_decay_schedule(0.0, r, 10, 50)),
        ),
    ),
}


@pytest.mark.parametrize("name", EVERY)
@given(
    rate=st.sampled_from([1e-4, 1e-2, 0.3]),
    b1=st.sampled_from([0.5, 0.9, 0.99]),
    b2=st.sampled_from([0.9, 0.999]),
    decay=st.sampled_from([1e-4, 0.1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=3)
def test_each_step_matches_optax_within_4_ulp(name, rate, b1, b2, decay, seed):
    ours, theirs = EVERY[name](rate, b1, b2, decay)
    params = random_tree(seed, SHAPES, torch.float32)
    state, reference = ours.init(params), theirs.init(to_jax(params))
    their_update = jax.jit(theirs.update)
    for step in range(20):
        grads = random_tree(seed + step + 1, SHAPES, torch.float32)
        expected, reference = their_update(to_jax(grads), reference, to_jax(params))
        expected = optax.apply_updates(to_jax(params), expected)
        updates, state = ours.update(grads, state, params)
        new = optim.apply_updates(params, updates)
        memory = moments(state)
        for key in params:
            wanted = torch.tensor(np.asarray(expected[key]))
            assert wanted.dtype is torch.float32
            # Where momentum and gradient cancel, the rounding is that of the terms.
            terms = [params[key], updates[key]]
            terms += [rate * grads[key], rate * memory["trace"][key]] if "trace" in memory else []
            terms += [torch.tensor(rate)] if "mu" in memory else []
            assert ulps(new[key], wanted, *terms) <= 4, (step, key)
        params = new
        # The next step starts from one state, so that what is measured is the step.
        reference = optax.tree.set(
            reference, **{field: to_jax(value) for field, value in memory.items()}
        )


def moments(state):
    """Ours, by optax's names."""
    if hasattr(state, "mu"):
        return {"mu": state.mu, "nu": state.nu}
    links = state if type(state) is tuple else (state,)
    found = {}
    for link in links:
        if hasattr(link, "momentum") and link.momentum != ():
            found["trace"] = link.momentum
    return found


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_clip_by_global_norm_matches_optax_up_to_the_eps_added_to_the_norm(seed):
    """A clipped gradient is smaller by a relative 1e-6 / norm; an unclipped one is equal."""
    grads = random_tree(seed, SHAPES, torch.float32)
    norm = optim.global_norm(grads)
    for max_norm in (norm.item() * 2 + 1, norm.item() / 2):
        clipped, _ = optim.clip_by_global_norm(max_norm).update(grads, ())
        expected, _ = optax.clip_by_global_norm(max_norm).update(to_jax(grads), optax.EmptyState())
        for key in grads:
            wanted = torch.tensor(np.asarray(expected[key]))
            close = 1e-6 / norm.item() + 1e-6
            torch.testing.assert_close(clipped[key], wanted, rtol=close, atol=0)
            if max_norm > norm:
                assert tree.digest(clipped[key]) == tree.digest(grads[key])


def to_jax(t):
    return {key: jnp.asarray(value.numpy()) for key, value in t.items()}
