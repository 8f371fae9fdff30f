"""Test SOAP against the algorithm in NumPy, and the values and cost of its eigenbases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.optim.soap import SHIFT
from tests.campaign import long
from tests.optim.cases import random_tree, ulps


def in_numpy(w, grads, rate, b1, b2, eps, decay, every):
    """One matrix, every line of the algorithm as the paper has it; float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    sides = [np.zeros((n, n)) for n in w.shape]
    bases = [np.eye(n) for n in w.shape]
    for t, g in enumerate(grads):
        turned = bases[0].T @ g @ bases[1]
        m = b1 * m + (1 - b1) * turned
        v = b2 * v + (1 - b2) * turned**2
        n = m / (1 - b1 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
        w = w - rate * (bases[0] @ n @ bases[1].T + decay * w)
        sides = [b2 * s + (1 - b2) * gg for s, gg in zip(sides, (g @ g.T, g.T @ g), strict=True)]
        if t < every or t % every == 0:
            plain = bases[0] @ m @ bases[1].T
            for side in (0, 1):
                q, s = bases[side], sides[side]
                order = np.argsort(-np.einsum("ij,ik,kj->j", q, s, q), kind="stable")
                shifted = s + SHIFT * np.trace(s) / len(s) * np.eye(len(s))
                q, r = np.linalg.qr((shifted @ q)[:, order])
                bases[side] = q * np.where(np.diag(r) < 0, -1.0, 1.0)
                v = np.take(v, order, axis=side)
            m = bases[0].T @ plain @ bases[1]
    return w


def test_soap_matches_a_numpy_implementation_of_the_algorithm():
    hyper = (0.02, 0.9, 0.95, 1e-8, 0.1, 4)
    rate, b1, b2, eps, decay, every = hyper
    optimizer = optim.soap(rate, b1, b2, eps, weight_decay=decay, precondition_frequency=every)
    params = random_tree(0, [(6, 4)], torch.float64, 0.0)
    grads = [random_tree(t + 1, [(6, 4)], torch.float64, 0.0) for t in range(30)]
    expected = in_numpy(params["p0"].numpy(), [g["p0"].numpy() for g in grads], *hyper)
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optim.apply_updates(params, updates)
    # Measured 1e-12: the bases magnify rounding by the inverse gaps between eigenvalues.
    torch.testing.assert_close(params["p0"], torch.tensor(expected), rtol=0, atol=1e-9)


def test_soap_without_preconditioned_sides_matches_adamw():
    shapes = [(), (7,), (5, 3)]
    params = random_tree(0, shapes, torch.float32, 1.0)
    ours = optim.soap(0.1, weight_decay=0.1, max_precondition_dim=2)
    theirs = optim.adamw(0.1, 0.95, 0.95, weight_decay=0.1)
    state, reference = ours.init(params), theirs.init(params)
    assert state.bases == ()
    for t in range(5):
        grads = random_tree(t + 1, shapes, torch.float32, 1.0)
        updates, state = ours.update(grads, state, params)
        expected, reference = theirs.update(grads, reference, params)
        for name in params:
            assert ulps(updates[name], expected[name], params[name] * 0.01) <= 1


def test_soap_stores_no_basis_for_sides_above_max_precondition_dim():
    state = optim.soap(max_precondition_dim=6).init({"w": torch.ones(50, 6), "v": torch.ones(3)})
    assert [tuple(b.shape) for b in state.bases] == [(6, 6)]


def test_soap_bases_converge_to_eigenvectors():
    """For gradients of a fixed covariance the off-diagonal entries of Q' L Q go to zero."""
    optimizer = optim.soap(b3=0.99, precondition_frequency=5)
    params = {"w": torch.zeros(6, 6, dtype=torch.float64)}
    state = optimizer.init(params)
    mix = random_tree(0, [(6, 6)], torch.float64, 0.0)["p0"]
    for t in range(300):
        grads = {"w": mix @ random_tree(t + 1, [(6, 6)], torch.float64, 0.0)["p0"]}
        _, state = optimizer.update(grads, state, params)
        q = state.bases[0]
        torch.testing.assert_close(q.mT @ q, torch.eye(6).double(), rtol=0, atol=1e-12)
    inside = state.bases[0].mT @ state.grams[0] @ state.bases[0]
    off = inside - torch.diag(inside.diagonal())
    assert off.norm() < 0.05 * inside.norm()
    assert torch.equal(inside.diagonal().argsort(descending=True), torch.arange(6))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.ops.aten.linalg_qr.default
        return func(*args, **(kwargs or {}))


def test_soap_decomposes_only_every_precondition_frequency_updates():
    optimizer = optim.soap(precondition_frequency=4)
    params = {"w": torch.randn(6, 4)}
    state, paid = optimizer.init(params), []
    for t in range(14):
        with Count() as count:
            _, state = optimizer.update(params, state, params)
        paid += [t] * (count.calls // 2)
    assert paid == [0, 1, 2, 3, 4, 8, 12]


def test_compiled_soap_decomposes_inside_a_cond_branch():
    optimizer = optim.soap()
    params = {"w": torch.randn(6, 4)}
    state = optimizer.init(params)
    graph = ftrain.compile(optimizer.update).graph(params, state, params)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert "cond" in targets
    assert not [t for t in targets if "linalg" in t]
    inside = [str(n.target) for m in graph.children() for n in m.graph.nodes]
    assert len([t for t in inside if "linalg_qr" in t]) == 2


def test_each_row_of_a_vmapped_soap_update_matches_a_single_run():
    """In float64: the bases magnify rounding by the inverse gaps between eigenvalues."""
    optimizer = optim.soap(0.1, precondition_frequency=3)
    shapes, n = [(6, 4), (3,)], 3
    rows = [random_tree(i, shapes, torch.float64, 0.0) for i in range(n)]
    params = tree.map(lambda *x: torch.stack(x), *rows)
    state = torch.vmap(optimizer.init)(params)
    singles = [optimizer.init(row) for row in rows]
    for t in range(8):
        grads = [random_tree(100 * t + i, shapes, torch.float64, 0.0) for i in range(n)]
        stacked = tree.map(lambda *x: torch.stack(x), *grads)
        updates, state = torch.vmap(optimizer.update)(stacked, state, params)
        for i in range(n):
            expected, singles[i] = optimizer.update(grads[i], singles[i], rows[i])
            found = tree.map(lambda u, i=i: u[i], updates)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_soap_does_not_raise_on_non_finite_gradients():
    """`nonfinite="skip"` discards the result only if the eigendecomposition does not raise first."""
    optimizer = optim.soap()
    params = {"w": torch.ones(3, 3)}
    for bad in (torch.nan, torch.inf):
        updates, _ = optimizer.update({"w": params["w"] * bad}, optimizer.init(params), params)
        assert not torch.isfinite(updates["w"]).all()


@pytest.mark.inductor
@long
def test_soap_compiled_by_inductor_matches_the_eager_update():
    optimizer = optim.soap(0.1, precondition_frequency=2)

    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    params = random_tree(0, [(3, 2)], torch.float64, 0.0)
    state = optimizer.init(params)
    compiled = ftrain.compile(step)
    for t in range(5):
        grads = random_tree(t + 1, [(3, 2)], torch.float64, 0.0)
        expected = step(grads, state, params)
        torch.testing.assert_close(compiled(grads, state, params), expected, rtol=0, atol=1e-9)
        params, state = expected
    assert compiled.n_compiles == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number >= 0"),
        ({"b1": 1.0}, r"b1: expected a number in \[0, 1\)"),
        ({"b3": 1.0}, r"b3: expected a number in \[0, 1\)"),
        (
            {"precondition_frequency": 0},
            "precondition_frequency: expected an integer of at least 1",
        ),
        ({"max_precondition_dim": 0}, "max_precondition_dim: expected an integer of at least 1"),
    ],
)
def test_soap_refuses_invalid_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        optim.soap(**kwargs)
