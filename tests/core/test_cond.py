"""`cond` and `switch`: eager, compiled and vmapped, with random draws and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from ftrain.core.compile import compile
from tests.compile.cases import apart, same_bytes, tensors
from tests.core.differences import assert_derivative, is_close

KEY = random.key(4)
X = torch.tensor([1.5, -0.5, 2.0])
WEIGHT = torch.tensor([0.3, -0.7, 1.1])


def pieces(x: Tensor) -> Any:
    """Return the result of two branches with captured tensors and trees of several dtypes."""

    def high(x: Tensor) -> Any:
        return {"y": (x * WEIGHT).exp(), "n": (x > 0).sum(), "flag": x > 1}

    def low(x: Tensor) -> Any:
        return {"y": x.flip(0) - WEIGHT, "n": torch.tensor(7), "flag": x < 0}

    return ftrain.cond(x.sum() > 0, high, low, x)


def three(x: Tensor) -> Any:
    index = x.sum().floor().long()
    return ftrain.switch(index, [torch.sin, lambda x: x * x, lambda x: x + WEIGHT], x)


def many(x: Tensor) -> Any:
    return ftrain.switch((x[0] * 2).long(), [lambda x, i=i: x * i for i in range(5)], x)


def nested(x: Tensor) -> Any:
    def inner(x: Tensor) -> Tensor:
        return ftrain.cond(
            x[0] > 1, torch.cos, lambda x: ftrain.switch(x[1].long(), [torch.sin], x), x
        )

    return ftrain.cond(x.sum() > 0, inner, lambda x: inner(-x) * 2, x)


def drawn(x: Tensor) -> Any:
    def high(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) + torch.rand(3)

    before = torch.rand(2)
    y = ftrain.cond(x.sum() > 0, high, lambda x: torch.randn(3) * x, x)
    return before, y, torch.rand(2)


def in_scan(x: Tensor) -> Any:
    def body(c: Tensor, x: Tensor) -> Any:
        y = ftrain.cond(x > 0, lambda: c * torch.rand(()), lambda: c + x)
        return y, y

    return ftrain.scan(body, torch.ones(()), x)


def scan_inside(x: Tensor) -> Any:
    def total(x: Tensor) -> Tensor:
        return ftrain.scan(lambda c, x: (c + x * torch.rand(()), None), torch.zeros(()), x)[0]

    return ftrain.cond(x.sum() > 0, total, lambda x: x.prod(), x)


PROGRAMS = [pieces, three, many, nested, drawn, in_scan, scan_inside]


def keyed(program: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    def run(key: Tensor, x: Tensor) -> Any:
        with random.keyed(key):
            return program(x)

    return run


def row(value: Any, i: int) -> Any:
    return tree.map(lambda leaf: leaf[i], value)


@pytest.mark.parametrize("program", PROGRAMS)
@given(st.data())
@settings(max_examples=3)
def test_cond_results_match_in_eager_compiled_and_vmapped_code(program: Any, data: Any) -> None:
    value = st.floats(-3, 3, width=32)
    xs = torch.tensor(
        data.draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=2, max_size=2))
    )
    run = keyed(program)
    compiled, mapped = compile(run, backend="eager"), torch.vmap(run, (None, 0))
    rows = mapped(KEY, xs)
    assert same_bytes(compile(mapped, backend="eager")(KEY, xs), rows)
    for i, x in enumerate(xs):
        expected = run(KEY, x)
        assert same_bytes(compiled(KEY, x), expected)
        assert same_bytes(row(rows, i), expected)


@given(st.data(), st.booleans(), st.integers(-2, 4))
@settings(max_examples=8)
def test_cond_and_switch_accept_operands_of_any_layout(
    data: Any, predicate: bool, index: int
) -> None:
    x, p = data.draw(tensors()), torch.tensor(predicate)
    chosen = (
        (x, (x == x).sum()) if predicate else (x.flatten().flip(0).view(x.shape), torch.tensor(3))
    )

    def run(p: Tensor, x: Tensor) -> Any:
        turned = ftrain.cond(
            p,
            lambda x: (x, (x == x).sum()),
            lambda x: (x.flatten().flip(0).view(x.shape), torch.tensor(3)),
            x,
        )
        return turned, ftrain.switch(
            torch.tensor(index), [lambda x: x, lambda x: x.clone(), torch.zeros_like], x
        )

    for f in (run, compile(run, backend="eager")):
        found = f(p, x)
        assert same_bytes(found[0], chosen)
        assert same_bytes(found[1], torch.zeros_like(x) if index >= 2 else x)
        assert apart(found, x)


def test_cond_and_switch_with_a_python_predicate_or_index_trace_only_the_chosen_branch() -> None:
    def run(x: Tensor) -> Any:
        return ftrain.cond(False, torch.sin, torch.cos, x), ftrain.switch(
            9, [torch.sin, torch.exp], x
        )

    compiled = compile(run, backend="eager")
    assert same_bytes(compiled(X), (X.cos(), X.exp()))
    assert not any("cond" in node.name for node in compiled.graph(X).graph.nodes)


@pytest.mark.parametrize("compiled", [False, True])
def test_cond_runs_only_the_chosen_branch(compiled: bool) -> None:
    def run(x: Tensor) -> Tensor:
        def fails(x: Tensor) -> Tensor:
            torch.ops.aten._assert_async.msg(x.sum() > 100, "ran the other side")
            return x

        return ftrain.cond(x.sum() > 0, lambda x: x * 2, fails, x)

    f = compile(run, backend="eager") if compiled else run
    assert same_bytes(f(X), X * 2)
    with pytest.raises(RuntimeError, match="ran the other side"):
        f(-X)


# Derivatives.


def smooth(x: Tensor) -> Tensor:
    def high(x: Tensor) -> Tensor:
        return (x * weight).exp().sum()

    def low(x: Tensor) -> Tensor:
        return (x * weight).sin().prod()

    weight = WEIGHT.double() * x.sum()
    return ftrain.cond(x[0] > 0, high, low, x)


def inner_gradient(x: Tensor) -> Tensor:
    def side(x: Tensor) -> Tensor:
        _, slope = ftrain.value_and_grad(lambda x: (x**4).sum())(x)
        return (slope * WEIGHT.double()).sum()

    return ftrain.cond(x[0] > 0, side, lambda x: x.prod(), x)


@pytest.mark.parametrize("f", [smooth, inner_gradient])
@pytest.mark.parametrize(
    ("mode", "sign"), [("eager", 1), ("compiled", 1), ("compiled", -1), ("compiled vmapped", -1)]
)
def test_cond_gradients_to_second_order_match_finite_differences(
    f: Any, mode: str, sign: int
) -> None:
    x = torch.tensor([0.7, -0.4, 1.2], dtype=torch.float64) * sign

    def first(x: Tensor) -> Tensor:
        return ftrain.value_and_grad(f)(x)[1]

    def second(x: Tensor) -> Tensor:
        return ftrain.value_and_grad(lambda x: (first(x) * first(x)).sum())(x)[1]

    def run(g: Callable[[Tensor], Tensor]) -> Tensor:
        mapped = torch.vmap(g) if "vmapped" in mode else g
        inputs = torch.stack([x, -x * 0.5]) if "vmapped" in mode else x
        found = (compile(mapped, backend="eager") if "compiled" in mode else mapped)(inputs)
        return found[0] if "vmapped" in mode else found

    assert_derivative(f, x, run(first))
    assert_derivative(lambda x: (first(x) * first(x)).sum(), x, run(second))


@pytest.mark.parametrize("compiled", [False, True])
def test_cond_forward_mode_matches_reverse_mode(compiled: bool) -> None:
    x, v = torch.tensor([0.7, -0.4, 1.2]).double(), torch.tensor([1.0, -2.0, 0.5]).double()

    def pushed(x: Tensor) -> Tensor:
        return torch.func.jvp(smooth, (x,), (v,))[1]

    found = (compile(pushed, backend="eager") if compiled else pushed)(x)
    assert is_close(found, (ftrain.value_and_grad(smooth)(x)[1] * v).sum())


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_of_a_vmapped_row_ignores_the_cond_branch_that_the_row_did_not_take(
    captured: bool, compiled: bool
) -> None:
    """The slope of sqrt at 0 is infinite, and 0 times infinity would make the gradient NaN."""

    def loss(x: Tensor) -> Tensor:
        if captured:
            return ftrain.cond(x.sum() > 0, lambda: x.sqrt().sum(), lambda: x.square().sum())
        return ftrain.cond(x.sum() > 0, lambda x: x.sqrt().sum(), lambda x: x.square().sum(), x)

    xs = torch.tensor([[0.0, 0.0], [4.0, 9.0], [-1.0, -2.0]])
    rows = torch.vmap(ftrain.value_and_grad(loss))
    found = (compile(rows, backend="eager") if compiled else rows)(xs)
    for i, x in enumerate(xs):
        assert same_bytes(row(found, i), ftrain.value_and_grad(loss)(x))


# Draws.


def test_each_cond_branch_and_call_draws_from_a_distinct_key() -> None:
    def next_keys(p: bool) -> list[Any]:
        with random.keyed(KEY):
            branch = torch.tensor(p)
            inside = [
                ftrain.cond(branch, random.next_key, lambda: random.next_key().clone())
                for _ in range(2)
            ]
            inside.append(ftrain.switch(branch.long(), [random.next_key, random.next_key]))
            return [*inside, random.next_key()]

    taken, left = next_keys(True), next_keys(False)
    assert same_bytes(taken[-1], left[-1])
    assert len({tuple(k.tolist()) for k in [*taken, *left]}) == 7


def test_draws_outside_cond_do_not_depend_on_cond_calls() -> None:
    layer = nn.Dropout(0.5)

    def run(choices: int) -> Any:
        with random.keyed(KEY):
            first = torch.rand(3), layer(X)
            for _ in range(choices):
                ftrain.cond(X.sum() > 0, lambda: layer(X) + torch.rand(3), lambda: X)
            return first, torch.rand(3), layer(X)

    assert same_bytes(run(2), run(0))


class Gate(nn.Module):
    """Model that chooses a layer by its input; one branch has dropout under checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.dropout = nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        def side(x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(
                lambda x: torch.tanh(self.dropout(self.a(x))), x, use_reentrant=False
            )

        return ftrain.cond(x.sum() > 0, side, self.b, x)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_a_model_with_cond_gives_equal_results_eager_compiled_and_vmapped(
    accumulate: int,
) -> None:
    def loss_fn(model: Any, x: Tensor) -> Tensor:
        return model(x).square().mean()

    steps = ftrain.make_steps(Gate, loss_fn, optim.sgd(0.1), accumulate=accumulate)
    state = steps.init_state(0)
    step = compile(steps.train_step, backend="eager")
    states = tree.map(lambda leaf: torch.stack([leaf, leaf]), state).replace(
        rng=random.split(KEY, 2)
    )
    for sign in (1, -1):
        batch = sign * torch.linspace(-1, 2, 12).view(4, 3)
        expected, _ = steps.train_step(state, batch)
        for p, q in zip(tree.leaves(step(state, batch)[0]), tree.leaves(expected), strict=True):
            # Sums of products of other layouts; another mask is off by 1e-2.
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        ensemble, _ = torch.vmap(steps.train_step, (0, None))(states, batch)
        single, _ = steps.train_step(state.replace(rng=states.rng[1]), batch)
        for p, q in zip(tree.leaves(row(ensemble, 1)), tree.leaves(single), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.inductor
def test_inductor_compiled_cond_matches_eager() -> None:
    def run(key: Tensor, x: Tensor) -> Any:
        with random.keyed(key):
            return ftrain.value_and_grad(lambda x: drawn(x)[1].square().sum())(x)

    compiled = compile(run)
    for x in (X, -X):
        for a, b in zip(compiled(KEY, x), run(KEY, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # fused sums of values below 10


# Errors.

YES = torch.tensor(True)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: ftrain.cond(X > 0, torch.sin, torch.cos, X), ValueError, "0-d, got bool[3]"),
        (
            lambda: ftrain.cond(X.sum(), torch.sin, torch.cos, X),
            TypeError,
            "bool tensor, got float32[]",
        ),
        (lambda: ftrain.cond(1, torch.sin, torch.cos, X), TypeError, "got an int"),
        (
            lambda: ftrain.cond(YES, torch.sin, torch.cos, 1.5),
            TypeError,
            "operands[0]: expected a tensor, got float 1.5",
        ),
        (
            lambda: ftrain.cond(YES, lambda x: 2, torch.cos, X),
            TypeError,
            "output of true_fn: expected a tensor, got int 2",
        ),
        (lambda: ftrain.switch(YES, [torch.sin], X), TypeError, "integer tensor, got bool[]"),
        (
            lambda: ftrain.switch(X.sum(), [torch.sin], X),
            TypeError,
            "integer tensor, got float32[]",
        ),
        (lambda: ftrain.switch(X.long(), [torch.sin], X), ValueError, "0-d, got int64[3]"),
        (lambda: ftrain.switch(True, [torch.sin], X), TypeError, "got a bool"),
        (lambda: ftrain.switch(0, [], X), ValueError, "at least one branch"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_cond_and_switch_refuse_invalid_arguments_and_name_their_path(
    call: Any, error: Any, said: str, traced: bool
) -> None:
    with pytest.raises(error) as caught:
        (compile(lambda: call(), backend="eager") if traced else call)()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda x: {"a": x[:2]}, "at ['a'], got float32[3] and float32[2]"),
        (lambda x: {"a": x.double()}, "at ['a'], got float32[3] and float64[3]"),
        (lambda x: {"b": x}, "differ in structure, at the root: ['a'] is missing"),
        (lambda x: (x,), "differ in structure"),
    ],
)
@pytest.mark.parametrize("mode", ["compiled", "vmapped"])
def test_cond_refuses_branches_with_different_output_structures(
    other: Any, said: str, mode: str
) -> None:
    def run(p: Tensor, x: Tensor) -> Any:
        return ftrain.cond(p, lambda x: {"a": x}, other, x)

    mapped = torch.vmap(run, (0, None))
    f = compile(run, backend="eager") if mode == "compiled" else mapped
    with pytest.raises(ValueError, match="cond: ") as caught:
        f(YES if mode == "compiled" else torch.stack([YES, ~YES]), X)
    assert said in str(caught.value)
