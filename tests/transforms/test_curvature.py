"""Curvature products, traces and eigenvalues equal those of dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import random, transforms, tree
from tests.compile.cases import same_bytes

F64 = torch.float64
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.tensor([0, 1, 2, 3, 1, 0])
KEY = random.key(5)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))


apply = ftrain.bind(model)
PARAMS: Any = tree.map(lambda p: p.double(), apply.init(random.key(0))[0])
VECTOR: Any = tree.map(lambda p: random.normal(KEY, p.shape, F64), PARAMS)
SIZE = sum(p.numel() for p in tree.leaves(PARAMS))


def outputs(params: Any) -> Tensor:
    return apply(params, {}, KEY, X)[0]


def loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, Y)


def value(params: Any) -> Tensor:
    return loss(outputs(params))


def losses(params: Any) -> Tensor:
    return F.cross_entropy(outputs(params), Y, reduction="none")


def flat(params: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.leaves(params)])


def of_flat(fn: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
    """Return a function of the concatenated parameters."""
    leaves, treedef = tree.flatten(PARAMS)

    def called(vector: Tensor) -> Any:
        parts = vector.split([leaf.numel() for leaf in leaves])
        return fn(
            tree.unflatten(treedef, [p.view_as(q) for p, q in zip(parts, leaves, strict=True)])
        )

    return called


def dense(name: str) -> Tensor:
    at = flat(PARAMS)
    if name == "hessian":
        return torch.autograd.functional.hessian(of_flat(value), at)
    if name == "fisher":
        rows = torch.autograd.functional.jacobian(of_flat(losses), at)
        return rows.T @ rows / len(rows)
    jacobian = torch.autograd.functional.jacobian(of_flat(lambda p: outputs(p).flatten()), at)
    logits = outputs(PARAMS).detach().flatten()
    inner = torch.autograd.functional.hessian(lambda z: loss(z.view(6, 4)), logits)
    return jacobian.T @ inner @ jacobian


PRODUCTS: dict[str, Callable[..., Any]] = {
    "hessian": lambda p, v: transforms.hessian_vector_product(value, p, v),
    "gauss-newton": lambda p, v: transforms.gauss_newton_vector_product(outputs, loss, p, v),
    "fisher": lambda p, v: transforms.fisher_vector_product(losses, p, v),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_curvature_products_equal_those_of_the_dense_matrix(name: str) -> None:
    product = PRODUCTS[name](PARAMS, VECTOR)
    torch.testing.assert_close(flat(product), dense(name) @ flat(VECTOR), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PRODUCTS)
def test_curvature_products_are_symmetric_and_linear(name: str) -> None:
    @settings(deadline=None, max_examples=10)
    @given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
    def check(seed: int, factor: float) -> None:
        other = tree.map(lambda p: random.normal(random.key(seed), p.shape, F64), PARAMS)
        product = lambda v: PRODUCTS[name](PARAMS, v)  # noqa: E731
        left, right = flat(other) @ flat(product(VECTOR)), flat(product(other)) @ flat(VECTOR)
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10)
        mixed = product(tree.map(lambda a, b: a + factor * b, VECTOR, other))
        expected = flat(product(VECTOR)) + factor * flat(product(other))
        torch.testing.assert_close(flat(mixed), expected, rtol=1e-8, atol=1e-10)

    check()


@pytest.mark.parametrize("name", PRODUCTS)
def test_curvature_products_can_be_compiled_and_vmapped_over_vectors(name: str) -> None:
    product, expected = PRODUCTS[name], PRODUCTS[name](PARAMS, VECTOR)
    compiled = ftrain.compile(product, backend="eager")(PARAMS, VECTOR)
    torch.testing.assert_close(compiled, expected)
    stacked = tree.map(lambda v: torch.stack([v, -v]), VECTOR)
    mapped = torch.vmap(lambda v: product(PARAMS, v))(stacked)
    torch.testing.assert_close(tree.map(lambda m: m[0], mapped), expected)


def test_hessian_product_equals_finite_differences_of_the_gradient() -> None:
    step = 1e-5
    gradient = lambda s: flat(  # noqa: E731
        ftrain.value_and_grad(value)(tree.map(lambda p, v: p + s * v, PARAMS, VECTOR))[1]
    )
    difference = (gradient(step) - gradient(-step)) / (2 * step)
    product = transforms.hessian_vector_product(value, PARAMS, VECTOR)
    torch.testing.assert_close(flat(product), difference, rtol=1e-6, atol=1e-8)


def test_curvature_products_of_float32_parameters_are_computed_in_float64() -> None:
    narrow = tree.map(lambda p: p.float(), PARAMS)
    ours = transforms.hessian_vector_product(value, narrow, VECTOR, dtype=F64)
    wide = tree.map(lambda p: p.double(), narrow)
    expected = transforms.hessian_vector_product(value, wide, VECTOR)
    assert same_bytes(flat(ours), flat(expected))
    found = transforms.sharpness(value, narrow, KEY, iterations=SIZE, dtype=F64)
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of_flat(value), flat(wide)))[-1]
    torch.testing.assert_close(found, top, rtol=1e-9, atol=0)


def test_hessian_product_of_a_loss_that_is_linear_is_zero() -> None:
    vector = {"w": torch.ones(2)}
    product = transforms.hessian_vector_product(lambda p: p["w"].sum(), vector, vector)
    assert same_bytes(product["w"], torch.zeros(2))


def test_fisher_matrix_of_sampled_labels_approaches_the_gauss_newton_matrix() -> None:
    """The Fisher matrix of a softmax is its Gauss-Newton matrix; 4 standard errors of the estimate."""

    def losses_of_samples(params: Any) -> Tensor:
        logits = outputs(params)
        labels = random.categorical(KEY, logits, shape=(4000, 6))
        return F.cross_entropy(logits.repeat(4000, 1), labels.flatten(), reduction="none")

    sampled = flat(transforms.fisher_vector_product(losses_of_samples, PARAMS, VECTOR))
    exact = flat(PRODUCTS["gauss-newton"](PARAMS, VECTOR))
    assert float((sampled - exact).norm() / exact.norm()) < 0.05


def test_hessian_product_refuses_a_vector_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"vector: expected the shapes of the parameters"):
        transforms.hessian_vector_product(value, PARAMS, tree.map(lambda p: p[0], PARAMS))


def test_fisher_product_refuses_a_loss_reduced_over_examples() -> None:
    with pytest.raises(ValueError, match="one loss for each example"):
        transforms.fisher_vector_product(value, PARAMS, VECTOR)


# -- traces and eigenvalues -------------------------------------------------------------------------


def hessian_product(vector: Any) -> Any:
    return transforms.hessian_vector_product(value, PARAMS, vector)


def test_hutchinson_estimates_lie_within_5_standard_errors_of_the_dense_matrix() -> None:
    matrix = dense("hessian")
    trace, error = transforms.hutchinson_trace(hessian_product, PARAMS, KEY, 200)
    assert abs(float(trace - matrix.trace())) < 5 * float(error)
    diagonal, errors = transforms.hutchinson_diagonal(hessian_product, PARAMS, KEY, 200)
    gap = (flat(diagonal) - matrix.diagonal()).abs()
    assert bool((gap <= 5 * flat(errors) + 1e-12).all())


def test_hutchinson_estimates_of_a_diagonal_matrix_are_exact() -> None:
    scales = tree.map(lambda p: random.uniform(KEY, p.shape, F64), PARAMS)
    product = lambda v: tree.map(torch.mul, scales, v)  # noqa: E731
    trace, error = transforms.hutchinson_trace(product, PARAMS, KEY, 3)
    torch.testing.assert_close(trace, flat(scales).sum())
    assert float(error) < 1e-12
    diagonal, _ = transforms.hutchinson_diagonal(product, PARAMS, KEY, 1)
    torch.testing.assert_close(diagonal, scales)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_eigenvalues_equal_those_of_the_dense_matrix(which: Any) -> None:
    values = torch.linalg.eigvalsh(dense("hessian"))
    order = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which].argsort()
    found = transforms.top_eigenvalues(
        hessian_product, PARAMS, KEY, 4, iterations=SIZE, which=which
    )
    torch.testing.assert_close(found.values, values[order][:4], rtol=1e-8, atol=1e-10)
    for i in range(4):
        vector = tree.map(lambda v, i=i: v[i], found.vectors)
        image = flat(hessian_product(vector))
        torch.testing.assert_close(image, found.values[i] * flat(vector), rtol=1e-6, atol=1e-9)


def test_top_eigenvalues_after_few_iterations_are_right_within_their_residuals() -> None:
    values = torch.linalg.eigvalsh(dense("hessian"))
    found = transforms.top_eigenvalues(hessian_product, PARAMS, KEY, 2, iterations=12)
    for found_value, residual in zip(found.values, found.residuals, strict=True):
        assert float((values - found_value).abs().min()) <= float(residual) + 1e-12


DEGENERATE = {
    "negative definite": [-3.0, -1.0, -2.0],
    "identity": [2.0, 2.0, 2.0],
    "zero": [0.0, 0.0, 0.0],
    "repeated": [4.0, 4.0, 1.0, -1.0, -1.0],
    "one parameter": [-7.0],
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_all_eigenvalues_of_degenerate_matrices_are_found(case: str, dtype: torch.dtype) -> None:
    """Find no zero that the matrix does not have, although the Krylov space ends early."""
    scales = torch.tensor(DEGENERATE[case], dtype=dtype)
    found = transforms.top_eigenvalues(lambda v: scales * v, scales, KEY, len(scales))
    expected = scales.double().sort(descending=True).values
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_eigenvalues_of_a_scaled_matrix_are_scaled_by_the_same_factor(size: float) -> None:
    scales = size * torch.tensor([5.0, 1.0, 0.0, -7.0, 3.0])
    found = transforms.top_eigenvalues(
        lambda v: scales * v, torch.zeros(5), random.key(1), 5, which="largest"
    )
    expected = torch.tensor([5.0, 3.0, 1.0, 0.0, -7.0]).double()
    torch.testing.assert_close(found.values / size, expected, rtol=1e-5, atol=1e-5)


def test_eigenvalues_and_traces_compile_as_one_graph() -> None:
    def spectra(params: Any, key: Tensor) -> Any:
        product = lambda v: transforms.hessian_vector_product(value, params, v)  # noqa: E731
        return (
            transforms.hutchinson_trace(product, params, key, 2),
            transforms.top_eigenvalues(product, params, key, iterations=4).values,
            transforms.sharpness(value, params, key, iterations=3),
        )

    expected = spectra(PARAMS, KEY)
    compiled = ftrain.compile(spectra, backend="eager")(PARAMS, KEY)
    torch.testing.assert_close(compiled, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "run", [lambda f: f, lambda f: ftrain.compile(f, backend="eager")], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_eigenvalues_of_a_hessian_that_is_not_finite_are_nan_in_its_row_alone(
    bad: float, run: Any
) -> None:
    """The Hessian of a diverged member of a sweep is such a matrix."""

    def largest(diagonal: Tensor) -> Tensor:
        product = lambda v: diagonal * v  # noqa: E731
        return transforms.top_eigenvalues(product, diagonal, KEY, 2).values

    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, bad, 3.0]])
    found = run(torch.vmap(largest))(rows)
    torch.testing.assert_close(found[0], torch.tensor([3.0, 2.0]).double())
    assert found[1].isnan().all()
    assert run(largest)(rows[1]).isnan().all()


def test_curvature_of_a_training_step_is_computed_in_float64() -> None:
    """The value function of a step, at a state and a batch in float64."""

    def loss_fn(module: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(module(batch["x"]), batch["y"])

    steps = ftrain.make_steps(model, loss_fn, ftrain.optim.sgd(0.1))
    wide = lambda t: t.double() if t.is_floating_point() else t  # noqa: E731
    state = tree.map(wide, steps.init_state(0))
    batch = {"x": X, "y": Y}
    value_fn = steps.train_step.gradients.closures(state, batch)["value_fn"]  # type: ignore[attr-defined]
    found = transforms.hessian_vector_product(value_fn, state.params, VECTOR)
    expected = transforms.hessian_vector_product(value, state.params, VECTOR)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "samples": (lambda: transforms.hutchinson_trace(hessian_product, PARAMS, KEY, 0), "samples"),
    "count": (
        lambda: transforms.top_eigenvalues(hessian_product, PARAMS, KEY, 0),
        f"count: expected 1 to {SIZE}",
    ),
    "iterations": (
        lambda: transforms.top_eigenvalues(hessian_product, PARAMS, KEY, 3, iterations=2),
        "at least count = 3, got 2",
    ),
    "which": (
        lambda: transforms.top_eigenvalues(hessian_product, PARAMS, KEY, which="top"),  # type: ignore[arg-type]
        "expected 'largest'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spectrum_functions_refuse_invalid_arguments(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


class Attends(nn.Module):
    """One layer of attention, whose kernels on the CPU have no second derivative (but for math)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 12), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return mixed


