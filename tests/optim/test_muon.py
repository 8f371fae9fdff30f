"""Test Muon: the effect of orthogonalization on singular values, and the leaves it applies to."""

from __future__ import annotations

import functools

import jax
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import optim
from ftrain.core import tree
from tests.campaign import examples
from tests.optim.cases import PROBLEMS, gradient, random_tree, ulps
from tests.optim.parity import Parity, decays, drawn, fractions, slow, small

sides = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def rows_are_outputs(params):
    """optax takes a matrix as `(in, out)`, torch as `(out, in)`."""
    spec = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    return jax.tree.map(lambda p: spec if p.ndim == 2 else None, params)


TORCH = Parity(
    "muon", "torch",
    drawn(
        momentum=fractions, nesterov=st.booleans(), decay=decays, eps=small,
        adjust=st.sampled_from(["original", "match_rms_adamw"]),
    ),
    lambda h: optim.muon(
        h["rate"], h["momentum"], nesterov=h["nesterov"], weight_decay=h["decay"], eps=h["eps"],
        adjust_lr_fn=h["adjust"],
    ),
    lambda h: functools.partial(
        torch.optim.Muon, lr=h["rate"], momentum=h["momentum"], nesterov=h["nesterov"],
        weight_decay=h["decay"], eps=h["eps"], adjust_lr_fn=h["adjust"],
    ),
    shapes=((33, 5), (5, 33), (8, 8)),
)  # fmt: skip
# Without Nesterov and eps: with it optax corrects the mean for its start at zero and torch does not, and
# its `eps` is added to the norm, where torch's is the least that is divided by.
OPTAX = Parity(
    "muon", "optax",
    drawn(momentum=fractions, b1=fractions, b2=slow, decay=decays, rms=st.booleans()),
    lambda h: optim.muon(
        h["rate"], h["momentum"], nesterov=False, weight_decay=h["decay"], eps=1e-30, ns_dtype=None,
        adjust_lr_fn="match_rms_adamw" if h["rms"] else "original",
        adam_b1=h["b1"], adam_b2=h["b2"], adam_eps=1e-30,
    ),
    lambda h: optax.contrib.muon(
        h["rate"], beta=h["momentum"], nesterov=False, weight_decay=h["decay"], eps=1e-30,
        consistent_rms=0.2 if h["rms"] else None, adam_b1=h["b1"], adam_b2=h["b2"],
        muon_weight_dimension_numbers=rows_are_outputs,
    ),
    shapes=((), (0,), (7,), (33, 5), (5, 33)),
)  # fmt: skip


def matrix(seed, rows, columns, dtype=torch.float64):
    return torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


@given(seeds, sides, sides, st.integers(1, 6))
@settings(max_examples=examples(20, 50))
def test_orthogonalize_changes_only_singular_values(seed, rows, columns, steps):
    """The reference applies the odd polynomial to each singular value of an SVD."""
    m = matrix(seed, rows, columns)
    a, b, c = 3.4445, -4.7750, 2.0315
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    found = optim.orthogonalize(m, steps, ns_dtype=None)
    torch.testing.assert_close(found, u * s @ v, rtol=0, atol=1e-12)


@given(seeds, sides, sides)
@settings(max_examples=20)
def test_orthogonalize_is_invariant_to_scale_and_commutes_with_transposing(seed, rows, columns):
    m = matrix(seed, rows, columns)
    o = optim.orthogonalize(m, ns_dtype=None)
    # The bound: five iterations magnify rounding, by at most 3.4445^5 = 485 at a small value.
    torch.testing.assert_close(optim.orthogonalize(m.mT, ns_dtype=None).mT, o, rtol=0, atol=1e-12)
    torch.testing.assert_close(optim.orthogonalize(1e3 * m, ns_dtype=None), o, rtol=0, atol=1e-12)


