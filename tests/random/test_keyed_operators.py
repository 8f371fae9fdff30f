"""Test that `keyed` changes neither Python operators on tensors nor their gradients."""

from __future__ import annotations

import itertools
import operator
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrain.core.random import key
from ftrain.core.random._keyed_reach import draws_inside, without_dispatch
from ftrain.core.random.keyed import keyed

_ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"]
_BITS = ["and", "or", "xor", "lshift", "rshift"]
_COMPARISONS = ["lt", "le", "eq", "ne", "gt", "ge"]
_UNARY = ["neg", "pos", "abs", "invert", "len", "bool", "int", "float", "index", "hash"]
_UNARY += ["iter", "reversed", "repr"]


def _named(names: list[str], prefixes: tuple[str, ...] = ("",)) -> list[str]:
    dunders = [f"__{prefix}{name}__" for name, prefix in itertools.product(names, prefixes)]
    return [dunder for dunder in dunders if hasattr(Tensor, dunder)]


FLOATS, INTS = torch.tensor([[1.5, 2.0], [0.5, 3.0]]), torch.tensor([[1, 2], [3, 4]])
BINARY = [(name, FLOATS) for name in _named(_ARITHMETIC + _COMPARISONS, ("", "r", "i"))] + [
    (name, INTS) for name in _named(_ARITHMETIC + _BITS + _COMPARISONS, ("", "r", "i"))
]
UNARY = [(name, torch.tensor(3)) for name in _named(_UNARY)]
UNARY += [(name, INTS) for name in _named(["neg", "pos", "abs", "invert", "len", "reversed"])]


def outcome(name: str, *args: Any) -> Any:
    """Return the result of the operator, or the type of its error."""
    values = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    try:
        result = getattr(Tensor, name)(*values)
    except (TypeError, RuntimeError) as error:
        if isinstance(error, RecursionError):
            raise
        return type(error)
    return result, values


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize(("name", "x"), BINARY, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("other", [2, 2.5, "tensor"])
def test_binary_operators_give_the_same_results_inside_keyed(
    name: str, x: Tensor, other: Any
) -> None:
    other = x + 1 if other == "tensor" else other
    expected = outcome(name, x, other)
    with keyed(key(0)):
        assert same(outcome(name, x, other), expected)


@pytest.mark.parametrize(("name", "x"), UNARY, ids=lambda v: v if isinstance(v, str) else "")
def test_unary_operators_give_the_same_results_inside_keyed(name: str, x: Tensor) -> None:
    if name in ("__hash__", "__iter__"):
        with keyed(key(0)):
            assert (hash(x) == id(x)) if name == "__hash__" else len(list(INTS)) == 2
        return
    expected = outcome(name, x)
    with keyed(key(0)):
        assert same(outcome(name, x), expected)


@pytest.mark.parametrize("power", [2, 0.5])
def test_arithmetic_gives_the_same_results_and_gradients_inside_keyed(power: float) -> None:
    def written(x: Tensor) -> tuple[Tensor, ...]:
        y, whole = x.clone(), x.detach().clone()
        y **= power
        y -= 1
        y /= 2
        whole //= 2
        z = x**power + (1 - x) + 1 / x + 2**x + operator.pow(x, x)
        z = z + whole // 2 + 7 // x.detach() + 7 % x.detach()
        return y, z, *torch.autograd.grad(z.sum(), x)

    x = FLOATS.clone().requires_grad_()
    expected = written(x)
    with keyed(key(0)):
        assert same(written(x), expected)


def test_functions_that_call_each_other_are_copied_to_bypass_torch_function_dispatch() -> None:
    def pair() -> tuple[types.FunctionType, types.FunctionType]:
        def even(n: int) -> bool:
            return n == 0 or odd(n - 1)

        def odd(n: int) -> bool:
            return n != 0 and even(n - 1)

        even.__module__ = odd.__module__ = "torch.made_up"
        return even, odd

    even, _ = pair()
    assert not draws_inside(even)
    assert without_dispatch(even)(4)
    assert not without_dispatch(even)(3)
    assert (
        without_dispatch(even).__closure__[0].cell_contents is not even.__closure__[0].cell_contents
    )
