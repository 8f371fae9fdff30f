"""Test compiled wrappers: branches taken at some steps only, and nested states."""

from __future__ import annotations

import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from tests.campaign import COMPILED


def test_donated_step_with_nested_wrappers_matches_eager():
    """`multi_steps`, `partition`, `ema` and `sam` in one compiled program."""
    optimizer = optim.sam(
        optim.ema(
            optim.multi_steps(
                optim.partition(
                    {
                        "weights": ("weight$", optim.adamw(optim.linear_warmup(0.1, 3, 0.01))),
                        "rest": (optim.everything, optim.sgd(0.1, 0.9)),
                    }
                ),
                2,
            ),
            0.9,
        ),
        0.1,
    )
    init_state, train_step, _ = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1),
        lambda model, batch: (model(batch) - 1).square().mean(),
        optimizer,
    )
    compiled = ftrain.compile(train_step, donate=True, backend=COMPILED)
    state, expected = init_state(0), init_state(0)
    for step in range(5):
        batch = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        state, _ = compiled(state, batch)
        expected, _ = train_step(expected, batch)
        for path, a, b in zip(
            tree.paths(expected), tree.leaves(state), tree.leaves(expected), strict=True
        ):
            # Products and the norms inside SAM are summed in another order.
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6, msg=lambda m, p=path: p + m)
        assert optim.get(state.opt_state, "micro_step") == (step + 1) % 2
    assert compiled.n_compiles == 1


def test_multi_steps_inside_a_scan_matches_a_loop():
    """The body of the scan contains the branch of `multi_steps`."""
    optimizer = optim.multi_steps(optim.adamw(0.1), 3)
    params = {"w": torch.tensor([[1.0, -2.0]])}

    def body(carry, grad):
        params, state = carry
        updates, state = optimizer.update({"w": grad}, state, params)
        return (optim.apply_updates(params, updates), state), params["w"]

    grads = torch.randn(8, 1, 2, generator=torch.Generator().manual_seed(0))

    def run(carry, grads):
        return ftrain.scan(body, carry, grads)

    start = params, optimizer.init(params)
    assert tree.digest(ftrain.compile(run, backend="eager")(start, grads)) == tree.digest(
        run(start, grads)
    )
