"""Test that `keyed` computes what torch does where torch.func transforms refuse torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core.random import key, keyed
from tests.compile.cases import same_bytes

KEY = key(5)
X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


def mapped(function: Callable[..., Any], *rows: Tensor) -> Any:
    """Map a function under `keyed` over the rows of its arguments."""

    def run(*row: Tensor) -> Any:
        with keyed(KEY):
            return function(*row)

    return torch.vmap(run)(*rows)


def one_by_one(function: Callable[..., Any], *rows: Tensor) -> Any:
    """Call a function with each row, outside of `keyed`, and stack the results."""
    results = [function(*row) for row in zip(*rows, strict=True)]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(part) for part in zip(*results, strict=True))
    return torch.stack(results)


def test_one_hot_in_a_mapped_gradient_equals_torchs() -> None:
    classes = torch.tensor([[[0, 4], [2, 2], [1, 3]], [[1, 1], [0, 3], [4, 0]]])

    def loss(x: Tensor, classes: Tensor) -> Tensor:
        hot = F.one_hot(classes, 5)
        assert hot.dtype == torch.int64
        return (x[:3, None, :5] * hot).sum()

    gradient = torch.func.grad(loss)
    with keyed(KEY):
        found = torch.vmap(gradient)(X[:2], classes)
        one = torch.vmap(torch.func.grad(lambda x: (x[:1] * F.one_hot(x[0].long() * 0, 1)).sum()))
        assert one(X).shape == X.shape
    assert same_bytes(found, one_by_one(gradient, X[:2], classes))


def test_one_hot_without_a_number_of_classes_equals_torchs_under_a_gradient() -> None:
    classes = torch.tensor([0, 3, 1])

    def loss(x: Tensor) -> Tensor:
        return (x[:3, :4] * F.one_hot(classes)).sum()

    with keyed(KEY):
        found = torch.func.grad(loss)(X[0])
        with pytest.raises(RuntimeError, match="num_classes"):
            torch.func.grad(lambda x: (x[:3, :0] * F.one_hot(classes, 0)).sum())(X[0])
    assert same_bytes(found, torch.func.grad(loss)(X[0]))


@pytest.mark.parametrize("bias", [True, False])
def test_mapped_lstm_cell_equals_torchs(bias: bool) -> None:
    cell = nn.LSTMCell(6, 5, bias=bias)

    def run(x: Tensor) -> Any:
        return cell(x, (x[:, :5], x[:, 1:]))

    found, expected = mapped(run, X), one_by_one(run, X)
    # The order of sums may differ: products of 6 and 5 numbers below 3.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradient = torch.func.grad(lambda x: run(x)[1].sum())
    with keyed(KEY):
        assert same_bytes(gradient(X[0]), gradient(X[0]))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mapped_normalizations_of_half_precision_inputs_equal_torchs(
    dtype: torch.dtype, autocast: bool, parameters: torch.dtype
) -> None:
    if (parameters != torch.float32 and dtype != parameters) or (
        autocast and dtype == torch.float16
    ):
        return  # torch refuses these mixtures
    for layer in (nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.BatchNorm1d(6).eval()):
        layer.to(parameters)
        with torch.no_grad():
            for value in layer.parameters():
                value.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
        x = X.to(dtype)
        if isinstance(layer, nn.GroupNorm):
            x = x[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, expected = mapped(layer, x), one_by_one(layer, x)
        assert found.dtype == expected.dtype
        # One rounding of values below 8; with parameters in bfloat16, one of the parts as well.
        error = {torch.float32: 1e-6}.get(dtype, 4 * torch.finfo(dtype).eps)
        error *= 1 if parameters == torch.float32 else 4
        torch.testing.assert_close(found, expected, rtol=0, atol=error)


def test_mapped_normalization_of_a_wider_input_than_its_parameters_is_left_to_torch() -> None:
    layer = nn.LayerNorm(6)
    for run in (one_by_one, mapped):
        with pytest.raises(RuntimeError, match="mixed dtype|scalar type"):
            run(layer, X.double())


def test_requires_grad_of_a_tensor_that_requires_a_gradient_does_nothing_under_torch_func() -> None:
    def loss(x: Tensor) -> Tensor:
        assert x.requires_grad_() is x
        return x.square().sum()

    with keyed(KEY):
        assert same_bytes(torch.func.grad(loss)(X), 2 * X)
        with pytest.raises(RuntimeError, match="requires_grad_"):
            torch.func.grad(lambda x: x.sum() + torch.ones(2).requires_grad_().sum())(X)
        with pytest.raises(RuntimeError, match="requires_grad_|non-leaf|detach"):
            torch.func.grad(lambda x: x.requires_grad_(False).sum())(X)


OUT: dict[str, Callable[[Tensor], Any]] = {
    "one tensor": lambda x: torch.mul(x, 2, out=torch.empty_like(x)),
    "wider dtype": lambda x: torch.mul(x, 2, out=torch.empty_like(x, dtype=torch.float64)),
    "by name": lambda x: torch.add(input=x, other=1, out=torch.empty_like(x)),
    "two tensors": lambda x: tuple(
        torch.max(x, 1, out=(torch.empty_like(x[:, 0]), torch.empty_like(x[:, 0], dtype=torch.int64)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUT)
def test_mapped_call_with_out_writes_its_results_into_out(name: str) -> None:
    assert same_bytes(mapped(OUT[name], X), one_by_one(OUT[name], X))
    seen: list[bool] = []

    def kept(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        seen.append(torch.neg(x, out=out) is out)
        return out

    assert same_bytes(mapped(kept, X), -X)
    assert seen == [True]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.mul(x, 2, out=torch.empty_like(x)),  # x requires a gradient
        lambda x: torch.mul(x.detach(), 2, out=torch.empty_like(x, dtype=torch.int64)),
        lambda x: torch.mul(x.detach(), 2, out=x.new_empty(2, 6)),
    ],
    ids=["a gradient", "a dtype that loses values", "another shape"],
)
def test_mapped_call_with_out_is_left_to_torch_where_torch_may_refuse_it(call: Any) -> None:
    def loss(x: Tensor) -> Tensor:
        return x.sum() + call(x).sum()

    with keyed(KEY), pytest.raises(RuntimeError):
        torch.vmap(torch.func.grad(loss))(X)


def test_mapped_call_with_out_has_the_gradient_of_the_call_without_out() -> None:
    def total(x: Tensor) -> Tensor:
        return mapped(lambda x: torch.mul(x, 2, out=torch.empty_like(x)), x).sum()

    assert same_bytes(torch.func.grad(total)(X), torch.full_like(X, 2))
    leaf = X.clone().requires_grad_()
    assert same_bytes(torch.autograd.grad(total(leaf), leaf)[0], torch.full_like(X, 2))
