"""Forward mode through loops and branches: no tangent is lost without an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ftrain
from tests.compositions.in_torch import Turned, sin2
from tests.core.differences import is_close

X = torch.tensor([0.75, 0.5], dtype=torch.float64)
T = torch.tensor([1.0, -2.0], dtype=torch.float64)


def scanned(x: Tensor) -> Tensor:
    return ftrain.scan(lambda c, _: (c * x.sin(), None), x, length=2)[0]


def branched(x: Tensor) -> Tensor:
    return ftrain.cond(x.sum() > 0, lambda y: y * x, lambda y: y, x)


def switched(x: Tensor) -> Tensor:
    return ftrain.switch(x.sum().long(), [torch.cos, lambda y: y * x], x)


def repeated(x: Tensor) -> Tensor:
    """Run a while_loop with an integer and two vectors in its carry, whose body captures `x`."""

    def body(carry: Any) -> Any:
        n, y, z = carry
        return n + 1, y * x, z + y

    start = (torch.tensor(0), x.sin(), torch.ones_like(x))
    _, y, z = ftrain.while_loop(lambda carry: carry[0] < 3, body, start)
    return y + z


def repeated_by_value(x: Tensor) -> Tensor:
    return ftrain.while_loop(lambda y: y.sum() < 3, lambda y: y * (1 + x.cos()), x)


def differentiated(x: Tensor) -> Tensor:
    grad: Tensor = ftrain.value_and_grad(lambda y: (scanned(y) * x).sum())(x)[1]
    return grad


FUNCTIONS = [scanned, branched, switched, repeated, repeated_by_value, differentiated]


def unrolled(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `f` without loops and branches, valid near `X`."""
    return {
        scanned: lambda x: x * x.sin() ** 2,
        branched: lambda x: x * x,
        switched: lambda x: x * x,
        repeated: lambda x: x.sin() * x**3 + 1 + x.sin() * (1 + x + x**2),
        repeated_by_value: lambda x: x * (1 + x.cos()) ** 2,
        differentiated: lambda x: x * (x.sin() ** 2 + 2 * x * x.sin() * x.cos()),
    }[f]


def compiled(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return ftrain.compile(f, backend="eager")


def tangent(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.func.jvp(f, (x,), (T,))[1]


def dual(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, T))).tangent

    return run


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("f", FUNCTIONS)
def test_tangents_through_loops_match_the_unrolled_function(f: Any, is_compiled: bool) -> None:
    run = compiled if is_compiled else (lambda g: g)
    expected = tangent(unrolled(f))
    assert is_close(run(f)(X), unrolled(f)(X))
    assert is_close(run(tangent(f))(X), expected(X))
    assert is_close(run(tangent(tangent(f)))(X), tangent(expected)(X))
    rows = torch.stack([X, X * 1.1])
    assert is_close(run(torch.vmap(tangent(f)))(rows), torch.vmap(expected)(rows))
    assert is_close(
        run(tangent(lambda x: torch.vmap(f)(torch.stack([x, x * 1.1]))))(X)[0], expected(X)
    )
    if is_compiled and f in (repeated, repeated_by_value):
        with pytest.raises(ValueError, match=r"while_loop: expected no torch.autograd.forward_ad"):
            run(dual(f))(X)
    else:
        assert is_close(run(dual(f))(X), expected(X))


def test_zero_tangent_returned_by_a_compiled_function_has_allocated_memory() -> None:
    """For the second derivative of a linear function, autograd returns zeros without memory."""
    found = ftrain.compile(tangent(tangent(lambda x: 3 * x)), backend="eager")(X)
    assert is_close(found, torch.zeros_like(X))
    assert found.untyped_storage().data_ptr() != 0


@pytest.mark.xfail(strict=True, reason="torch 2.13 drops the tangent of a custom operator")
def test_tangent_of_a_custom_operator_matches_its_formula() -> None:
    assert is_close(tangent(sin2)(X), 2 * (2 * X).cos() * T)


@pytest.mark.xfail(
    strict=True, reason="torch 2.13 turns forward mode off in the `jvp` of a function"
)
def test_second_tangent_of_an_autograd_function_matches_its_formula() -> None:
    def second(f: Any) -> Tensor:
        return tangent(tangent(lambda x: f(x, x)))(X)

    assert is_close(second(Turned.apply), second(lambda x, y: x * y.sin()))


