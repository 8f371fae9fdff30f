"""Test the law of each wrapper over random trees, weights and settings."""

from __future__ import annotations

import copy

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import OPTIMIZERS, SHAPES, random_tree, steps, ulps

names = st.sampled_from(sorted(OPTIMIZERS))
seeds = st.integers(0, 2**31)


# --- updates gathered, or left out ---


@given(names, st.integers(1, 5), seeds)
@settings(max_examples=25)
def test_multi_steps_over_k_gradients_equals_one_update_with_the_mean(name, k, seed):
    """Bit for bit; the parameters stay unchanged until the k-th gradient."""
    inner = OPTIMIZERS[name](0.1)
    optimizer = optim.multi_steps(inner, k)
    params = expected = random_tree(seed, SHAPES, torch.float32, 1.0)
    state, inner_state = optimizer.init(params), inner.init(params)
    for cycle in range(2):
        total = None
        for micro in range(k):
            grads = random_tree(seed + 10 * cycle + micro + 1, SHAPES, torch.float32)
            total = grads if total is None else tree.map(torch.add, total, grads)
            updates, state = optimizer.update(grads, state, params)
            params = optim.apply_updates(params, updates)
            if micro < k - 1:
                assert tree.digest(params) == tree.digest(expected)
                assert tree.digest(state.inner) == tree.digest(inner_state)
                assert state.micro_step == micro + 1
        mean = tree.map(lambda t: t / k, total)
        updates, inner_state = inner.update(mean, inner_state, expected)
        expected = optim.apply_updates(expected, updates)
        assert tree.digest(params) == tree.digest(expected)
        assert tree.digest(state.inner) == tree.digest(inner_state)
        assert (state.updates_done, state.micro_step) == (cycle + 1, 0)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=6), seeds)
@settings(max_examples=25)
def test_multi_steps_passes_weighted_means_to_the_inner_optimizer(weights, seed):
    """The mean is `sum w g / sum w`, also with weights of 0; the same holds for losses."""
    seen = []

    def spy(grads, state, params=None, **extra):
        seen.append((grads, extra["loss"], extra["value_fn"]))
        return grads, state

    optimizer = optim.multi_steps(optim.GradientTransformation(lambda p: (), spy), len(weights))
    params = random_tree(seed, SHAPES, torch.float32)
    state, total = optimizer.init(params), sum(weights)
    every = [random_tree(seed + i, SHAPES, torch.float64) for i in range(len(weights))]
    for i, (weight, grads) in enumerate(zip(weights, every, strict=True)):
        _, state = optimizer.update(
            tree.map(torch.Tensor.float, grads), state, params,
            weight=torch.tensor(weight), loss=torch.tensor(float(i)), value_fn=target_of_last,
        )  # fmt: skip
    ((mean, loss, value_fn),) = seen
    with pytest.raises(ValueError, match="evaluates only the last batch"):
        value_fn(params)
    share = [w / max(total, 1) for w in weights]
    assert loss.item() == pytest.approx(sum(w * i for i, w in enumerate(share)), rel=1e-6)
    for key, found in mean.items():
        terms = [w * g[key] for w, g in zip(share, every, strict=True)]
        # One rounding for each product, sum and the quotient, of the largest partial sum.
        size = sum(t.abs() for t in terms)
        assert ((found - sum(terms)).abs() <= (len(terms) + 3) * 6e-8 * size).all()


def target_of_last(params):
    raise AssertionError


def test_multi_steps_with_a_scheduled_k_calls_the_inner_optimizer_once_per_cycle():
    """k grows with the updates done; only the last micro-step calls the inner optimizer."""
    calls = []

    def spy(grads, state, params=None, **extra):
        calls.append(grads["w"].item())
        return grads, state

    optimizer = optim.multi_steps(
        optim.GradientTransformation(lambda p: (), spy), lambda count: 1 + count
    )
    params = {"w": torch.tensor(0.0)}
    state, when = optimizer.init(params), []
    for step in range(10):
        before = len(calls)
        updates, state = optimizer.update({"w": torch.tensor(float(step))}, state, params)
        params = optim.apply_updates(params, updates)
        when.append(len(calls) - before)
    assert when == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert calls == [0.0, 1.5, 4.0, 7.5]


def test_multi_steps_compiles_the_inner_update_into_a_branch():
    optimizer = optim.multi_steps(optim.adamw(0.1), 3)
    params = random_tree(0, [(4, 3)], torch.float32)
    compiled = ftrain.compile(optimizer.update, backend="eager")
    graph = compiled.graph(params, optimizer.init(params), params)
    operators = [str(node.target) for node in graph.graph.nodes]
    assert any("cond" in operator for operator in operators)
    assert not any("sqrt" in operator for operator in operators)  # Adam is inside the branch


