"""`scan` equals a Python loop byte for byte, and is one operator in a graph at any length."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.errors import ImpureFunctionError
from ftrain.core.scan import scan
from tests.compile.cases import apart, same_bytes, tensors

WEIGHT = torch.linspace(-1, 1, 9).view(3, 3)


def recurrent(carry, xs):
    """Scan with a captured constant, dicts, and an output equal to the carry."""
    return scan(lambda c, x: ({"h": torch.tanh(c["h"] @ WEIGHT + x)}, c["h"]), {"h": carry}, xs)


def accumulate(carry, xs):
    """Scan with gradients in the body with respect to a computed tensor."""
    weight = WEIGHT * carry.sum()

    def body(total, x):
        with torch.enable_grad():
            w = weight.detach().requires_grad_()
            loss = torch.tanh(x @ w).square().sum()
            (grad,) = torch.autograd.grad(loss, w)
        return total + grad, loss.detach()

    return scan(body, torch.zeros(3, 3), xs)


def through_time(carry, xs):
    """Return gradients through the whole scan."""
    with torch.enable_grad():
        w = WEIGHT.clone().requires_grad_()
        last, _ = scan(lambda h, x: (torch.tanh(h @ w + x), None), carry, xs)
        return torch.autograd.grad(last.square().sum(), w)


def nested(carry, xs):
    def outer(c, x):
        scale = c * 2.0
        return scan(lambda d, y: (d + y * scale.sum(), d), c, x.unsqueeze(0).expand(2, 3))

    return scan(outer, carry, xs)


def literal(carry, xs):
    return scan(lambda c, _: (c * 0.5 + torch.tensor([1.0, 2.0, 3.0]), c), carry, length=len(xs))


def no_carry(carry, xs):
    return scan(lambda c, x: (c, {"x": x, "twice": (x, x), "sum": x.sum()}), (), xs)


def captured_start(carry, xs):
    """Scan whose initial carry is captured as well, and used for two carries."""
    start = carry * 1.5

    def body(c, x):
        return (c[0] * start + x, c[1] + c[0]), c[1]

    return scan(body, (start, start), xs)


def slices(n):
    return tensors((n, 3), torch.float32)


LOOPS = [recurrent, accumulate, through_time, nested, literal, no_carry, captured_start]


@pytest.mark.parametrize("loop", LOOPS)
@given(carry=tensors((3,), torch.float32), xs=st.integers(1, 5).flatmap(slices))
@example(carry=torch.tensor([-1.0, 0.0, 2.0]), xs=torch.tensor([[4.0, -4.0, -9.0]]))
@settings(max_examples=3)
def test_traced_scan_equals_the_eager_loop_bit_for_bit(loop, carry, xs):
    compiled = compile(loop, backend="eager")
    found = compiled(carry, xs)
    assert apart(found, carry, xs)
    assert same_bytes(found, loop(carry, xs))
    scans = [n for n in compiled.graph(carry, xs).graph.nodes if n.name.startswith("scan")]
    assert sum(node.op == "call_function" for node in scans) == 1 + (loop is through_time)


@pytest.mark.inductor
def test_inductor_compiled_scans_match_the_eager_loops():
    """All loops are in one program, because each program takes seconds to compile."""

    def loops(carry, xs):
        return [loop(carry, xs) for loop in (recurrent, accumulate, captured_start)]

    carry, xs = torch.linspace(0, 1, 3), torch.linspace(-1, 1, 12).view(4, 3)
    found, expected = compile(loops)(carry, xs), loops(carry, xs)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        # Inductor's tanh and fused sums differ from ATen's by a few ulp of values below 4.
        torch.testing.assert_close(a, b, rtol=0, atol=4e-6)


def test_scan_graph_size_does_not_depend_on_length():
    def size(n):
        graph = compile(accumulate, backend="eager").graph(torch.ones(3), torch.ones(n, 3)).graph
        return len(graph.nodes)

    assert size(2) == size(50)


def test_compiled_vmap_of_scan_equals_eager_vmap():
    mapped = torch.func.vmap(recurrent)
    carry, xs = torch.randn(2, 3), torch.randn(2, 4, 3)
    assert same_bytes(compile(mapped, backend="eager")(carry, xs), mapped(carry, xs))


def passes_through(carry, xs):
    """Scan whose body returns inputs unchanged, sliced, captured, viewed and duplicated."""
    weight = carry * 2
    start = {
        "same": carry,
        "slice": xs[0] * 0,
        "captured": carry + 0,
        "a": carry + 0,
        "b": carry + 0,
    }

    def body(c, x):
        new = c["a"] + x
        return {
            "same": c["same"].view(-1),
            "slice": x,
            "captured": weight,
            "a": new,
            "b": new,
        }, None

    last, _ = scan(body, start, xs)
    return last, weight


@pytest.mark.parametrize("n", [1, 3])
def test_scan_copies_values_that_its_body_returns_unchanged(n):
    carry, xs = torch.ones(3), torch.arange(3.0 * n).view(n, 3)
    found, weight = passes_through(carry, xs)
    assert apart(found, weight, carry, xs)
    assert same_bytes(found, compile(passes_through, backend="eager")(carry, xs)[0])
    again, _ = torch.func.vmap(passes_through)(torch.ones(2, 3), torch.ones(2, n, 3))
    assert apart(again)
    assert scan(lambda c, x: (c, None), carry, xs)[0].data_ptr() != carry.data_ptr()


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        ((lambda c, x: (c + 1, x), {"n": torch.tensor(0)}, torch.ones(2)), TypeError, ""),
        (
            (lambda c, x: ({"n": c["n"] * 0.5}, x), {"n": torch.tensor(0)}, torch.ones(2)),
            ValueError,
            "expected body to return carry['n'] as int64[], as in its input, got float32[]",
        ),
        (
            (lambda c, x: ({"m": c["n"]}, x), {"n": torch.tensor(0)}, torch.ones(2)),
            ValueError,
            "at the root: ['n'] is missing",
        ),
        (
            (lambda c, x: c, torch.tensor(0), torch.ones(2)),
            TypeError,
            "expected body to return a tuple (carry, y), got",
        ),
        (
            (lambda c, x: (c, 3), torch.tensor(0), torch.ones(2)),
            TypeError,
            "y: expected a tensor, got int 3",
        ),
        (
            (lambda c, x: (c, x), torch.tensor(0), {"a": torch.ones(2), "b": torch.ones(3)}),
            ValueError,
            "xs['a'] has 2, xs['b'] has 3",
        ),
        ((lambda c, x: (c, x), torch.tensor(0), torch.tensor(1)), ValueError, "0-d"),
        ((lambda c, x: (c, x), torch.tensor(0), torch.ones(0)), ValueError, "at least one"),
        ((lambda c, x: (c, x), torch.tensor(0)), ValueError, "expected xs or length, got neither"),
        ((lambda c, x: (c, x), 0, torch.ones(2)), TypeError, "carry: expected a tensor, got int 0"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_scan_refuses_invalid_arguments_and_names_their_path(args, error, said, traced):
    body, carry, *rest = args

    def run(carry, *rest):
        return scan(body, carry, *rest)

    with pytest.raises(error) as caught:
        (compile(run, backend="eager") if traced else run)(carry, *rest)
    assert said in str(caught.value)


def test_scan_body_that_writes_to_its_carry_raises():
    with pytest.raises(ImpureFunctionError, match="the tensor `carry` was changed in place"):
        compile(lambda c, xs: scan(lambda c, x: (c.add_(x), x), c, xs), backend="eager")(
            torch.tensor(0.0), torch.ones(3)
        )
