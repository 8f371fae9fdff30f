"""A donated step allocates gradients, but no new state."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ftrain.core.compile import compile
from tests.compile.cases import Pair

SIZE = 256


def step(state, x):
    """Take a step of Adam without bias correction on one square matrix."""
    with torch.enable_grad():
        w = state.a.detach().requires_grad_()
        loss = torch.tanh(x @ w).square().mean()
        (grad,) = torch.autograd.grad(loss, w)
    m = state.b["m"] * 0.9 + grad * 0.1
    v = state.b["v"] * 0.99 + grad * grad * 0.01
    return Pair(state.a - m / (v.sqrt() + 1e-8), {"m": m, "v": v}), loss.detach()


def peak(compiled):
    """Return the peak of allocated bytes in a call, in multiples of the parameters' size."""
    square = torch.zeros(SIZE, SIZE)
    state, x = Pair(square + 0.01, {"m": square * 1, "v": square * 1}), torch.ones(2, SIZE)
    state, _ = compiled(state, x)
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as run:
        output = compiled(state, x)
    del output
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / square.nbytes


@pytest.mark.inductor
def test_donated_step_allocates_little_more_memory_than_one_gradient():
    donated, pure = peak(compile(step, donate=True)), peak(compile(step))
    assert donated < 1.1  # the gradient, and activations of 2 rows
    assert pure > 3.9  # the gradient and three new leaves
