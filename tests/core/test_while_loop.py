"""`while_loop`, with as many iterations as each row needs: eager, compiled and vmapped."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

import ftrain
from ftrain import random
from ftrain.core import tree
from ftrain.core.compile import compile
from tests.compile.cases import apart, same_bytes

KEY = random.key(6)
WEIGHT = torch.tensor([0.5, -0.25])


def grown(x: Tensor, limit: Tensor) -> Any:
    """Loop with captured tensors and a carry of several dtypes, one leaf unchanged."""

    def body(carry: Any) -> Any:
        x = carry["x"] * 1.5 + WEIGHT
        return {"x": x, "n": carry["n"] + 1, "kept": carry["kept"], "big": x > 2}

    start = {"x": x, "n": torch.tensor(0), "kept": limit, "big": x > 2}
    return ftrain.while_loop(lambda carry: carry["x"].abs().sum() < limit, body, start)


def drawn(x: Tensor, limit: Tensor) -> Any:
    """Loop with draws in its condition and body, and before and after it."""

    def goes_on(carry: Any) -> Tensor:
        return (carry[0].sum() < limit) & (torch.rand(()) < 0.9)

    def body(carry: Any) -> Any:
        x, drawn = carry
        return x + F.dropout(torch.ones(2)) + torch.rand(2), drawn + torch.randn(())

    before = torch.rand(2)
    return before, ftrain.while_loop(goes_on, body, (x, torch.zeros(()))), torch.rand(2)


def nested(x: Tensor, limit: Tensor) -> Any:
    """Loop in a loop, with a cond and a scan in the inner one."""

    def inner(x: Tensor) -> Tensor:
        def body(x: Tensor) -> Tensor:
            x = ftrain.cond(x[0] > 1, lambda x: x + torch.rand(()), lambda x: x * 2 + 0.5, x)
            return ftrain.scan(lambda c, w: (c + w.abs(), None), x, WEIGHT)[0]

        return ftrain.while_loop(lambda x: x.sum() < limit / 2, body, x)

    return ftrain.while_loop(lambda x: x.sum() < limit, lambda x: inner(x.abs()) + 0.5, x)


LOOPS = [grown, drawn, nested]


@pytest.mark.parametrize("loop", LOOPS)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2),
    st.lists(st.floats(-1, 30, width=32), min_size=3, max_size=3),
)
@settings(max_examples=3)
def test_while_loop_results_match_in_eager_compiled_and_vmapped_code(
    loop: Any, x: Any, limits: Any
) -> None:
    def run(key: Tensor, x: Tensor, limit: Tensor) -> Any:
        with random.keyed(key):
            return loop(x, limit)

    x, limits = torch.tensor(x), torch.tensor(limits)
    mapped, compiled = torch.vmap(run, (None, None, 0)), compile(run, backend="eager")
    rows = mapped(KEY, x, limits)
    assert same_bytes(compile(mapped, backend="eager")(KEY, x, limits), rows)
    for i, limit in enumerate(limits):
        expected = run(KEY, x, limit)
        assert same_bytes(compiled(KEY, x, limit), expected)
        assert same_bytes(tree.map(lambda leaf, i=i: leaf[i], rows), expected)


def test_each_row_of_a_doubly_vmapped_while_loop_ends_after_its_own_number_of_iterations() -> None:
    def run(key: Tensor, x: Tensor, limit: Tensor) -> Any:
        with random.keyed(key):
            return drawn(x, limit)

    keys, x, limits = random.split(KEY, 2), torch.ones(2), torch.tensor([3.0, 20.0, 0.0])
    mapped = torch.vmap(torch.vmap(run, (None, None, 0)), (0, None, None))
    rows = mapped(keys, x, limits)
    assert same_bytes(compile(mapped, backend="eager")(keys, x, limits), rows)
    for i, key in enumerate(keys):
        for j, limit in enumerate(limits):
            found = tree.map(lambda leaf, i=i, j=j: leaf[i, j], rows)
            assert same_bytes(found, run(key, x, limit))


def test_while_loop_of_zero_iterations_returns_a_copy_of_the_carry() -> None:
    def run(x: Tensor) -> Any:
        return ftrain.while_loop(lambda c: c[0].sum() < 0, lambda c: (c[1], c[0]), (x, x))

    x = torch.ones(3)
    for f in (run, compile(run, backend="eager")):
        assert same_bytes(f(x), (x, x))
        assert apart(f(x), x)


def test_each_while_loop_iteration_draws_from_a_distinct_key() -> None:
    def body(carry: Any) -> Any:
        n, keys = carry
        found = torch.stack([random.next_key(), random.next_key()])
        return n + 1, torch.cat([keys[1:], found[None]])

    with random.keyed(KEY):
        loops = [
            ftrain.while_loop(
                lambda c: c[0] < 3, body, (torch.tensor(0), torch.zeros(3, 2, 2).int())
            )[1]
            for _ in range(2)
        ]
        outside = random.next_key()
    found = [tuple(key) for key in torch.cat(loops).view(-1, 2).tolist()]
    assert len({*found, tuple(outside.tolist())}) == 2 * 3 * 2 + 1


def newton(x: Tensor) -> Tensor:
    """Return the cube root of a detached tensor by Newton's method in a loop."""

    def step(y: Tensor) -> Tensor:
        _, slope = ftrain.value_and_grad(lambda y: ((y**3 - x.detach()) ** 2).sum() / 2)(y)
        return y - slope / (9 * y**4)

    def is_off(y: Tensor) -> Tensor:
        return ((y**3 - x.detach()).abs() > 1e-3).any()

    return ftrain.while_loop(is_off, step, torch.full_like(x, 2.0))