ATTENTION = ftrain.bind(Attends)
WEIGHTS: Any = tree.map(lambda p: p.double(), ATTENTION.init(random.key(0))[0])


def attended(params: Any) -> Tensor:
    out, _ = ATTENTION(params, {}, KEY, X.view(2, 3, 3))
    return out.flatten()


@pytest.mark.parametrize(
    ("name", "mode"),
    [("hessian", "eager"), ("hessian", "compiled"), ("gauss-newton", "eager"), ("fisher", "eager")],
)
def test_curvature_products_through_attention_are_derivatives_of_gradients(
    name: str, mode: str
) -> None:
    """Compare with central differences in float64; their error is near 1e-9."""
    step = 1e-5
    vector = tree.map(lambda p: random.normal(KEY, p.shape, F64), WEIGHTS)
    ahead, behind = (
        tree.map(lambda p, v, s=sign: p + s * step * v, WEIGHTS, vector) for sign in (1, -1)
    )

    def slope(fn: Callable[[Any], Tensor], *where: Any) -> Tensor:
        found = [flat(ftrain.value_and_grad(fn)(at)[1]) for at in where]
        return (found[0] - found[1]) / (2 * step)

    change = (attended(ahead) - attended(behind)) / (2 * step)
    products: dict[str, tuple[Callable[[Any], Any], Tensor]] = {
        "hessian": (
            lambda v: transforms.hessian_vector_product(
                lambda p: attended(p).square().sum(), WEIGHTS, v
            ),
            slope(lambda p: attended(p).square().sum(), ahead, behind),
        ),
        "gauss-newton": (
            lambda v: transforms.gauss_newton_vector_product(
                attended, lambda z: z.square().sum(), WEIGHTS, v
            ),
            flat(ftrain.value_and_grad(lambda p: attended(p) @ (2 * change))(WEIGHTS)[1]),
        ),
        "fisher": (
            lambda v: transforms.fisher_vector_product(attended, WEIGHTS, v),
            flat(ftrain.value_and_grad(lambda p: attended(p) @ change / 6)(WEIGHTS)[1]),
        ),
    }
    product, expected = products[name]
    run = product if mode == "eager" else ftrain.compile(product, backend="eager")
    torch.testing.assert_close(flat(run(vector)), expected, rtol=1e-6, atol=1e-7)