def test_orthogonalize_moves_singular_values_close_to_one():
    """For singular values from 0.005 of the largest; in bfloat16 within wider bounds."""
    u, _, v = torch.linalg.svd(matrix(0, 6, 6))
    m = u * torch.tensor([1.0, 0.5, 0.1, 0.05, 0.01, 0.005]) @ v
    for dtype, low, high in ((None, 0.68, 1.21), (torch.bfloat16, 0.6, 1.3)):
        s = torch.linalg.svdvals(optim.orthogonalize(m, ns_dtype=dtype))
        assert s.min() > low
        assert s.max() < high


def test_muon_updates_scalars_and_vectors_like_adamw():
    """Within 1 ulp, because the sign is applied in another place."""
    params = random_tree(0, [(), (7,), (33, 5)], torch.float32, 1.0)
    ours = optim.muon(0.02, adam_learning_rate=1e-2, adam_weight_decay=0.1)
    theirs = optim.adamw(1e-2, weight_decay=0.1, mask=optim.everything)
    state, reference = ours.init(params), theirs.init(params)
    for t in range(5):
        grads = random_tree(t + 1, [(), (7,), (33, 5)], torch.float32, 1.0)
        updates, state = ours.update(grads, state, params)
        expected, reference = theirs.update(grads, reference, params)
        for name in ("p0", "p1"):
            assert ulps(updates[name], expected[name]) <= 1
            assert tree.digest(state.mu[name]) == tree.digest(reference.mu[name])
            assert tree.digest(state.nu[name]) == tree.digest(reference.nu[name])
        assert not torch.allclose(updates["p2"], expected["p2"], rtol=0.1)


def test_muon_flattens_convolution_weights_to_matrices():
    weight = matrix(0, 4, 18, torch.float32)
    optimizer = optim.muon(0.1)
    flat, _ = optimizer.update([weight], optimizer.init([weight]), [weight])
    filters = weight.view(4, 2, 3, 3)
    found, _ = optimizer.update([filters], optimizer.init([filters]), [filters])
    assert torch.equal(found[0].view(4, 18), flat[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_muon_with_default_arguments_reduces_the_loss(dtype):
    """With bfloat16 products, which the table of cases turns off to compare bits."""
    params, loss, steps, falls_to = PROBLEMS["mlp"](dtype)
    optimizer = optim.muon(0.02)
    state, first = optimizer.init(params), loss(params)
    for _ in range(steps):
        updates, state = optimizer.update(gradient(loss, params)[1], state, params)
        params = optim.apply_updates(params, updates)
    assert loss(params) < falls_to * first


def test_muon_stores_no_second_moment_for_matrices():
    params = {"w": torch.ones(30, 20), "b": torch.ones(30)}
    nu = optim.muon(0.1).init(params).nu
    assert {name: tuple(v.shape) for name, v in nu.items()} == {"w": (0,), "b": (30,)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim.muon(-1.0), "learning_rate: expected a finite number >= 0"),
        (lambda: optim.muon(float("nan")), "learning_rate: expected"),
        (lambda: optim.muon(0.1, 1.0), r"momentum: expected a number in \[0, 1\)"),
        (lambda: optim.muon(0.1, ns_steps=0), "ns_steps: expected an integer of at least 1"),
        (lambda: optim.muon(0.1, ns_steps=100), "ns_steps: expected less than 100"),
        (lambda: optim.muon(0.1, ns_coefficients=(1.0, 2.0)), "three numbers"),
        (lambda: optim.muon(0.1, adjust_lr_fn="none"), "'original' or 'match_rms_adamw'"),
        (lambda: optim.muon(0.1, adam_learning_rate=-1.0), "learning_rate: expected"),
        (
            lambda: optim.muon(0.1, orthogonal=optim.everything).init({"b": torch.ones(3)}),
            r"expected only matrices, got True at \['b'\], a parameter of shape \(3,\)",
        ),
        (
            lambda: optim.muon(0.1).update([torch.ones(2, 2)], optim.muon(0.1).init([torch.ones(2, 2)])),
            "`muon`: expected the parameters",
        ),
    ],
)  # fmt: skip
def test_muon_refuses_invalid_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
