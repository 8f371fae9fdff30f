"""Gradients through `scan`, and gradients inside its body."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import testing
from ftrain.core.errors import TraceError
from tests.core.differences import (
    MODES,
    RATE,
    W,
    assert_derivative,
    gradient,
    is_close,
    quartic,
    run,
)


def descended(p: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """Return the result of three gradient descent steps on `quartic` in a scan."""

    def body(p: torch.Tensor, _: None) -> Any:
        value, grad = ftrain.value_and_grad(quartic)(p)
        return p - rate * grad, value

    last, values = ftrain.scan(body, p, length=3)
    return (last**2).sum() + values.sum()


@MODES
def test_maml_gradient_through_scan_matches_finite_differences(mode: str) -> None:
    """Differentiate with respect to the initial params, to second order."""
    f = lambda p: descended(p, RATE)  # noqa: E731
    for _ in range(2):
        assert_derivative(f, W, run(gradient(f), mode)(W))
        f = (lambda g: lambda p: (g(p) * torch.tensor([1.0, 2.0])).sum())(gradient(f))


@MODES
def test_learning_rate_hypergradient_through_scan_matches_finite_differences(mode: str) -> None:
    """Differentiate with respect to a tensor captured by the body, to third order."""
    f = lambda rate: descended(W, rate)  # noqa: E731
    for _ in range(3):
        assert_derivative(f, RATE, run(gradient(f), mode)(RATE))
        f = gradient(f)


def test_maml_gradient_with_an_inner_gradient_inside_scan_equals_known_values() -> None:
    w = torch.tensor([0.3, -0.7])

    def f(p: torch.Tensor) -> torch.Tensor:
        def body(p: torch.Tensor, _: None) -> Any:
            value, grad = ftrain.value_and_grad(quartic)(p)
            return p - 0.1 * grad, value

        return (ftrain.scan(body, p, length=3)[0] ** 2).sum()

    expected = torch.tensor([0.3939, -0.1611])
    for mode in ("eager", "compiled"):
        torch.testing.assert_close(run(gradient(f), mode)(w), expected, rtol=0, atol=5e-5)


class Sign(torch.autograd.Function):
    """Straight-through sign, whose derivative differs from that of its operators."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class Through(torch.autograd.Function):
    """Identity of x whose gradient goes to another tensor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return None, grad * 3


def custom_backward(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * Sign.apply(w)


def no_grad_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        half = w * 0.5
    return c * w + half


def detached_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * w.detach() + w


def custom_backward_to_a_captured_tensor(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return Through.apply(c * 2, w)


def autograd_inside(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    x = c.clone() if c.requires_grad else c.clone().requires_grad_()
    (grad,) = torch.autograd.grad((x**3 * w).sum(), x, create_graph=True)
    return c * 0.5 + grad * 0.1


def own_leaf(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return c * w + torch.tensor(0.0, requires_grad=True) * c


BODIES = [
    custom_backward,
    no_grad_inside,
    detached_inside,
    custom_backward_to_a_captured_tensor,
    autograd_inside,
    own_leaf,
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("capture", ["leaf", "both"])
def test_traced_scan_gradients_match_eager_for_carry_and_captured_tensors(
    body: Any, capture: str
) -> None:
    """One captured tensor may be computed from another."""

    def f(p: Any) -> torch.Tensor:
        start, w = p
        doubled = w * w

        def step(c: torch.Tensor, x: torch.Tensor) -> Any:
            c = body(c, w)
            if capture == "both":
                c = body(c, doubled)
            return c + x, c.sum()

        last, ys = ftrain.scan(step, start, torch.ones(3, 2, dtype=torch.float64) * w.sum())
        return last.sum() + (ys**2).sum()

    p = (W * 2, W)
    assert is_close(run(gradient(f), "compiled")(p), gradient(f)(p))
    second = gradient(lambda p: sum((g**2).sum() for g in gradient(f)(p)))
    if capture == "leaf" and body is not custom_backward_to_a_captured_tensor:  # not a derivative
        assert is_close(run(second, "compiled")(p), second(p))


def test_scan_refuses_to_capture_both_input_and_result_of_a_custom_function() -> None:
    """The custom backward would be called with zeros, which it may turn into NaN."""

    def f(w: torch.Tensor) -> torch.Tensor:
        signs = Sign.apply(w)
        return ftrain.scan(lambda c, _: (c * signs + w, None), w * 2, length=2)[0].sum()

    with pytest.raises(TraceError, match="captures both a result of SignBackward, .* and a tensor"):
        run(gradient(f), "compiled")(W)


def test_constant_outputs_of_a_traced_scan_require_no_gradient() -> None:
    def f(w: torch.Tensor) -> torch.Tensor:
        last, ys = ftrain.scan(lambda c, _: ((c[0] * w, c[1] + 1), c[0].detach()), (w, W), length=2)
        assert [x.requires_grad for x in (*last, ys)] == [True, False, False]
        return last[0].sum()

    run(gradient(f), "compiled")(W)
    gradient(f)(W)


def test_scan_saves_no_carries_unless_it_is_differentiated() -> None:
    def f(w: torch.Tensor) -> Any:
        return ftrain.scan(lambda c, _: (c + gradient(quartic)(w), None), w * 0, length=5)

    graph = ftrain.compile(f, backend="eager").graph(W).graph
    (loop,) = (n for n in graph.nodes if n.op == "call_function" and n.name.startswith("scan"))
    body = getattr(graph.owning_module, loop.args[0].target).graph
    assert len(body.output_node().args[0]) == 2  # the carry, and one that inductor needs beside it


class Encoder(nn.Module):
    """Module with a scan whose body has weights, draws, autocast and a gradient."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.inner, self.drop, self.autocast = nn.Linear(2, 2), nn.Dropout(0.5), autocast

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def body(c: torch.Tensor, x: torch.Tensor) -> Any:
            grad = ftrain.value_and_grad(lambda q: (F.dropout(q, 0.3) ** 3).sum())(c)[1]
            c = torch.tanh(self.drop(self.inner(c))).to(c.dtype) + F.dropout(x, 0.5) + 0.1 * grad
            return c, c.sum()

        with torch.autocast("cpu", enabled=self.autocast):
            return ftrain.scan(body, x[0], x)[1].sum()