@given(names, st.integers(0, 4), st.sampled_from([torch.nan, torch.inf, -torch.inf]), seeds)
@settings(max_examples=25)
def test_skip_wrappers_keep_params_and_inner_state_in_a_skipped_update(name, where, bad, seed):
    """Bit for bit; a run with skipped updates equals the run without those gradients."""
    for wrap in (optim.skip_nonfinite, lambda o: optim.skip_large_updates(o, 1e6)):
        optimizer = wrap(OPTIMIZERS[name](0.1))
        params = plain_params = random_tree(seed, SHAPES, torch.float32, 1.0)
        plain = OPTIMIZERS[name](0.1)
        state, plain_state = optimizer.init(params), plain.init(params)
        for step in range(5):
            grads = random_tree(seed + step, SHAPES, torch.float32, 1.0)
            if step == where:
                grads["p2"][3] = bad
            updates, state = optimizer.update(grads, state, params)
            params = optim.apply_updates(params, updates)
            if step != where:
                updates, plain_state = plain.update(grads, plain_state, plain_params)
                plain_params = optim.apply_updates(plain_params, updates)
            assert tree.digest(params) == tree.digest(plain_params)
            assert tree.digest(state.inner) == tree.digest(plain_state)
        assert state.skipped == 1


def test_skip_large_updates_skips_only_norms_above_the_limit():
    params = {"w": torch.tensor([3.0, 4.0])}
    for limit, skipped in ((5.0, 0), (4.999, 1), (torch.tensor(4.0), 1)):
        optimizer = optim.skip_large_updates(optim.sgd(0.1), limit)
        _, state = optimizer.update(params, optimizer.init(params), params)
        assert state.skipped == skipped


# --- averages and lookahead ---


@given(st.floats(0, 0.9999), st.booleans(), seeds)
@settings(max_examples=20)
def test_ema_matches_its_equation_in_float64(decay, warmup, seed):
    """Within one rounding per step of the largest number averaged."""
    history, state = steps(optim.ema(optim.sgd(1e-3), decay, warmup=warmup), seed, 12)
    average = tree.map(torch.Tensor.double, random_tree(seed, SHAPES, torch.float32, 1.0))
    size = tree.map(torch.Tensor.abs, average)
    for t, params in enumerate(history):
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = tree.map(lambda a, p: d * a + (1 - d) * p.double(), average, params)  # noqa: B023
        size = tree.map(lambda s, p: torch.maximum(s, p.abs()), size, params)
    for key, found in optim.get(state, "ema").items():
        assert ((found - average[key]).abs() <= 12 * 1.2e-7 * size[key]).all()


@given(st.integers(1, 4), st.integers(1, 3), seeds)
@settings(max_examples=10)
def test_swa_matches_the_averaged_model_of_torch(start, every, seed):
    history, state = steps(optim.swa(optim.sgd(1e-3), start, every), seed, 9)
    holder = torch.nn.ParameterDict({k: torch.nn.Parameter(v) for k, v in history[0].items()})
    averaged, n = torch.optim.swa_utils.AveragedModel(holder), 0
    for number, params in enumerate(history, 1):
        for key, p in holder.items():
            p.data = params[key]
        if number >= start and (number - start) % every == 0:
            averaged.update_parameters(holder)
            n += 1
    assert state.averaged == n
    for key, expected in averaged.module.items():
        # The last bits of a quotient, a difference and a sum, at each averaging.
        terms = [params[key] for params in history]
        assert ulps(optim.get(state, "swa")[key], expected.detach(), *terms) <= 2 * n


@given(st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 1.0]), seeds)
@settings(max_examples=10)
def test_lookahead_matches_optax(k, alpha, seed):
    params = random_tree(seed, SHAPES, torch.float32, 1.0)
    ours, theirs = (
        optim.lookahead(optim.sgd(0.1, 0.9), k, alpha),
        optax.lookahead(optax.sgd(0.1, 0.9), k, alpha),
    )
    state = ours.init(params)
    both = optax.LookaheadParams.init_synced(to_jax(params))
    their_state = theirs.init(both)
    for step in range(7):
        grads = random_tree(seed + step, SHAPES, torch.float32, 1.0)
        updates, state = ours.update(grads, state, params)
        params = optim.apply_updates(params, updates)
        moved, their_state = theirs.update(to_jax(grads), their_state, both)
        both = optax.apply_updates(both, moved)
        for found, expected in ((params, both.fast), (state.slow, both.slow)):
            for key, value in found.items():
                wanted = torch.tensor(np.asarray(expected[key]))
                torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
        if (step + 1) % k == 0:
            assert tree.digest(state.slow) == tree.digest(params)