def in_vmap(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.vmap(f)(torch.stack([x, 2 * x])).sum(0)


def turned(x: Tensor) -> Tensor:
    found: Tensor = Turned.apply(x, x)  # type: ignore[no-untyped-call]
    return found


def turned_in_loop(x: Tensor) -> Tensor:
    init = (x, torch.tensor(0))
    return ftrain.while_loop(lambda c: c[1] < 2, lambda c: (turned(c[0]), c[1] + 1), init)[0]


@pytest.mark.parametrize(
    "f",
    [
        tangent(tangent(turned)),
        in_vmap(tangent(tangent(turned))),
        tangent(in_vmap(tangent(turned))),
        tangent(tangent(in_vmap(turned))),
        tangent(tangent(turned_in_loop)),
        tangent(lambda y: torch.func.jvp(lambda x: Turned.apply(x, y), (T,), (T,))[1]),
        torch.func.jacfwd(torch.func.jacfwd(lambda x: turned(x).sum())),
        tangent(tangent(lambda x: ftrain.value_and_grad(lambda x: turned(x).sum())(x)[1])),
    ],
    ids=range(8),
)
def test_compiled_second_tangent_of_an_autograd_function_is_refused(f: Any) -> None:
    with pytest.raises(NotImplementedError, match="(?s)Turned has no second derivative.*hessian"):
        compiled(f)(X)


def test_second_tangent_of_an_autograd_function_under_keyed_is_refused() -> None:
    def keyed(x: Tensor) -> Tensor:
        with ftrain.random.keyed(KEY):
            return turned(x)

    assert is_close(tangent(keyed)(X), tangent(lambda x: x * x.sin())(X))
    with pytest.raises(NotImplementedError, match="Turned has no second derivative"):
        tangent(tangent(keyed))(X)


def test_compiled_nested_jvp_is_right_if_only_one_level_differentiates_an_autograd_function() -> (
    None
):
    def inner(x: Tensor) -> Tensor:
        return x * tangent(turned)(T)

    assert is_close(compiled(tangent(inner))(X), T * tangent(lambda x: x * x.sin())(T))
    hessian = torch.func.hessian(lambda x: (x * x.sin()).sum())
    assert is_close(compiled(torch.func.hessian(lambda x: turned(x).sum()))(X), hessian(X))


@pytest.mark.parametrize(
    "f",
    [
        tangent(sin2),
        tangent(torch.ops.ftrain_compositions.sin2),
        tangent(torch.ops.ftrain_compositions.sin2.default),
        tangent(in_vmap(sin2)),
        in_vmap(tangent(sin2)),
        tangent(lambda x: ftrain.scan(lambda c, _: (sin2(c), None), x, length=2)[0]),
        dual(sin2),
    ],
    ids=range(7),
)
def test_compiled_tangent_of_a_custom_operator_is_refused(f: Any) -> None:
    with pytest.raises(
        NotImplementedError, match="(?s)ftrain_compositions::sin2 has no derivative"
    ):
        compiled(f)(X)


def test_custom_operator_without_tangents_runs_inside_of_a_compiled_jvp() -> None:
    found = compiled(tangent(lambda x: x.sin() * sin2(T)))(X)
    assert is_close(found, X.cos() * T * (2 * T).sin())


KEY, EYE = ftrain.random.key(3), torch.eye(2, dtype=torch.float64)
#: Samples whose bits come from an operator, and their derivatives from a formula.
SAMPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda x: ftrain.random.uniform(KEY, (2,), x.dtype, 0.5 * x, 2 + x**2),
    "truncated_normal": lambda x: ftrain.random.truncated_normal(KEY, -x, 1 + x**2, dtype=x.dtype),
    "multivariate_normal": lambda x: ftrain.random.multivariate_normal(KEY, x, x[0] ** 4 * EYE),
}


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", SAMPLED)
def test_second_tangent_of_a_random_sample_by_the_parameters_matches_finite_differences(
    name: str, is_compiled: bool
) -> None:
    run = compiled if is_compiled else (lambda g: g)
    f, h = SAMPLED[name], 1e-4
    expected = (f(X + h * T) - 2 * f(X) + f(X - h * T)) / h**2
    assert expected.abs().max() > 0.1
    found = run(tangent(tangent(f)))(X)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    backward = torch.func.jacrev(tangent(f))(X) @ T
    assert is_close(found, backward)
    inside = run(
        lambda x: torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (T,))[0], (x,), (T,))[0]
    )
    assert torch.equal(inside(X).view(torch.int64), f(X).view(torch.int64))