@pytest.mark.parametrize("autocast", [False, True])
def test_traced_scan_in_a_module_matches_eager_gradients_to_second_order(autocast: bool) -> None:
    """The backward pass reruns the scan body after the call of the model has returned."""
    dtype = torch.float32 if autocast else torch.float64
    apply = ftrain.bind(lambda: nn.Sequential(Encoder(autocast)).to(dtype))
    params, buffers = apply.init(ftrain.random.key(0))
    x = torch.linspace(-1, 1, 6, dtype=dtype).view(3, 2)

    def f(params: Any) -> torch.Tensor:
        out: torch.Tensor = apply(params, buffers, ftrain.random.key(1), x)[0]
        return out

    second = gradient(lambda p: sum((g**2).sum() for g in gradient(f)(p).values()))
    for g in (gradient(f), second):
        # In bfloat16 autocast, the order in which sums of gradients are rounded differs.
        assert is_close(run(g, "compiled")(params), g(params), 3e-2 if autocast else 1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_a_tensor_captured_by_scan_is_within_its_documented_error_bound(
    length: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(length)
    w, start = (torch.randn(50, dtype=dtype, generator=draw) for _ in range(2))
    xs = torch.randn(length, 50, dtype=dtype, generator=draw)
    ones = torch.ones(length, 50, dtype=dtype)

    def once(w: torch.Tensor) -> torch.Tensor:
        return ftrain.scan(lambda c, x: (torch.sin(c * w) + x, None), start, xs)[0].sum()

    def by_factors(
        first: torch.Tensor, second: torch.Tensor, outside: torch.Tensor
    ) -> torch.Tensor:
        body = lambda c, x: (torch.sin(c * w * x[1]) + x[0] * w * x[2], None)  # noqa: E731
        return ftrain.scan(body, start, (xs, first, second))[0].sum() + (outside**3).sum()

    def often(w: torch.Tensor) -> torch.Tensor:
        body = lambda c, x: (torch.sin(c * w) + x * w, None)  # noqa: E731
        return ftrain.scan(body, start, xs)[0].sum() + (w**3).sum()

    gradient_once = lambda w: ftrain.value_and_grad(once)(w)[1]  # noqa: E731
    testing.assert_same_bits(ftrain.compile(gradient_once, backend="eager")(w), gradient_once(w))
    pulled = ftrain.value_and_grad(often)
    values, grads = zip(pulled(w), ftrain.compile(pulled, backend="eager")(w), strict=True)
    testing.assert_same_bits(*values)
    # Each use of w by a factor of its own, so that the gradients by these are the terms, times w.
    factors = ftrain.value_and_grad(lambda x: by_factors(*x))((ones, ones, w))[1]
    terms = (factors[0].abs() + factors[1].abs()).sum(0) / w.abs() + factors[2].abs()
    bound = (2 * length + 1) * torch.finfo(dtype).eps * terms
    assert bool(((grads[0] - grads[1]).abs() <= bound).all())


@pytest.mark.parametrize("zero", [0.0, -0.0, complex(-0.0, 0.0)], ids=str)
def test_traced_scan_keeps_the_sign_of_a_gradient_that_is_zero(zero: complex) -> None:
    w = torch.ones(2, dtype=torch.complex128 if isinstance(zero, complex) else torch.float64)
    factor = torch.full_like(w, zero)

    def value(w: torch.Tensor) -> torch.Tensor:
        _, rows = ftrain.scan(lambda c, _: (c, w), torch.zeros(()), length=1)
        product = rows[0] * factor.conj()
        return product.real.sum()

    f = ftrain.value_and_grad(value)
    testing.assert_same_bits(ftrain.compile(f, backend="eager")(w), f(w))


@MODES
@pytest.mark.parametrize("inner", ["scan", "cond", "kept leaf"])
def test_gradient_of_a_gradient_by_a_constant_inside_scan_matches_differences(
    mode: str, inner: str
) -> None:
    """The leaf of the inner gradient is made in the body, and still referenced after it."""
    kept = []

    def value(a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        if inner == "scan":
            step = lambda p, _: (p - c * a.sin() * p.cos(), None)  # noqa: E731
            return (ftrain.scan(step, a, length=2)[0] ** 2).sum()
        sides = (lambda: (a * c).sin().sum(), lambda: (a - c).cos().sum())
        return ftrain.cond(a.sum() > 0, *sides)

    def by_a_kept_leaf(c: torch.Tensor) -> torch.Tensor:
        a = RATE.detach().expand(2).clone().requires_grad_()
        kept.append(a)
        return torch.autograd.grad((a * c).sin().sum(), a, create_graph=True)[0]

    def body(c: torch.Tensor, _: None) -> Any:
        if inner == "kept leaf":
            return c + by_a_kept_leaf(c), None
        return c + ftrain.value_and_grad(lambda a: value(a, c))(RATE.detach().expand(2))[1], None

    def f(c: torch.Tensor) -> torch.Tensor:
        return (ftrain.scan(body, c, length=2)[0] ** 2).sum()

    assert_derivative(f, W, run(gradient(f), mode)(W))
