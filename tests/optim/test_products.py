"""Test every optimizer compiled, scanned, and vmapped over learning rates.

The suite compiles each optimizer on one problem in one dtype, neighbours in the table on different ones.
Run `FTRAIN_CAMPAIGN=1 pytest tests/optim/test_products.py` for the whole product, which takes some
minutes.
"""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import CAMPAIGN, choice, spread
from tests.optim.cases import CASES, OPTIMIZERS, PROBLEMS, advance, composable

every_case = pytest.mark.parametrize("name", CASES)
DTYPES = (torch.bfloat16, torch.float64, torch.float32)
PLACES = [(problem, dtype) for problem in PROBLEMS for dtype in DTYPES]
A_DTYPE_A_PROBLEM = list(zip(PROBLEMS, DTYPES, strict=True))
EACH_AT_A_PLACE = [
    (name, *place)
    for i, name in enumerate(CASES)
    for place in (PLACES if CAMPAIGN else [A_DTYPE_A_PROBLEM[i % len(A_DTYPE_A_PROBLEM)]])
]


def trained(name, problem, rate):
    """Return a pure `step(params, state)` on a problem, and its initial params and state."""
    params, loss, *_ = problem
    optimizer = CASES[name].build(rate)

    def step(params, state):
        return advance(optimizer, loss, params, state, composable)

    return step, params, optimizer.init(params)


@pytest.mark.parametrize(("name", "problem", "dtype"), EACH_AT_A_PLACE)
def test_compiled_optimizer_step_equals_eager_and_compiles_once(name, problem, dtype):
    """Bit for bit: the graph runs the operators of the eager step in the same order."""
    case = CASES[name]
    rate = getattr(case.rates, problem)
    schedule = optim.warmup_cosine(rate, 2, 10) if case.one_rate else rate
    step, params, state = trained(name, PROBLEMS[problem](dtype), schedule)
    compiled = ftrain.compile(step, backend="eager")
    for _ in range(3):
        expected = step(params, state)
        assert tree.digest(compiled(params, state)) == tree.digest(expected)
        params, state = expected
    assert compiled.n_compiles == 1


@pytest.mark.parametrize(("problem", "dtype"), choice([("rosenbrock", torch.float32)], PLACES))
@every_case
def test_scan_of_20_optimizer_steps_equals_a_python_loop(name, problem, dtype):
    """Bit for bit; the scan is one operator whose body is traced once."""
    rate = getattr(CASES[name].rates, problem)
    step, params, state = trained(name, PROBLEMS[problem](dtype), rate)

    @ftrain.compile(backend="eager")
    def scanned(params, state):
        return ftrain.scan(lambda carry, _: (step(*carry), None), (params, state), length=20)[0]

    found = scanned(params, state)
    for _ in range(20):
        params, state = step(params, state)
    assert tree.digest(found) == tree.digest((params, state))


# Five steps to the rounding of float64. One of bfloat16: at the second the gradients are others.
WITHIN = {torch.float64: (5, 1e-9), torch.float32: (5, 1e-4), torch.bfloat16: (1, 2**-7)}


@pytest.mark.parametrize(
    ("name", "place"), spread(CASES, PLACES if CAMPAIGN else [(p, torch.float64) for p in PROBLEMS])
)
def test_optimizer_vmapped_over_4_learning_rates_matches_4_runs(name, place):
    """A batched tensor as the rate matches Python numbers within rounding, in the norm."""
    problem, dtype = place
    rates = [getattr(CASES[name].rates, problem) * factor for factor in (0.25, 0.5, 1.0, 1.5)]
    steps, bound = WITHIN[dtype]
    where = PROBLEMS[problem](dtype)

    def run(rate):
        step, params, state = trained(name, where, rate)
        for _ in range(steps):
            params, state = step(params, state)
        return torch.cat([x.reshape(-1) for x in tree.leaves(params)]).double()

    mapped = torch.vmap(run)(torch.tensor(rates, dtype=torch.float64))
    alone = torch.stack([run(rate) for rate in rates])
    assert ((mapped - alone).norm(dim=1) <= bound * alone.norm(dim=1) + 1e-12).all()
    assert len({tuple(row) for row in alone.tolist()}) > 1  # the rate matters


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_vmapped_over_learning_rates_accepts_gradients_with_other_strides(name):
    """The vmapped result matches separate runs for gradients and params of different strides."""
    params = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double().t()}
    grads = tree.map(torch.Tensor.contiguous, params)

    def run(rate):
        optimizer, now = CASES[name].build(rate), params
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, now)
            now = optim.apply_updates(now, updates)
        return now["w"]

    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    alone = torch.stack([run(rate.item()) for rate in rates])
    torch.testing.assert_close(torch.vmap(run)(rates), alone, rtol=1e-9, atol=1e-9)
