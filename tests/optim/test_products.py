"""Every optimizer in every composition: compiled, scanned, and mapped over rates."""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.optim.cases import CASES, PROBLEMS, advance, composable

every_case = pytest.mark.parametrize("name", CASES)


def trained(name, problem="mlp", dtype=torch.float32, rate=None):
    """A pure `step(params, state)` on a problem, and where it starts."""
    case = CASES[name]
    params, loss, *_ = PROBLEMS[problem](dtype)
    rate = getattr(case.rates, problem) if rate is None else rate
    optimizer = case.build(rate)

    def step(params, state):
        return advance(optimizer, loss, params, state, composable)

    return step, params, optimizer.init(params)


@every_case
def test_compiled_is_eager_and_compiles_once(name):
    """The graph runs the operators of the eager step, in their order: to the bit."""
    case = CASES[name]
    schedule = optim.warmup_cosine(case.rates.mlp, 2, 10) if case.one_rate else case.rates.mlp
    step, params, state = trained(name, rate=schedule)
    compiled = ftrain.compile(step, backend="eager")
    for _ in range(4):
        expected = step(params, state)
        assert tree.digest(compiled(params, state)) == tree.digest(expected)
        params, state = expected
    assert compiled.n_compiles == 1


@every_case
def test_a_scan_of_20_steps_is_a_loop(name):
    """As one operator of one graph, whose body is traced once: to the bit."""
    step, params, state = trained(name, "rosenbrock")

    @ftrain.compile(backend="eager")
    def scanned(params, state):
        return ftrain.scan(lambda carry, _: (step(*carry), None), (params, state), length=20)[0]

    found = scanned(params, state)
    for _ in range(20):
        params, state = step(params, state)
    assert tree.digest(found) == tree.digest((params, state))


@every_case
def test_mapped_over_4_rates_is_4_runs(name):
    """A rate that is a batched tensor, against Python numbers: rounding only, over five steps."""
    rates = [CASES[name].rates.parabola * factor for factor in (0.25, 0.5, 1.0, 1.5)]

    def run(rate):
        step, params, state = trained(name, "parabola", torch.float64, rate)
        for _ in range(5):
            params, state = step(params, state)
        return params["x"]

    mapped = torch.vmap(run)(torch.tensor(rates, dtype=torch.float64))
    alone = torch.stack([run(rate) for rate in rates])
    torch.testing.assert_close(mapped, alone, rtol=1e-9, atol=1e-12)
    assert len({tuple(row) for row in alone.tolist()}) == 4  # the rate matters
