"""`implicit` and its solvers against closed forms, unrolled training and finite differences."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.testing import assert_same_bits
from ftrain.transforms import conjugate_gradients, implicit, neumann, unroll
from tests.transforms.unrolled import difference, relative


def system(seed: int, n: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return a product with a symmetric matrix of eigenvalues in [0.5, 2.5], the matrix, a vector."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=g, dtype=torch.float64)
    spread = a @ a.T
    a = torch.eye(n, dtype=torch.float64) / 2 + 2 * spread / torch.linalg.matrix_norm(spread, 2)
    b = torch.randn(n, generator=g, dtype=torch.float64)

    def product(x: Any) -> Any:
        flat = a @ torch.cat([x["head"], x["tail"]])
        return {"head": flat[:1], "tail": flat[1:]}

    return product, a, b


@pytest.mark.parametrize(
    ("size", "dtype", "rtol"),
    [(1e-25, torch.float32, 1e-4), (1e25, torch.float32, 1e-4), (1e3, torch.float16, 1e-2)],
)
def test_conjugate_gradients_solve_systems_whose_squared_norm_overflows_or_underflows(
    size: float, dtype: torch.dtype, rtol: float
) -> None:
    right_side = torch.full((3,), size, dtype=dtype)
    scales = torch.tensor([1.0, 2.0, 4.0], dtype=dtype)
    found = conjugate_gradients(lambda x: scales * x, right_side, iterations=5)
    torch.testing.assert_close(found, right_side / scales, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_conjugate_gradients_return_nan_for_a_right_side_that_is_not_finite(odd: float) -> None:
    found = conjugate_gradients(lambda x: x, torch.tensor([1.0, odd]), iterations=5)
    assert found.isnan().all()


@pytest.mark.parametrize("iterations", [3, 12])
def test_conjugate_gradients_are_differentiable_after_convergence(iterations: int) -> None:
    scales = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    for start in (torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)):
        b = start.requires_grad_()
        x = conjugate_gradients(lambda v: scales * v, b, iterations=iterations)
        (found,) = torch.autograd.grad(x.sum(), b)
        assert found.isfinite().all()
        if start.any():
            torch.testing.assert_close(found, 1 / scales)


@given(st.integers(0, 99), st.integers(2, 6), st.sampled_from([0.0, 0.3]))
@settings(max_examples=10)
def test_solvers_equal_a_dense_solution(seed: int, n: int, damping: float) -> None:
    product, a, b = system(seed, n)
    damped = a + damping * torch.eye(n, dtype=torch.float64)
    expected = torch.linalg.solve(damped, b)
    right = {"head": b[:1], "tail": b[1:]}
    found = [conjugate_gradients(product, right, iterations=2 * n, damping=damping)]
    if not damping:
        found.append(neumann(product, right, terms=200, step_size=0.5))
    for each in found:
        assert relative(torch.cat([each["head"], each["tail"]]), expected) < 1e-8


def test_conjugate_gradients_return_zero_for_a_right_hand_side_of_zero() -> None:
    assert_same_bits(conjugate_gradients(lambda x: x, torch.zeros(2), iterations=3), torch.zeros(2))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_conjugate_gradients_return_nan_for_a_product_that_is_nan(iterations: int) -> None:
    calls = []

    def product(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return (
            x * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
            if len(calls) < iterations
            else x * torch.nan
        )

    found = conjugate_gradients(product, torch.ones(5), iterations=iterations)
    assert len(calls) == iterations
    assert found.isnan().all()


SOLVERS = {
    "conjugate gradients": functools.partial(conjugate_gradients, iterations=12),
    "neumann": functools.partial(neumann, terms=400, step_size=0.4),
}


def loss_fn(model: Any, batch: Any, extras: Any) -> torch.Tensor:
    penalty = sum(p.square().sum() for p in model.parameters())
    return (model(batch["x"]) - batch["y"]).square().mean() + extras["penalty"] * penalty


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_gradient_at_a_minimum_equals_unrolled_training_and_finite_differences(solver: Any) -> None:
    """Training to convergence is the function that both differentiate."""
    steps = ftrain.make_steps(lambda: nn.Linear(3, 1).double(), loss_fn, optim.sgd(0.3))
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, n, generator=g, dtype=torch.float64) for n in (3, 1))
    batch = {"x": x, "y": y}
    stacked = {name: each.expand(60, *each.shape) for name, each in batch.items()}
    gradients = steps.train_step.gradients
    state = steps.init_state(0)

    def trained(penalty: torch.Tensor) -> Any:
        start = state.replace(extras={"penalty": penalty})
        return unroll(steps.train_step, 60)(start, stacked)[0]

    def condition(params: Any, penalty: torch.Tensor, batch: Any) -> Any:
        at = state.replace(params=params, extras={"penalty": penalty})
        return gradients(at, batch).grads

    def outer(params: Any) -> torch.Tensor:
        return sum((p - 1).square().sum() for p in params.values())  # type: ignore[return-value]

    def by_steps(penalty: torch.Tensor) -> torch.Tensor:
        return outer(trained(penalty[0]).params)

    def by_implicit(penalty: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            params = trained(penalty[0]).params
        return outer(implicit(condition, params, penalty[0], batch, solver=solver))

    penalty = torch.tensor([0.4], dtype=torch.float64)
    _, found = ftrain.value_and_grad(by_implicit)(penalty)
    assert relative(found, ftrain.value_and_grad(by_steps)(penalty)[1]) < 1e-6
    assert relative(found, difference(by_steps, penalty, 1e-3)) < 1e-6


ADAPTIVE = {"b1": 0.5, "b2": 0.6, "learning_rate": 0.2, "eps": 0.5}
AT_REST: dict[str, tuple[Any, dict[str, float]]] = {
    "nesterov": (
        functools.partial(optim.sgd, nesterov=True), {"learning_rate": 0.25, "momentum": 0.2}
    ),
    "adamw": (optim.adamw, ADAPTIVE),
    "radam": (optim.radam, ADAPTIVE),
    "soap": (functools.partial(optim.soap, precondition_frequency=1), ADAPTIVE),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_REST)
def test_derivative_of_trained_weights_with_respect_to_weight_decay_matches_finite_differences(
    name: str,
) -> None:
    """Parameters and running means are one solution; its derivative by the learning rate is 0."""
    build, values = AT_REST[name]
    steps = ftrain.make_steps(
        lambda: nn.Linear(3, 1, bias=False).double(),
        lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean(),
        optim.with_hyperparams(build, weight_decay=0.3, **values),
    )
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, n, generator=g, dtype=torch.float64) for n in (3, 1))
    batch = {"x": torch.linalg.qr(x).Q * 12**0.5, "y": y}
    first, iterations = steps.init_state(0), 120

    def at(state: Any, rates: torch.Tensor) -> Any:
        opt_state = optim.set_hyperparams(
            state.opt_state, weight_decay=rates[0], learning_rate=rates[1]
        )
        return state.replace(opt_state=opt_state)

    def trained(rates: torch.Tensor) -> Any:
        state = at(first, rates)
        for _ in range(iterations):
            state, _ = steps.train_step(state, batch)
        return state

    def moving(state: Any) -> list[int]:
        leaves = tree.leaves((state.params, state.opt_state))
        return [i for i, x in enumerate(leaves) if x.is_floating_point() and x.ndim]

    def by_implicit(rates: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            state = trained(rates)
        leaves, treedef = tree.flatten((state.params, state.opt_state))
        places = moving(state)

        def condition(solution: list[torch.Tensor], rates: torch.Tensor) -> list[torch.Tensor]:
            put = dict(zip(places, solution, strict=True))
            now = [put.get(i, x) for i, x in enumerate(leaves)]
            params, opt_state = tree.unflatten(treedef, now)
            before = at(state.replace(params=params, opt_state=opt_state), rates)
            after, _ = steps.train_step(before, batch)
            new = tree.leaves((after.params, after.opt_state))
            return [x - new[i] for i, x in zip(places, solution, strict=True)]

        solver = functools.partial(neumann, terms=iterations)
        solution = [leaves[i] for i in places]
        weight: torch.Tensor = implicit(condition, solution, rates, solver=solver)[0]
        return weight.square().sum()

    rates = torch.tensor([0.3, values["learning_rate"]], dtype=torch.float64)
    _, found = ftrain.value_and_grad(by_implicit)(rates)
    expected = difference(lambda r: trained(r).params["weight"].square().sum(), rates, 1e-3)
    assert abs(found[0] / expected[0] - 1) < 1e-6
    assert found[1].abs() < 1e-9
    assert expected[1].abs() < 1e-9


def test_fixed_point_has_the_derivative_of_its_closed_form() -> None:
    def condition(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x - (0.5 * x + a)  # x = 2 a

    def solved(a: torch.Tensor) -> torch.Tensor:
        return implicit(condition, 2 * a.detach(), a, solver=functools.partial(neumann, terms=60))

    _, slope = ftrain.value_and_grad(solved)(torch.tensor(3.0, dtype=torch.float64))
    assert abs(float(slope) - 2) < 1e-12


def test_compiled_implicit_gradient_equals_the_eager_one() -> None:
    def loss(a: torch.Tensor) -> torch.Tensor:
        x = a.detach().sqrt()
        return implicit(lambda x, a: x * x - a, x, a, solver=SOLVERS["conjugate gradients"]).sum()

    gradient = ftrain.value_and_grad(loss)
    a = torch.tensor([4.0, 9.0])
    found = ftrain.compile(gradient, backend="eager")(a)
    assert_same_bits(found, gradient(a))
    torch.testing.assert_close(found[1], torch.tensor([0.25, 1 / 6]))


def test_implicit_refuses_functions_that_it_cannot_differentiate() -> None:
    a, x = torch.tensor(4.0), torch.tensor(2.0)
    condition = lambda x, a: x * x - a  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"outside of torch\.func"):
        torch.func.jvp(lambda a: implicit(condition, x, a), (a,), (a,))
    captured = torch.ones((), requires_grad=True)
    out = implicit(lambda x, a: x * x - a * captured, x, a.requires_grad_())
    with pytest.raises(ValueError, match="captured tensors that require gradients"):
        torch.autograd.grad(out, a)
    out = implicit(lambda x, a: (x * x - a).expand(2), x, a)
    with pytest.raises(ValueError, match="a tree like the solution"):
        torch.autograd.grad(out, a)
    slope = lambda a: ftrain.value_and_grad(lambda a: implicit(condition, x, a))(a)[1]  # noqa: E731
    with pytest.raises((RuntimeError, ValueError), match="once_differentiable"):
        ftrain.value_and_grad(slope)(a.detach())
