"""Test updates compiled by inductor: equal to the eager update, in one graph of few kernels."""

from __future__ import annotations

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import long
from tests.optim.cases import CASES, random_tree, ulps

pytestmark = pytest.mark.inductor
SHAPES = [(33, 5), (7,), (3, 3)]


def test_inductor_compiles_the_update_once_and_evaluates_the_schedule_once():
    """Matches eager within rounding; powers and cosines are not repeated for each parameter."""
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0),
        optim.adamw(optim.warmup_cosine(0.1, 2, 8), weight_decay=0.1),
    )

    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    params = random_tree(0, SHAPES, torch.float32)
    state = optimizer.init(params)
    compiled = ftrain.compile(step)
    for count in range(10):
        grads = random_tree(count + 1, SHAPES, torch.float32)
        expected = step(grads, state, params)
        found, codes = run_and_get_code(compiled, grads, state, params)
        assert len(codes) == (count == 0)
        for code in codes:
            # In the step, in the decay and in the reported rate: never in a parameter's loop.
            assert len(re.findall(r"std::pow\(", code)) == 2
            assert len(re.findall(r"std::cos\(", code)) <= 3
        # Inductor contracts no multiply-adds where torch fuses them: a rounding more here and there.
        for ours, wanted, p in zip(
            tree.leaves(found[0]), tree.leaves(expected[0]), tree.leaves(params), strict=True
        ):
            assert ulps(ours, wanted, p, torch.tensor(0.1)) <= 4
        params, state = expected


@long
def test_compiled_radam_and_adafactor_match_the_eager_update():
    """Within 1e-6 in the norm, because inductor sums in another order."""
    names = ["radam", "adafactor"]
    optimizers = {name: CASES[name].build(0.1) for name in names}

    def step(grads, states, params):
        updates, new = {}, {}
        for name, optimizer in optimizers.items():
            updates[name], new[name] = optimizer.update(grads, states[name], params)
        return updates, new

    params = random_tree(0, [(33, 5)], torch.float32, 0.5)
    states = {name: optimizer.init(params) for name, optimizer in optimizers.items()}
    compiled = ftrain.compile(step)
    for count in range(8):  # RAdam adapts from the sixth on
        grads = random_tree(count + 1, [(33, 5)], torch.float32, 1.0)
        found, expected = compiled(grads, states, params), step(grads, states, params)
        for ours, wanted in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
            assert (ours - wanted).double().norm() <= 1e-6 * wanted.double().norm()
        states = expected[1]
    assert compiled.n_compiles == 1
