"""Test every transformation: purity, fixed state layout, one graph, sweeps, any tree."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.testing.laws import assert_deterministic, assert_pure
from tests.campaign import COMPILED, spread
from tests.optim.cases import PROBLEMS, gradient, random_tree, spec

# Each takes one hyper-parameter in (0, 1): what the sweeps map over.
EVERY: dict[str, Callable[..., optim.GradientTransformation]] = {
    "clip": optim.clip,
    "clip_by_global_norm": optim.clip_by_global_norm,
    "clip_by_block_rms": optim.clip_by_block_rms,
    "adaptive_clip": lambda x: optim.adaptive_clip(x, eps=x / 10),
    "centralize": lambda x: optim.chain(optim.centralize(), optim.scale(x)),
    "normalize_by_update_norm": lambda x: optim.normalize_by_update_norm(x, eps=x / 10),
    "scale": optim.scale,
    "scale_by_learning_rate": optim.scale_by_learning_rate,
    "scale_by_lion": lambda x: optim.chain(optim.scale_by_lion(x, x), optim.scale(x)),
    "scale_by_param_block_rms": optim.scale_by_param_block_rms,
    "scale_by_rms": lambda x: optim.scale_by_rms(x, eps=x / 100),
    "scale_by_schedule": lambda x: optim.scale_by_schedule(optim.cosine(x, 10)),
    "scale_by_sign": lambda x: optim.chain(optim.scale_by_sign(), optim.scale(x)),
    "scale_by_trust_ratio": lambda x: optim.scale_by_trust_ratio(x, min_norm=x / 10, eps=x / 100),
    "trace": optim.trace,
    "add_decayed_weights": optim.add_decayed_weights,
    "add_noise": lambda x: optim.add_noise(x, x, key=0),
    "zero_nans": lambda x: optim.chain(optim.zero_nans(), optim.scale(x)),
    "reduce_on_plateau": lambda x: optim.reduce_on_plateau(x, 1, threshold=x / 9, min_scale=x / 10),
}  # fmt: skip
every_transformation = pytest.mark.parametrize("name", EVERY)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
shapes = st.lists(
    st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=5
)  # 0-d and empty ones, and a tree without leaves, included
LOSS = torch.tensor(1.0)


def gradients(params, seeds):
    """Return a tree of gradients like the parameters for each seed."""
    drawn = [random_tree(s, [p.shape for p in params.values()], torch.float64, 1.0) for s in seeds]
    return [
        {name: g.to(params[name].dtype) for name, g in zip(params, d.values(), strict=True)}
        for d in drawn
    ]


def run(transformation, params, steps):
    """Return the updates of the last step, and the state."""
    state, updates = transformation.init(params), None
    for grads in steps:
        updates, state = transformation.update(grads, state, params, loss=LOSS)
    return updates, state


@every_transformation
@given(shapes=shapes, dtype=dtypes, seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_transformations_accept_any_tree(name, shapes, dtype, seed):
    """Shapes, dtypes and the state's layout stay fixed, and inputs are not modified."""
    transformation = EVERY[name](0.5)
    params, grads = (random_tree(seed + i, shapes, dtype, spread=1.0) for i in (0, 1))
    state = transformation.init(params)
    before = spec(state)
    for _ in range(2):
        bytes_before = tree.digest((params, grads, state))
        updates, new_state = transformation.update(grads, state, params, loss=LOSS)
        assert tree.digest((params, grads, state)) == bytes_before
        assert spec(new_state) == before
        for u, g in zip(tree.leaves(updates), tree.leaves(grads), strict=True):
            assert u.shape == g.shape
            assert u.dtype in (dtype, torch.promote_types(dtype, torch.float32))
            assert u.isfinite().all()
        assert spec(optim.apply_updates(params, updates)) == spec(params)
        state = new_state


@every_transformation
def test_transformations_are_pure_and_deterministic(name):
    transformation = optim.chain(EVERY[name](0.5), optim.scale_by_learning_rate(0.1))
    params, grads = (random_tree(s, [(), (3, 2), (0,)], torch.float32) for s in (0, 1))

    def step(grads, state, params):
        updates, state = transformation.update(grads, state, params, loss=LOSS)
        return optim.apply_updates(params, updates), state

    state = transformation.init(params)
    assert_pure(step, grads, state, params)
    assert_deterministic(step, grads, state, params)


