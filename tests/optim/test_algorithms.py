"""Test every optimizer on every problem in every dtype, and the properties that all share."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from ftrain import optim
from ftrain.core import tree
from tests.campaign import spread
from tests.optim.cases import CASES, OPTIMIZERS, PROBLEMS, advance, handed_in, random_tree, spec

every_case = pytest.mark.parametrize("name", CASES)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


PLACES = [
    *((problem, dtype) for problem in PROBLEMS for dtype in (torch.float32, torch.bfloat16)),
    ("mlp", torch.float64),  # float64 descends as float32 does; its state's dtypes may differ
]


@pytest.mark.parametrize(("name", "place"), spread(CASES, PLACES, 3), ids=str)
def test_every_optimizer_reduces_the_loss(name, place):
    problem, dtype = place
    params, loss, steps, falls_to = PROBLEMS[problem](dtype)
    optimizer = CASES[name].build(getattr(CASES[name].rates, problem))
    state, first = optimizer.init(params), loss(params)
    before = spec(params), spec(state)
    for step in range(steps):
        params, state = advance(optimizer, loss, params, state)
        if step < 12 or step == steps - 1:  # every branch by the count has been taken
            assert (spec(params), spec(state)) == before
    assert loss(params) < falls_to * first


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.one_rate])
def test_every_optimizer_accepts_a_schedule_as_learning_rate(name):
    params, loss, steps, falls_to = PROBLEMS["mlp"](torch.float32)
    schedule = optim.warmup_cosine(CASES[name].rates.mlp, 10, steps)
    fixed, scheduled = CASES[name].build(0.1), CASES[name].build(schedule)
    state, first = scheduled.init(params), loss(params)
    assert spec(state) == spec(fixed.init(params))
    for count in range(steps):
        if count < 12 or count == steps - 1:  # warmup, and the decay after it
            (reported,) = tree.find(state, "learning_rate").values()
            assert reported == schedule(torch.tensor(max(count - 1, 0))).float()
        params, state = advance(scheduled, loss, params, state)
    assert loss(params) < falls_to * first


def layouts() -> dict[str, torch.Tensor]:
    """Return tensors of every dense memory layout, and one with gaps."""
    return {
        "scalar": torch.randn(()),
        "empty": torch.randn(0, 3),
        "vector": torch.randn(5),
        "ones": torch.randn(1, 4, 1),
        "transposed": torch.randn(4, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "gaps": torch.randn(4, 10)[:, :3],
        "half": torch.randn(3, 2, dtype=torch.bfloat16),
        "double": torch.randn(3, 2, dtype=torch.float64),
    }


@pytest.mark.parametrize("grads_are", ["alike", "contiguous", "transposed"])
@every_case
def test_updates_keep_the_memory_layouts_of_params_and_state(name, grads_are):
    """Params and state keep their layouts from the first update, for gradients of any layout."""
    params = layouts()
    change = {
        "alike": torch.clone,
        "contiguous": torch.Tensor.contiguous,
        "transposed": lambda p: p.mT.contiguous().mT if p.ndim > 1 else p.clone(),
    }[grads_are]
    grads = tree.map(change, params)
    optimizer = CASES[name].build(0.1)
    state = optimizer.init(params)
    updates, new_state = optimizer.update(grads, state, params, **handed_in(params))
    assert spec(new_state) == spec(state)
    assert spec(optim.apply_updates(params, updates)) == spec(params)


@every_case
def test_optimizer_state_of_bfloat16_parameters_is_float32(name):
    params = {"w": torch.full((3, 2), 2.0, dtype=torch.bfloat16)}
    optimizer = CASES[name].build(0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params, **handed_in(params))
    assert updates["w"].dtype is torch.float32
    memory = [x for x in tree.leaves(state) if x.ndim and x.is_floating_point()]
    assert {x.dtype for x in memory} <= {torch.float32}
    # One rounding, of the sum: not of the update before it.
    exact = params["w"].double() + updates["w"].double()
    assert torch.equal(optim.apply_updates(params, updates)["w"], exact.float().bfloat16())


@every_case
def test_optimizer_update_is_pure(name):
    params, grads = (
        random_tree(0, [(3, 2), (2,)], torch.float32),
        random_tree(1, [(3, 2), (2,)], torch.float32),
    )
    optimizer, extra = CASES[name].build(0.1), handed_in(params)
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params, **extra)
    before = tree.digest((grads, state, params))
    one = optimizer.update(grads, state, params, **extra)
    two = optimizer.update(grads, state, params, **extra)
    assert tree.digest(one) == tree.digest(two)
    assert tree.digest((grads, state, params)) == before
    taken = {x.data_ptr() for x in tree.leaves((grads, state, params)) if x.numel()}
    outputs = tree.leaves((one[1], optim.apply_updates(params, one[0])))
    assert not taken & {x.data_ptr() for x in outputs}


@every_optimizer
def test_update_ignores_unused_extra_arguments(name):
    params = random_tree(0, [(3, 2)], torch.float32)
    optimizer = OPTIMIZERS[name](0.1)
    state = optimizer.init(params)
    plain = optimizer.update(params, state, params)
    extra = optimizer.update(params, state, params, loss=torch.tensor(1.0), value_fn=None)
    assert tree.digest(plain) == tree.digest(extra)


@every_case
def test_each_row_of_a_vmapped_update_matches_a_single_run(name):
    """Bit for bit where every operation is elementwise; sums and products round differently."""
    shapes = [(), (7,), (8, 5)]
    rows = [random_tree(seed, shapes, torch.float32) for seed in range(4)]
    case = CASES[name]
    optimizer = case.build(optim.cosine(0.1, 10) if case.one_rate else 0.1)

    def update(grads, state, params):
        return optimizer.update(grads, state, params, **handed_in(params))

    params = tree.map(lambda *xs: torch.stack(xs), *rows)
    state = torch.vmap(optimizer.init)(params)
    singles = [(row, optimizer.init(row)) for row in rows]
    for step in range(3):
        grads = [random_tree(100 * step + seed, shapes, torch.float32) for seed in range(4)]
        updates, state = torch.vmap(update)(
            tree.map(lambda *xs: torch.stack(xs), *grads), state, params
        )
        params = torch.vmap(optim.apply_updates)(params, updates)
        for i, (g, (p, s)) in enumerate(zip(grads, singles, strict=True)):
            u, new = update(g, s, p)
            singles[i] = (optim.apply_updates(p, u), new)
    for i, single in enumerate(singles):
        row = tree.map(lambda x, i=i: x[i], (params, state))
        if case.exact_rows:
            assert tree.digest(row) == tree.digest(single)
        tolerance = case.row_tolerance
        torch.testing.assert_close(row, single, rtol=tolerance, atol=tolerance / 10)


@every_case
def test_update_traces_on_fake_tensors_and_the_graph_matches_eager(name):
    params = layouts()
    case = CASES[name]
    optimizer = case.build(optim.warmup_cosine(0.1, 2, 10) if case.one_rate else 0.1)

    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params, **handed_in(params))
        return optim.apply_updates(params, updates), state

    state = optimizer.init(params)
    graph = make_fx(step, tracing_mode="fake")(params, state, params)
    constants = [getattr(graph, n.target) for n in graph.graph.find_nodes(op="get_attr")]
    tensors = [c for c in constants if isinstance(c, torch.Tensor)]
    # No tensor burnt in. A loop leaves fake ones behind, which the graph does not read: it runs below.
    assert all(isinstance(c, FakeTensor) for c in tensors)
    for _ in range(3):
        expected = step(params, state, params)
        found = graph(params, state, params)
        assert tree.digest(found) == tree.digest(expected)
        params, state = expected


@every_case
def test_update_accepts_parameter_trees_of_any_size(name):
    """No parameter, one that is 0-d, empty or a matrix, and 300 parameters."""
    of_300 = [torch.ones(1 + i % 3) for i in range(300)]
    for params in [{}, torch.tensor(2.0), torch.zeros(0, 3), torch.ones(2, 2), of_300]:
        optimizer = CASES[name].build(0.1)
        state = optimizer.init(params)
        updates, new = optimizer.update(params, state, params, **handed_in(params))
        assert spec(new) == spec(state)
        assert spec(optim.apply_updates(params, updates)) == spec(params)


def test_vmapped_tensor_hyperparameters_match_separate_runs():
    """Four AdamWs in one vmapped call match the four run one after the other."""
    params, grads = (random_tree(s, [(3, 2), (2,)], torch.float32) for s in (0, 1))

    def run(rate, b1, b2, eps, decay):
        optimizer = optim.chain(
            optim.clip_by_global_norm(rate * 100),
            optim.adamw(rate, b1, b2, eps, weight_decay=decay),
            optim.sgd(rate, b1, weight_decay=decay, dampening=decay),
            optim.scale(b1),
        )
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
        return updates

    hypers = [
        torch.tensor(values, dtype=torch.float64)
        for values in ([1e-3, 1e-2], [0.9, 0.5], [0.999, 0.9], [1e-8, 1e-3], [0.1, 0.0])
    ]
    mapped = torch.vmap(run)(*hypers)
    for i in range(2):
        alone = run(*[float(h[i]) for h in hypers])
        for found, expected in zip(tree.leaves(mapped), tree.leaves(alone), strict=True):
            torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=0)


DIFFERENTIABLE = [n for n in OPTIMIZERS if CASES[n].one_rate]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_hypergradients_through_two_updates_match_finite_differences(name):
    start = {"w": torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)}

    def after(rate):
        optimizer, params = CASES[name].build(optim.constant(rate)), start
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
            params = optim.apply_updates(params, updates)
        return params["w"].square().sum()

    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after, rate)


ROOTS = [n for n in OPTIMIZERS if n != "rprop"]


@pytest.mark.parametrize("name", ROOTS)
def test_hyperparameter_derivatives_are_finite_where_gradients_are_zero(name):
    """Keep the infinite slope of a square root at 0 out of entries that no batch has used."""

    def after(rate):
        optimizer = CASES[name].build(rate)
        params = {"w": torch.tensor([[1.0, 2.0], [0.5, -1.0]]), "b": torch.tensor([1.0, 0.0])}
        state = optimizer.init(params)
        for _ in range(3):
            used = {"w": params["w"] * torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "b": 0 * params["b"]}
            updates, state = optimizer.update(used, state, params)
            params = optim.apply_updates(params, updates)
        return params["w"].square().sum() + params["b"].sum()

    rate = torch.tensor(CASES[name].rates.mlp, requires_grad=True)
    (slope,) = torch.autograd.grad(after(rate), rate)
    assert slope.isfinite()
    assert slope != 0


@pytest.mark.parametrize("name", ROOTS)  # Rprop takes signs, as torch does: a NaN has none
def test_a_nan_gradient_makes_the_updated_parameter_nan(name):
    """A parameter whose gradient is NaN becomes NaN instead of keeping its old value."""
    params = {"w": torch.ones(2, 2)}
    optimizer = CASES[name].build(0.1)
    grads = {"w": torch.tensor([[1.0, torch.nan], [1.0, 1.0]])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    assert optim.apply_updates(params, updates)["w"][0, 1].isnan()