@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped", "compiled vmapped"])
def test_while_loop_over_detached_tensors_works_in_a_differentiated_loss(mode: str) -> None:
    def run(x: Tensor) -> Any:
        return ftrain.value_and_grad(lambda x: (x * newton(x)).sum())(x)

    x = torch.tensor([8.0, 27.0])
    f = torch.vmap(run) if "vmapped" in mode else run
    f = compile(f, backend="eager") if "compiled" in mode else f
    value, grad = f(torch.stack([x, x])) if "vmapped" in mode else f(x)
    torch.testing.assert_close(grad.view(-1, 2)[0], torch.tensor([2.0, 3.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        value.view(-1)[0], torch.tensor(8 * 2.0 + 27 * 3.0), rtol=1e-4, atol=0
    )


def test_while_loop_supports_forward_mode() -> None:
    def f(x: Tensor) -> Tensor:
        return ftrain.while_loop(lambda c: c.detach().sum() < 20, lambda c: c * x, x)

    found = torch.func.jvp(f, (torch.tensor([2.0]),), (torch.tensor([1.0]),))
    assert same_bytes(found, (torch.tensor([32.0]), torch.tensor([80.0])))  # x^5 and 5 x^4


@pytest.mark.inductor
def test_inductor_compiled_while_loop_matches_eager() -> None:
    def run(key: Tensor, x: Tensor, limit: Tensor) -> Any:
        with random.keyed(key):
            return drawn(x, limit)

    compiled = compile(run)
    for limit in (torch.tensor(-9.0), torch.tensor(20.0)):
        expected = tree.leaves(run(KEY, torch.ones(2), limit))
        for a, b in zip(tree.leaves(compiled(KEY, torch.ones(2), limit)), expected, strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-6, atol=1e-6
            )  # rounding; a draw is off by 0.01


def forever(x: Any) -> Tensor:
    return torch.tensor(True)


def ones() -> Tensor:
    return torch.ones(3)


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        (
            (lambda x: x > 0, torch.sin, ones),
            ValueError,
            "cond_fn to return a 0-d tensor, got bool[3]",
        ),
        ((torch.sum, torch.sin, ones), TypeError, "return a bool tensor, got float32[]"),
        ((lambda x: True, torch.sin, ones), TypeError, "return a bool tensor, got bool"),
        (
            (forever, lambda x: x[:2], ones),
            ValueError,
            "expected body to return carry as float32[3], as in its input, got float32[2]",
        ),
        ((forever, lambda x: {"a": x}, ones), ValueError, "differs in structure"),
        ((forever, lambda x: 3.0, ones), TypeError, "carry: expected a tensor, got float 3.0"),
        ((forever, torch.sin, lambda: 2), TypeError, "init: expected a tensor, got int 2"),
        (
            (forever, torch.sin, lambda: ones().requires_grad_()),
            ValueError,
            "init requires a gradient",
        ),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_while_loop_refuses_invalid_arguments_and_names_their_path(
    args: Any, error: Any, said: str, traced: bool
) -> None:
    def run() -> Any:
        return ftrain.while_loop(args[0], args[1], args[2]())

    with pytest.raises(error) as caught:
        (compile(run, backend="eager") if traced else run)()
    assert said in str(caught.value)


@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped", "compiled vmapped", "func"])
def test_gradient_through_while_loop_raises_an_error_that_suggests_scan(mode: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return ftrain.while_loop(lambda c: c.sum() < 9, lambda c: c * 2 + x, x.detach()).sum()

    grad = torch.func.grad(loss) if mode == "func" else ftrain.value_and_grad(loss)
    f = torch.vmap(grad) if "vmapped" in mode else grad
    f = compile(f, backend="eager") if "compiled" in mode else f
    with pytest.raises(
        ValueError, match=r"carry requires a gradient.*Use ftrain.scan with ftrain.cond"
    ):
        f(torch.ones(2, 3) if "vmapped" in mode else ones())
