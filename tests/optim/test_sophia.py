"""Test Sophia-H: its Hessian estimate, when it is computed, and parity with optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from tests.optim.cases import random_tree
from tests.optim.parity import EVERY, Parity, decays, drawn, fractions, powers, slow, small

MATRIX = random_tree(0, [(12, 7)], torch.float64, 0.0)["p0"]
MIXING = random_tree(0, [(30, 23)], torch.float64, 0.0)["p0"].numpy()


def valley(params):
    """Return a smooth loss that is not separable and whose curvature varies."""
    ys = MATRIX @ params["w"] + params["b"]
    return torch.log(1 + torch.exp(ys)).sum() + (params["w"] ** 4).sum()


def start(dtype=torch.float64):
    found = random_tree(1, [(7,), ()], dtype, 0.0)
    return {"w": found["p0"], "b": found["p1"]}


def bent(leaves, module):
    """Return a loss with positive and negative curvature that is not separable."""
    x = module.concatenate([leaf.reshape(-1) for leaf in leaves])
    ys = module.asarray(MIXING, dtype=x.dtype) @ x
    return module.sqrt(1 + ys**2).sum() + 0.1 * (x**4).sum()


def signs_of_float32(h, loss):
    """optax's estimator, but for the draw: under 64-bit types it compares float64 words with 1/2."""

    def update(grads, key, params, **extra):
        key, subkey = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(subkey, len(leaves))
        heads = [
            jax.random.bernoulli(k, jnp.float32(0.5), p.shape)
            for k, p in zip(keys, leaves, strict=True)
        ]
        signs = [(2.0 * x - 1.0).astype(p.dtype) for x, p in zip(heads, leaves, strict=True)]
        signs = treedef.unflatten(signs)
        product = jax.jvp(jax.grad(loss), (params,), (signs,))[1]
        return jax.tree.map(jnp.multiply, product, signs), key

    key = jax.random.key(jnp.asarray(h["seed"]).astype(jnp.uint32))
    return optax.GradientTransformationExtraArgs(lambda params: key, update)


OPTAX = Parity(
    "sophia", "optax",
    drawn(
        (-3, -1), b1=fractions, b2=slow, eps=small, gamma=powers(-2, 0), clip=powers(-1, 1),
        decay=decays, interval=st.sampled_from([1, 3]), seed=st.integers(0, 2**31 - 1).map(float),
    ),
    lambda h: optim.sophia(
        h["rate"], h["b1"], h["b2"], h["eps"], gamma=h["gamma"], clip_threshold=h["clip"],
        update_interval=h["interval"], weight_decay=h["decay"], key=int(h["seed"]), mask=EVERY,
    ),
    lambda h: optax.contrib.sophia(
        h["rate"], h["b1"], h["b2"], h["eps"], gamma=h["gamma"], clip_threshold=h["clip"],
        update_interval=h["interval"], weight_decay=h["decay"],
        hessian_diagonal_fn=signs_of_float32(h, OPTAX.value_fn(jnp)),
    ),
    shapes=((), (0,), (7,), (5, 3)), spread=1.0, loss=bent,
)  # fmt: skip


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_hutchinson_estimate_equals_the_diagonal_of_a_diagonal_hessian(seed):
    params = random_tree(seed, [(3, 2), (), (0,), (5,)], torch.float64, 1.0)

    def cubes(p):
        return sum((x**3).sum() for x in p.values())

    found = optim.hutchinson_diagonal(cubes, params, random.key(seed))
    expected = tree.map(lambda p: 6 * p, params)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_hutchinson_diagonal_is_unbiased():
    """The mean over 4000 keys is within 5 standard errors of the Hessian's diagonal."""
    params = start()
    keys = random.split(random.key(5), 4000)
    found = torch.vmap(lambda key: optim.hutchinson_diagonal(valley, params, key)["w"])(keys)
    whole = torch.func.hessian(lambda w: valley({**params, "w": w}))(params["w"])
    error = found.std(0) / len(keys) ** 0.5
    assert ((found.mean(0) - whole.diagonal()).abs() / error).max() < 5


def test_hutchinson_diagonal_of_a_linear_loss_is_zero():
    found = optim.hutchinson_diagonal(lambda p: p["w"].sum(), {"w": torch.ones(3)}, random.key(0))
    assert torch.equal(found["w"], torch.zeros(3))


def test_sophia_estimates_the_hessian_and_advances_its_key_once_per_update_interval():
    optimizer = optim.sophia(1e-2, update_interval=3)
    params = start()
    state, calls, moved = optimizer.init(params), 0, []

    def value_fn(p):
        nonlocal calls
        calls += 1
        return valley(p)

    for t in range(8):
        _, grads = ftrain.value_and_grad(valley)(params)
        before = state
        updates, state = optimizer.update(grads, state, params, value_fn=value_fn)
        params = optim.apply_updates(params, updates)
        changed = [tree.digest(a) != tree.digest(b) for a, b in
                   ((before.key, state.key), (before.hessian, state.hessian))]  # fmt: skip
        assert changed[0] == changed[1]
        moved += [t] * changed[0]
    assert moved == [0, 3, 6]
    assert calls == 3


def test_sophia_accepts_a_seed_or_one_key():
    for key in (7, random.key(7)):
        state = optim.sophia(0.1, key=key).init(start())
        assert torch.equal(state.key, random.key(7))
    with pytest.raises(ValueError, match="one key of shape"):
        optim.sophia(0.1, key=random.split(random.key(0)))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(y.transpose(1, 2).flatten(2))


def square(model, batch):
    return model(batch).square().mean()


def square_by_math(model, batch):
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return square(model, batch)


def test_compiled_sophia_train_step_equals_eager():
    """The train step passes its own loss function to the optimizer."""
    steps = ftrain.make_steps(Attends, square_by_math, optim.sophia(1e-2, update_interval=2))
    state = steps.init_state(0)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    batch = random.normal(random.key(1), (3, 5, 8))
    for _ in range(4):
        found, expected = compiled(state, batch), steps.train_step(state, batch)
        assert tree.digest(found[0]) == tree.digest(expected[0])
        state = expected[0]
    assert compiled.n_compiles == 1
    hessians = tree.leaves(state.opt_state.hessian)
    assert all(h.abs().max() > 0 for h in hessians)


def test_sophia_raises_on_a_loss_that_cannot_be_differentiated_twice():
    steps = ftrain.make_steps(Attends, square, optim.sophia(1e-2))
    with pytest.raises(NotImplementedError, match=r"differentiated twice.*SDPBackend.MATH"):
        steps.train_step(steps.init_state(0), torch.randn(3, 5, 8))


def test_sophia_requires_value_fn_and_params():
    optimizer, params = optim.sophia(0.1), start()
    with pytest.raises(
        ValueError, match=r"`sophia`: expected `value_fn`, .* got None. Call .* steps made by"
    ):
        optimizer.update(params, optimizer.init(params), params)
    with pytest.raises(ValueError, match="`sophia`: expected the parameters"):
        optimizer.update(params, optimizer.init(params), value_fn=valley)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number >= 0"),
        ({"b1": 1.0}, r"b1: expected a number in \[0, 1\)"),
        ({"gamma": 0.0}, "gamma: expected a finite number > 0"),
        ({"clip_threshold": 0.0}, "clip_threshold: expected a finite number > 0"),
        ({"update_interval": 0}, "update_interval: expected an integer of at least 1"),
    ],
)
def test_sophia_refuses_invalid_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optim.sophia(**{"learning_rate": 0.1, **kwargs})