@every_transformation
def test_compiled_transformation_equals_eager_and_compiles_once(name):
    transformation = EVERY[name](0.5)
    params = random_tree(0, [(), (3, 2), (0, 2), (5,)], torch.float32)
    eager = compiled = transformation.init(params)
    update = ftrain.compile(
        lambda g, s, p, loss: transformation.update(g, s, p, loss=loss), backend="eager"
    )
    for step in range(6):
        grads = random_tree(step, [(), (3, 2), (0, 2), (5,)], torch.float32)
        loss = torch.tensor(1.0 - step % 2)
        expected, eager = transformation.update(grads, eager, params, loss=loss)
        found, compiled = update(grads, compiled, params, loss)
        assert tree.digest((found, compiled)) == tree.digest((expected, eager))
    assert update.n_compiles == 1


@every_transformation
def test_transformations_traced_on_fake_tensors_have_no_tensor_constants(name):
    """No code reads a tensor's value, and the graph holds no tensor constant."""
    transformation = EVERY[name](0.5)
    params = random_tree(0, [(), (3, 2)], torch.bfloat16)
    state = transformation.init(params)

    def update(grads, state, params, loss):
        return transformation.update(grads, state, params, loss=loss)

    graph = make_fx(update, tracing_mode="fake")(params, state, params, LOSS)
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]


@every_transformation
@given(
    values=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=5)
def test_vmap_over_a_hyperparameter_matches_separate_runs(name, values, dtype, seed):
    """Up to the rounding of the hyper-parameter in the leaf's dtype."""
    params = random_tree(seed, [(), (3, 2), (0,), (4,)], dtype, spread=1.0)
    steps = gradients(params, [seed + 1, seed + 2])

    def updated(x):
        return run(EVERY[name](x), params, steps)

    mapped = torch.vmap(updated)(torch.tensor(values, dtype=torch.float64))
    for i, value in enumerate(values):
        for found, wanted in zip(tree.leaves(mapped), tree.leaves(updated(value)), strict=True):
            if not wanted.is_floating_point():
                assert torch.equal(found[i], wanted)
            elif wanted.numel():
                close = 16 * torch.finfo(wanted.dtype).eps
                size = wanted.abs().max().item()
                torch.testing.assert_close(found[i], wanted, rtol=close, atol=close * size)


@every_transformation
def test_each_row_of_a_vmapped_transformation_matches_a_single_run(name):
    """Each of the four rows has its own parameters, gradients and loss."""
    transformation = EVERY[name](0.5)
    rows = [random_tree(seed, [(), (7,), (8, 5)], torch.float32, spread=1.0) for seed in range(4)]
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    stacked = tree.map(lambda *xs: torch.stack(xs), *rows)
    state = torch.vmap(transformation.init)(stacked)
    update = torch.vmap(lambda g, s, p, loss: transformation.update(g, s, p, loss=loss))
    updates, state = update(stacked, state, stacked, losses)
    updates, state = update(updates, state, stacked, losses)
    for i, row in enumerate(rows):
        alone, memory = transformation.update(row, transformation.init(row), row, loss=losses[i])
        alone, memory = transformation.update(alone, memory, row, loss=losses[i])
        for found, wanted in zip(
            tree.leaves((updates, state)), tree.leaves((alone, memory)), strict=True
        ):
            # Sums over rows of a batch run in another order than over one: a few ulp of each entry.
            torch.testing.assert_close(found[i], wanted, rtol=2e-6, atol=0, equal_nan=False)


@every_transformation
def test_transformations_accept_trees_of_any_size(name):
    transformation = EVERY[name](0.5)
    for params in [
        {},
        (),
        torch.ones(2, 2),
        [torch.full((1 + i % 3,), i + 1.0) for i in range(300)],
    ]:
        state = transformation.init(params)
        updates, new = transformation.update(params, state, params, loss=LOSS)
        assert spec(new) == spec(state)
        assert spec(optim.apply_updates(params, updates)) == spec(params)


@pytest.mark.parametrize(("name", "problem"), spread(EVERY, PROBLEMS))
def test_a_chain_of_each_transformation_and_adam_reduces_the_loss(name, problem):
    """With a small learning rate, with Adam after or before the transformation."""
    params, loss, _, _ = PROBLEMS[problem](torch.float32)
    optimizer = optim.chain(EVERY[name](0.5), optim.adam(3e-3))
    if name == "scale_by_learning_rate":  # turns the direction around
        optimizer = optim.chain(EVERY[name](0.5), optim.scale(-1.0), optim.adam(3e-3))
    if name in ("add_noise", "reduce_on_plateau"):
        optimizer = optim.chain(optim.adam(1e-2), EVERY[name](0.5)) if name != "add_noise" else (
            optim.chain(optim.add_noise(1e-4, key=0), optim.adam(1e-2))
        )  # fmt: skip
    state, first = optimizer.init(params), loss(params)
    for _ in range(60):
        value, grads = gradient(loss, params)
        updates, state = optimizer.update(grads, state, params, loss=value)
        params = optim.apply_updates(params, updates)
    assert loss(params) < first


