"""Test properties of every wrapper around every optimizer."""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import spread
from tests.optim.cases import CASES, OPTIMIZERS, SHAPES, random_tree, spec


def nothing(params):
    return tree.map(lambda p: False, params)


# A configuration that changes nothing, and where the state of the optimizer is then.
TRIVIAL = {
    "masked": (lambda o: optim.masked(o, optim.everything), lambda s: s),
    "freeze": (lambda o: optim.freeze(o, nothing), lambda s: s),
    "partition": (lambda o: optim.partition({"all": (optim.everything, o)}), lambda s: s["all"]),
    "multi_steps": (lambda o: optim.multi_steps(o, 1), lambda s: s.inner),
    "skip_nonfinite": (optim.skip_nonfinite, lambda s: s.inner),
    "skip_large_updates": (lambda o: optim.skip_large_updates(o, torch.inf), lambda s: s.inner),
    "lookahead": (lambda o: optim.lookahead(o, 2, 1.0), lambda s: s.inner),
    "ema": (lambda o: optim.ema(o, 0.9), lambda s: s.inner),
    "swa": (lambda o: optim.swa(o, 2), lambda s: s.inner),
    "sam": (lambda o: optim.sam(o, 0.0), lambda s: s),
    "asam": (lambda o: optim.asam(o, 0.0), lambda s: s),
}

# Configurations that do something.
WRAPPERS = {
    "masked": lambda o: optim.masked(o, optim.matrices),
    "freeze": lambda o: optim.freeze(o, "p[02]"),
    "partition": lambda o: optim.partition(
        {"matrices": (optim.matrices, o), "rest": (optim.everything, optim.sgd(0.1))}
    ),
    "multi_steps": lambda o: optim.multi_steps(o, 2),
    "multi_steps scheduled": lambda o: optim.multi_steps(o, lambda count: 1 + count),
    "skip_nonfinite": optim.skip_nonfinite,
    "skip_large_updates": lambda o: optim.skip_large_updates(o, 1e3),
    "lookahead": lambda o: optim.lookahead(o, 2, 0.5),
    "ema": lambda o: optim.ema(o, 0.9),
    "swa": lambda o: optim.swa(o, 2, 2),
    "sam": lambda o: optim.sam(o, 0.1),
    "asam": lambda o: optim.asam(o, 0.1),
    "ema of lookahead": lambda o: optim.ema(optim.lookahead(o, 2), 0.9),
}


def target(params):
    """Return a loss whose gradient reaches every element and depends on the parameters."""
    total = torch.zeros(())
    for p in tree.leaves(params):
        total = total + ((p - 1) ** 2).sum() + (p**4).sum() / 4
    return total


def slope(params):
    return tree.map(lambda p: 2 * (p - 1) + p**3, params)


def update(optimizer, grads, state, params):
    """Update with every extra argument, and a `grad_fn` that returns `grads` at `params`."""

    def grad_fn(where):
        return tree.map(lambda g, w, p: g + (slope(w) - slope(p)), grads, where, params)

    return optimizer.update(
        grads, state, params, loss=target(params), value_fn=target, grad_fn=grad_fn
    )


def run(optimizer, seed, steps=3, dtype=torch.float32, shapes=SHAPES):
    """Return the updates of each step and the state after it."""
    params = random_tree(seed, shapes, dtype, 1.0)
    state, history = optimizer.init(params), []
    for step in range(steps):
        grads = random_tree(seed + step + 1, shapes, dtype)
        updates, state = update(optimizer, grads, state, params)
        params = optim.apply_updates(params, updates)
        history.append((updates, state))
    return params, history


@pytest.mark.parametrize(("name", "wrapper"), spread(CASES, TRIVIAL, 3))
def test_wrappers_with_settings_that_have_no_effect_equal_the_plain_optimizer(wrapper, name):
    """Bit for bit, updates and the inner state at each step."""
    wrap, inner_of = TRIVIAL[wrapper]
    if wrapper == "multi_steps" and {"grad_fn", "value_fn"} & set(CASES[name].needs):
        pytest.skip("hands no functions of the last batch to the optimizer of several")
    plain, wrapped = run(CASES[name].build(0.1), 0)[1], run(wrap(CASES[name].build(0.1)), 0)[1]
    for (expected, state), (found, outer) in zip(plain, wrapped, strict=True):
        assert tree.digest(found) == tree.digest(expected)
        assert tree.digest(inner_of(outer)) == tree.digest(state)


