"""`value_and_grad`: gradients without a retained graph."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain import testing
from ftrain.core import tree


def loss(p: Any, x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x @ p["w"] + p["b"]).square().mean()


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5))
def test_value_and_grad_equals_torch_func_grad_and_value(seed: int, n: int, m: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = {"w": torch.randn(n, m, generator=g), "b": torch.randn(m, generator=g)}
    x = torch.randn(3, n, generator=g)
    value, grads = ftrain.value_and_grad(loss)(p, x)
    by_func, value_by_func = torch.func.grad_and_value(loss)(p, x)
    testing.assert_same_bits(grads, by_func)
    testing.assert_same_bits(value, value_by_func)
    assert not value.requires_grad
    assert not any(t.requires_grad for t in tree.leaves(grads))


def test_vmapped_gradients_match_single_gradients() -> None:
    p = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    xs = torch.randn(5, 4, 3)
    values, grads = torch.vmap(ftrain.value_and_grad(loss), in_dims=(None, 0))(p, xs)
    for i in range(5):
        value, single = ftrain.value_and_grad(loss)(p, xs[i])
        testing.assert_close_norm(tree.map(lambda t, i=i: t[i], grads), single, 1e-6)
        testing.assert_close_norm(values[i], value, 1e-6)


def test_differentiable_value_and_grad_gives_hypergradients() -> None:
    """Differentiate the loss after one SGD step with respect to the learning rate."""

    def inner(p: torch.Tensor) -> torch.Tensor:
        return (p**3).sum()

    def outer(rate: torch.Tensor) -> torch.Tensor:
        p = torch.tensor([1.0, 2.0])
        _, g = ftrain.value_and_grad(inner, differentiable=True)(p)
        return inner(p - rate * g)

    rate = torch.tensor(0.01)
    p = torch.tensor([1.0, 2.0])
    by_hand = (3 * (p - rate * 3 * p**2) ** 2 * (-3 * p**2)).sum()
    testing.assert_close_norm(torch.func.grad(outer)(rate), by_hand, 1e-6)
    testing.assert_close_norm(
        ftrain.value_and_grad(outer, differentiable=True)(rate)[1], by_hand, 1e-6
    )
    leaf = rate.clone().requires_grad_()
    outer(leaf).backward()
    testing.assert_close_norm(leaf.grad, by_hand, 1e-6)


def test_nested_value_and_grad_gives_second_derivatives() -> None:
    def first(p: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(lambda q: (q**3).sum(), differentiable=True)(p)[1].sum()

    _, second = ftrain.value_and_grad(first)(torch.tensor([1.0, 2.0]))
    assert second.tolist() == [6.0, 12.0]


def test_activation_checkpointing_changes_no_bits_of_a_gradient() -> None:
    from torch.utils.checkpoint import checkpoint

    def through(p: Any, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda h: loss(p, h), x, use_reentrant=False)

    p, x = {"w": torch.randn(3, 2), "b": torch.randn(2)}, torch.randn(4, 3)
    testing.assert_same_bits(
        ftrain.value_and_grad(through)(p, x), ftrain.value_and_grad(loss)(p, x)
    )


def test_value_and_grad_returns_zeros_for_leaves_that_the_function_does_not_use() -> None:
    _, grads = ftrain.value_and_grad(lambda p: p["a"].sum())(
        {"a": torch.ones(2), "b": torch.ones(3), "empty": torch.ones(0)}
    )
    assert grads["b"].tolist() == [0.0] * 3
    assert grads["empty"].shape == (0,)


@pytest.mark.parametrize(
    ("fn", "x", "error", "message"),
    [
        (lambda x: x * 2, torch.ones(3), TypeError, r"expected a 0-d tensor, got shape \(3,\)"),
        (lambda x: 1.0, torch.ones(3), TypeError, "expected a tensor, got float"),
        (
            lambda x: x.sum().detach(),
            torch.ones(3),
            ValueError,
            "does not depend on its parameters",
        ),
        (
            lambda x: x.argmax(),
            torch.ones(3),
            TypeError,
            "expected a floating-point dtype, got torch.int64",
        ),
        (
            lambda x: x["a"].sum(),
            {"a": torch.ones(3, dtype=torch.int64)},
            TypeError,
            r"\['a'\].*int64",
        ),
        (
            lambda x: x["a"].sum(),
            {"a": 3},
            TypeError,
            r"\['a'\].*expected a floating-point tensor, got int",
        ),
    ],
)
def test_value_and_grad_refuses_functions_with_invalid_results_with_a_remedy(
    fn: Any, x: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        ftrain.value_and_grad(fn)(x)
    if isinstance(x, torch.Tensor):
        with pytest.raises(error, match=message):
            torch.vmap(ftrain.value_and_grad(fn))(torch.stack([x, x]))


def test_value_and_grad_peak_memory_matches_autograd() -> None:
    """Compare peak live bytes, counted by the profiler, over ten sin/cos layers of 1 MiB."""

    def deep(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = torch.sin(x) * torch.cos(x)
        return x.sum()

    x = torch.randn(2**18)

    def plain() -> Any:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(deep(leaf), leaf)

    reference = _peak(plain)
    assert _peak(lambda: ftrain.value_and_grad(deep)(x)) <= 1.05 * reference
    vmapped = torch.vmap(ftrain.value_and_grad(deep))
    assert _peak(lambda: vmapped(x[None])) <= 1.25 * reference


def _peak(fn: Any) -> int:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        kept = fn()
    del kept
    alive, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2).sum()


def in_place_unrecorded(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x.mul_(2)
    return (x * x).sum()


@pytest.mark.parametrize("fn", [in_place, in_place_unrecorded])
@pytest.mark.parametrize("form", ["plain", "no_grad", "vmap", "torch.func.grad"])
def test_function_that_writes_to_its_argument_raises_in_every_transform(fn: Any, form: str) -> None:
    x = torch.ones(2, 3)
    pulled = ftrain.value_and_grad(fn)
    forms = {
        "plain": pulled,
        "no_grad": torch.no_grad()(pulled),
        "vmap": torch.vmap(pulled),
        "torch.func.grad": torch.func.grad(lambda x: pulled(x)[0]),
    }
    with pytest.raises(ftrain.errors.ImpureFunctionError, match="writes into its argument"):
        forms[form](x)


@pytest.mark.parametrize("write", ["data", "numpy"])
def test_write_that_bypasses_the_version_counter_raises_in_the_first_call(write: str) -> None:
    def fn(x: Any) -> torch.Tensor:
        leaf = x["w"]
        if write == "data":
            leaf.data.mul_(2)
        else:
            leaf.detach().numpy()[:] = 3
        return (leaf * leaf).sum()

    for form in (fn, functools.partial(fn)):
        with pytest.raises(
            ftrain.errors.ImpureFunctionError, match=r"`x\['w'\]` was changed in place"
        ):
            ftrain.value_and_grad(form)({"w": torch.ones(3)})


def test_value_and_grad_compares_the_bytes_of_its_argument_only_in_the_first_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum()

    ftrain.value_and_grad(fn)(torch.ones(3))
    monkeypatch.setattr("ftrain.core._writes._kept", None)  # what reads the bytes
    ftrain.value_and_grad(fn)(torch.ones(3))


def test_zero_gradient_of_sgn_is_a_tensor_with_allocated_memory() -> None:
    _, grad = ftrain.value_and_grad(lambda x: torch.sgn(x).sum())(torch.ones(3))
    assert grad.data_ptr()
    assert grad.equal(torch.zeros(3))


def test_sparse_gradient_raises_an_error_that_suggests_sparse_false() -> None:
    rows = torch.tensor([0, 2])
    pulled = ftrain.value_and_grad(lambda w: F.embedding(rows, w, sparse=True).sum())
    with pytest.raises(TypeError, match="sparse=False"):
        pulled(torch.ones(3, 2))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_dense_gradient_of_a_sparse_argument_raises_an_error_that_suggests_a_dense_argument() -> (
    None
):
    pulled = ftrain.value_and_grad(lambda x: (x @ torch.ones(3, 3)).sum())
    with pytest.raises(TypeError, match=r"expected torch.sparse_csr.*got torch.strided.*to_dense"):
        pulled(torch.eye(3).to_sparse_csr())


def test_gradient_in_another_layout_than_a_sparse_argument_raises_with_a_remedy_that_works() -> (
    None
):
    weights = torch.arange(9.0).reshape(3, 3)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (x * weights).sum()  # whose gradient is not zero where `x` has no entry

    x = torch.eye(3).to_sparse_csr()
    remedy = r"x\.to_dense\(\), .* x\.to_sparse\(layout=torch\.sparse_csr\)"
    with pytest.raises(TypeError, match=f"expected torch.sparse_csr.*got torch.strided.*{remedy}"):
        ftrain.value_and_grad(value)(x)
    _, grad = ftrain.value_and_grad(lambda x: value(x.to_sparse(layout=torch.sparse_csr)))(
        x.to_dense()
    )
    assert grad.equal(weights)


def test_error_of_autograd_in_a_differentiated_function_is_raised_unchanged() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        torch.autograd.grad(x.sum(), torch.ones(2), allow_unused=True)
        return x.sum()

    with pytest.raises(
        RuntimeError, match="One of the differentiated Tensors does not require grad"
    ):
        ftrain.value_and_grad(inner)(torch.ones(2))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_gradient_by_complex_tensors_equals_that_of_autograd(shape: tuple[int, ...]) -> None:
    x = {"real": torch.tensor(2.0), "complex": torch.full(shape, 1.0 + 2.0j)}

    def value(x: Any) -> torch.Tensor:
        return (x["complex"] ** 2 * (1 - 3j)).real.sum() * x["real"]

    leaves = {name: leaf.clone().requires_grad_() for name, leaf in x.items()}
    expected = torch.autograd.grad(value(leaves), [*leaves.values()])
    grads = ftrain.value_and_grad(value)(x)[1]
    testing.assert_same_bits(grads, dict(zip(leaves, expected, strict=True)))
    testing.assert_same_bits(
        torch.func.grad(lambda x: ftrain.value_and_grad(value)(x)[0])(x), grads
    )


def test_function_that_turns_off_requires_grad_of_its_argument_is_refused_with_a_remedy() -> None:
    def frozen(x: torch.Tensor) -> torch.Tensor:
        value = (x * x).sum()
        x.requires_grad_(False)
        return value

    with pytest.raises(
        ValueError, match=r"frozen. .* turned off requires_grad .*Freeze .*detach\(\)"
    ):
        ftrain.value_and_grad(frozen)(torch.ones(2))


def test_write_into_a_leaf_names_its_line_and_may_have_been_one_into_a_captured_tensor() -> None:
    captured = torch.ones(3, requires_grad=True)

    def outside(x: torch.Tensor) -> torch.Tensor:
        return (captured.mul_(2) * x).sum()

    for fn, line in ((in_place, "x.mul_(2).sum()"), (outside, "captured.mul_(2)")):
        with pytest.raises(ftrain.errors.ImpureFunctionError) as caught:
            ftrain.value_and_grad(fn)(torch.ones(3))
        assert "its argument, or into a captured tensor that requires a gradient" in str(
            caught.value
        )
        assert line in str(caught.value)
    with pytest.raises(ftrain.errors.ImpureFunctionError) as caught:
        ftrain.value_and_grad(in_place_unrecorded)(torch.ones(3))
    assert "captured tensor" not in str(caught.value)