def test_eval_step_of_averaged_params_keeps_the_training_state():
    """The average is passed with `state.replace(params=average)`."""
    init_state, train_step, eval_step = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1),
        lambda model, batch: (model(batch) - 1).square().mean(),
        optim.ema(optim.sgd(0.1), 0.5),
    )
    state, batch = init_state(0), torch.ones(4, 3)
    for _ in range(3):
        state, _ = train_step(state, batch)
    before = tree.digest(state)
    average = optim.get(state.opt_state, "ema")
    there, here = eval_step(state.replace(params=average), batch), eval_step(state, batch)
    assert there["loss"] > here["loss"]  # the average lags behind
    assert tree.digest(state) == before


# --- sharpness ---


@given(st.floats(0.01, 1.0), st.booleans(), seeds)
@settings(max_examples=15)
def test_sam_and_asam_match_their_equations(rho, adaptive, seed):
    """In float64, against the equations of the papers."""
    w = {"a": torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).double(),
         "b": torch.randn(4, generator=torch.Generator().manual_seed(seed + 1)).double()}  # fmt: skip

    def gradient(p):
        return {"a": p["a"] ** 3 + p["b"].sum(), "b": torch.exp(p["b"]) + p["a"].sum()}

    wrap = optim.asam if adaptive else optim.sam
    optimizer = wrap(optim.sgd(1.0), rho)
    updates, _ = optimizer.update(gradient(w), optimizer.init(w), w, grad_fn=gradient)
    g, p = (torch.cat([t["a"].flatten(), t["b"]]) for t in (gradient(w), w))
    size = p.abs() + 0.01 if adaptive else torch.ones_like(p)
    far = p + rho * size**2 * g / (size * g).norm()
    there = gradient({"a": far[:6].reshape(3, 2), "b": far[6:]})
    for key, expected in there.items():
        torch.testing.assert_close(updates[key], -expected, rtol=1e-12, atol=1e-12)


def test_sam_matches_optax():
    params = random_tree(0, [(3, 2), (4,)], torch.float32, 0.0)
    ours = optim.sam(optim.sgd(0.1), 0.05)
    gradient = lambda p: tree.map(lambda w: w**3 - w, p)  # noqa: E731
    theirs = optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
        sync_period=2, opaque_mode=True, reset_state=False,
    )  # fmt: skip
    state, theirs_state, their_params = (
        ours.init(params),
        theirs.init(to_jax(params)),
        to_jax(params),
    )
    for _ in range(5):
        updates, state = ours.update(gradient(params), state, params, grad_fn=gradient)
        params = optim.apply_updates(params, updates)
        grad = lambda p, _=None: {k: v**3 - v for k, v in p.items()}  # noqa: E731
        moved, theirs_state = theirs.update(
            grad(their_params), theirs_state, their_params, grad_fn=grad
        )
        their_params = optax.apply_updates(their_params, moved)
        for key, value in params.items():
            wanted = torch.tensor(np.asarray(their_params[key]))
            torch.testing.assert_close(value, wanted, rtol=2e-6, atol=1e-6)


def test_train_step_with_sam_matches_a_step_computed_by_hand():
    """The gradient is taken at the perturbed parameters, with the draws of the first pass."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_fn(model, batch):
        return (model(batch) - 1).square().mean()

    init_state, train_step, _ = ftrain.make_steps(module, loss_fn, optim.sam(optim.sgd(0.1), 0.5))
    batch = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    state, _ = train_step(init_state(0), batch)
    hand = copy.deepcopy(module)
    weights = list(hand.parameters())
    grads = torch.autograd.grad(loss_fn(hand, batch), weights)
    norm = torch.stack([g.norm() for g in grads]).norm()
    start = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, g in zip(weights, grads, strict=True):
            w.add_(0.5 * g / norm)
    there = torch.autograd.grad(loss_fn(hand, batch), weights)
    for (name, _), w, g in zip(hand.named_parameters(), start, there, strict=True):
        torch.testing.assert_close(state.params[name], w - 0.1 * g, rtol=1e-5, atol=1e-6)


def to_jax(t):
    return {key: jnp.asarray(value.numpy()) for key, value in t.items()}