every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@every_wrapper
def test_wrappers_keep_the_state_layout_and_do_not_modify_inputs(wrapper, dtype):
    for name in ("adamw", "momentum", "clipped adamw"):
        optimizer = WRAPPERS[wrapper](OPTIMIZERS[name](0.1))
        params = random_tree(0, SHAPES, dtype, 1.0)
        grads = random_tree(1, SHAPES, dtype)
        state = optimizer.init(params)
        layout = spec(state)
        for _ in range(3):
            before = tree.digest((grads, state, params))
            updates, new = update(optimizer, grads, state, params)
            assert tree.digest((grads, state, params)) == before
            taken = {x.data_ptr() for x in tree.leaves((grads, state, params)) if x.numel()}
            made = [x for x in tree.leaves(new) if x.numel()]
            assert not taken & {x.data_ptr() for x in made}
            assert len({x.data_ptr() for x in made}) == len(made)
            assert spec(new) == layout
            params, state = optim.apply_updates(params, updates), new


@every_wrapper
def test_compiled_wrapper_matches_eager_and_compiles_once(wrapper):
    optimizer = WRAPPERS[wrapper](optim.adamw(optim.warmup_cosine(0.1, 2, 8)))

    def step(grads, state, params):
        updates, state = update(optimizer, grads, state, params)
        return optim.apply_updates(params, updates), state

    compiled = ftrain.compile(step, backend="eager")
    params = random_tree(0, SHAPES, torch.float32, 1.0)
    state = optimizer.init(params)
    for count in range(5):
        grads = random_tree(count + 1, SHAPES, torch.float32)
        expected, found = step(grads, state, params), compiled(grads, state, params)
        assert tree.digest(found) == tree.digest(expected), count
        params, state = expected
    assert compiled.n_compiles == 1


@every_wrapper
def test_each_row_of_a_vmapped_wrapper_matches_a_single_run(wrapper):
    """The rows skip different updates: one of them has a gradient of 1e6."""
    optimizer = WRAPPERS[wrapper](optim.adamw(0.1))
    rows = [random_tree(seed, SHAPES, torch.float32, 1.0) for seed in range(3)]
    params = tree.map(lambda *xs: torch.stack(xs), *rows)
    state = torch.vmap(optimizer.init)(params)
    singles = [(row, optimizer.init(row)) for row in rows]
    for step in range(4):
        each = [random_tree(10 * step + seed, SHAPES, torch.float32, 1.0) for seed in range(3)]
        each[1] = tree.map(lambda g: g * 1e6 if step == 1 else g, each[1])  # noqa: B023
        grads = tree.map(lambda *xs: torch.stack(xs), *each)

        def one(grads, state, params):
            return update(optimizer, grads, state, params)

        updates, state = torch.vmap(one)(grads, state, params)
        params = torch.vmap(optim.apply_updates)(params, updates)
        for i, (g, (p, s)) in enumerate(zip(each, singles, strict=True)):
            u, new = update(optimizer, g, s, p)
            singles[i] = (optim.apply_updates(p, u), new)
    for i, single in enumerate(singles):
        row = tree.map(lambda x, i=i: x[i], (params, state))
        for path, a, b in zip(tree.paths(row), tree.leaves(row), tree.leaves(single), strict=True):
            torch.testing.assert_close(a, b, rtol=3e-6, atol=1e-6, msg=lambda m, p=path: p + m)


@every_wrapper
def test_wrappers_accept_trees_of_any_size(wrapper):
    if wrapper == "freeze":
        pytest.skip("freezes by name")
    for params in [{}, torch.ones(2, 2), [torch.ones(1 + i % 3) for i in range(300)]]:
        optimizer = WRAPPERS[wrapper](optim.adamw(0.1))
        state = optimizer.init(params)
        updates, new = update(optimizer, params, state, params)
        assert spec(new) == spec(state)
        assert spec(optim.apply_updates(params, updates)) == spec(params)


def test_nested_multi_steps_gives_the_weighted_mean_of_all_gradients():
    """Two pairs of gradients give the weighted mean of all four."""
    optimizer = optim.multi_steps(optim.multi_steps(optim.sgd(1.0), 2), 2)
    params = {"w": torch.tensor([5.0])}
    state = optimizer.init(params)
    for gradient, weight in ((1.0, 1.0), (1.0, 1.0), (4.0, 3.0), (4.0, 3.0)):
        grads = {"w": torch.tensor([gradient])}
        updates, state = optimizer.update(grads, state, params, weight=weight)
        params = optim.apply_updates(params, updates)
    assert params["w"].item() == 5.0 - (2 * 1.0 + 6 * 4.0) / 8