@every_transformation
def test_hypergradients_match_finite_differences(name):
    """Also with a leaf of zeros: a discarded branch must not make the slope NaN."""
    params = random_tree(0, [(2, 2), (3,), ()], torch.float64, spread=1.0)
    steps = gradients(params, [1, 2])
    zeros = {"zero": torch.zeros(3, dtype=torch.float64)}

    def after(x):
        updates, _ = run(EVERY[name](x), params | zeros, [grads | zeros for grads in steps])
        return torch.stack([u.sum() for u in updates.values()]).sum()

    x = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(after(x), x)
    with torch.no_grad():
        expected = (after(x + 1e-6) - after(x - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


def test_transformation_state_of_bfloat16_parameters_is_float32():
    params = {"w": torch.ones(3, 2, dtype=torch.bfloat16)}
    for name, build in EVERY.items():
        updates, state = run(build(0.5), params, [params])
        assert updates["w"].dtype in (torch.bfloat16, torch.float32), name
        assert not [x for x in tree.leaves(state) if x.dtype is torch.bfloat16], name
    for name in ("scale_by_rms", "scale_by_lion"):
        _, state = run(EVERY[name](0.5), params, [params])
        memory = [x for x in tree.leaves(state) if x.ndim]
        assert [x.dtype for x in memory] == [torch.float32], name


@pytest.mark.parametrize(
    "name", ["scale_by_sign", "scale_by_lion", "clip", "scale_by_rms", "centralize"]
)
def test_transformations_propagate_nan_gradients(name):
    params = {"w": torch.tensor([[1.0, math.nan]])}
    transformation = EVERY[name](0.5)
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert updates["w"][0, 1].isnan()


@pytest.mark.parametrize(("grad", "param"), [(0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
def test_scale_by_trust_ratio_keeps_the_gradient_if_a_norm_is_zero(grad, param):
    """Check that the hypergradient is finite without an `eps`: no step divides by the norm."""
    coefficient = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    g, p = ({"w": torch.full((3,), v, dtype=torch.float64)} for v in (grad, param))
    updates, _ = optim.scale_by_trust_ratio(coefficient).update(g, (), p)
    assert torch.equal(updates["w"], g["w"])
    (slope,) = torch.autograd.grad(updates["w"].sum(), coefficient)
    assert slope == 0


def test_a_long_compiled_chain_matches_eager():
    """From one compiled program, within the rounding of sums in another order."""
    rate = optim.join([optim.linear_warmup(0.1, 3), optim.cosine_restarts(0.1, 2, factor=2)], [3])
    optimizer = optim.chain(
        optim.zero_nans(), optim.clip(1e3), optim.add_noise(1e-3, key=0), optim.adaptive_clip(0.5),
        optim.centralize(), optim.clip_by_block_rms(1.0), optim.scale_by_rms(),
        optim.scale_by_trust_ratio(), optim.scale_by_schedule(optim.one_cycle(1.0, 10)),
        optim.scale_by_learning_rate(rate), optim.reduce_on_plateau(0.5, 1),
    )  # fmt: skip
    params = random_tree(0, [(), (33, 5)], torch.float32, 1.0)
    state = optimizer.init(params)
    compiled = ftrain.compile(
        lambda g, s, p, loss: optimizer.update(g, s, p, loss=loss), backend=COMPILED
    )
    for step in range(8):
        (grads,) = gradients(params, [step])
        expected = optimizer.update(grads, state, params, loss=LOSS)
        found = compiled(grads, state, params, LOSS)
        for ours, wanted in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            size = wanted.double().abs().max().item()
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6 * size)
        state = expected[1]
    assert compiled.n_compiles == 1


def test_noise_and_plateau_in_a_donated_train_step_match_eager():
    """The plateau reads the step's loss; the step compiles once."""
    init_state, train_step, _ = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1),
        lambda model, x: (model(x) - 1).square().mean(),
        optim.chain(
            optim.add_noise(0.1, key=3), optim.sgd(0.1), optim.reduce_on_plateau(0.5, patience=0)
        ),
        accumulate=2,
    )
    eager, compiled = init_state(0), init_state(0)
    step = ftrain.compile(train_step, backend="eager", donate=True)
    batch = torch.ones(4, 3)
    for _ in range(12):
        eager, _ = train_step(eager, batch)
        compiled, _ = step(compiled, batch)
        assert tree.digest(compiled) == tree.digest(eager)
    assert step.n_compiles == 1
    assert eager.opt_state[2].scale < 1  # noise keeps the loss from falling for ever
