"""Traces, diagonals and eigenvalues of a symmetric matrix that is known by its products with vectors.

    product = lambda v: hessian_vector_product(value_fn, params, v)
    hutchinson_trace(product, params, key)
    top_eigenvalues(product, params, key, count=3)

The loops are unrolled: compiled, a function of this file is one graph whose length grows with the number
of products. For many products, compile `product` instead.

Read next: `curvature.py`, which computes the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ftrain.core import random, tree
from ftrain.transforms.curvature import hessian_vector_product, inner

__all__ = [
    "Eigenpairs",
    "Estimate",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "sharpness",
    "top_eigenvalues",
]

Product = Callable[[Any], Any]


class Estimate(NamedTuple):
    """Mean of independent samples, and its standard error.

    Attributes:
        value: a 0-d tensor, or a tree of tensors.
        standard_error: a tensor or tree like `value`; NaN for a single sample.
    """

    value: Any
    standard_error: Any


class Eigenpairs(NamedTuple):
    """Eigenvalues and eigenvectors of a symmetric matrix; each eigenvector is a tree of tensors.

    Attributes:
        values: float64 `(count,)`, in the order that `which` gives.
        vectors: a tree like the parameters, with a leading axis `(count, ...)`; each of norm 1.
        residuals: float64 `(count,)`: estimates of `|A v - value v|`. An eigenvalue of the matrix lies
            within that distance of each value, up to rounding.
    """

    values: Tensor
    vectors: Any
    residuals: Tensor


def hutchinson_trace(
    product: Product,
    params: Any,
    key: Tensor,
    samples: int = 16,
    *,
    dtype: torch.dtype | None = None,
) -> Estimate:
    r"""Return an unbiased estimate of the trace, the mean of $z^\top A z$ over random signs $z$.

    The estimate is exact for a diagonal matrix.

    Args:
        product: `vector -> A vector`, on trees like `params`.
        params: a tree of tensors; only its shapes, dtypes and device are used.
        key: a single key, int32 `(2,)`.
        samples: the number of products.
        dtype: dtype of the vectors; default: the dtype of each leaf.

    Returns:
        `Estimate` of 0-d tensors.

    Raises:
        ValueError: `samples` is below 1.

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in
        Statistics 19 (1990).

    Example:
        >>> scales = torch.tensor([1.0, 2.0, 4.0])
        >>> hutchinson_trace(lambda v: scales * v, torch.zeros(3), random.key(0)).value
        tensor(7.)
    """
    drawn = []
    for i in _samples(samples):
        signs = _signs(params, key, i, dtype)
        drawn.append(inner(signs, product(signs)))
    return _estimate(drawn)


def hutchinson_diagonal(
    product: Product,
    params: Any,
    key: Tensor,
    samples: int = 16,
    *,
    dtype: torch.dtype | None = None,
) -> Estimate:
    r"""Return an unbiased estimate of the diagonal, the mean of $z \odot A z$ over random signs $z$.

    Args:
        product: `vector -> A vector`, on trees like `params`.
        params: a tree of tensors; only its shapes, dtypes and device are used.
        key: a single key, int32 `(2,)`.
        samples: the number of products.
        dtype: dtype of the vectors; default: the dtype of each leaf.

    Returns:
        `Estimate` of trees like `params`.

    Raises:
        ValueError: `samples` is below 1.

    References:
        Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Applied Numerical
        Mathematics 57 (2007).

    Example:
        >>> scales = torch.tensor([1.0, 2.0, 4.0])
        >>> hutchinson_diagonal(lambda v: scales * v, torch.zeros(3), random.key(0)).value
        tensor([1., 2., 4.])
    """
    drawn = []
    for i in _samples(samples):
        signs = _signs(params, key, i, dtype)
        drawn.append(tree.map(torch.mul, signs, product(signs)))
    leaves, treedef = zip(*(tree.flatten(each) for each in drawn), strict=True)
    estimates = [_estimate(list(column)) for column in zip(*leaves, strict=True)]
    values, errors = zip(*estimates, strict=True) if estimates else ((), ())
    return Estimate(tree.unflatten(treedef[0], values), tree.unflatten(treedef[0], errors))


def top_eigenvalues(
    product: Product,
    params: Any,
    key: Tensor,
    count: int = 1,
    *,
    iterations: int | None = None,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    dtype: torch.dtype | None = None,
) -> Eigenpairs:
    """Return extreme eigenvalues and their eigenvectors by Lanczos' method.

    Full reorthogonalization needs memory for `iterations` vectors. An eigenvalue that occurs several
    times is found once, unless there are as many iterations as parameters.

    Args:
        product: `vector -> A vector`, on trees like `params`; A must be symmetric.
        params: a tree of tensors; only its shapes, dtypes and device are used.
        key: a single key, int32 `(2,)`, from which the first vector is drawn.
        count: the number of eigenvalues.
        iterations: the number of products; default: `max(2 count + 10, 20)`. More than the number of
            parameters are not made: at that number the result is exact up to rounding.
        which: `"largest"` (descending), `"smallest"` (ascending) or `"magnitude"` (by absolute value,
            descending).
        dtype: dtype of the vectors; default: the widest of the leaves. Inner products are in float64.

    Returns:
        `Eigenpairs`; its `residuals` estimate the distance of each value from an eigenvalue. All are NaN
        if a product is not finite, as after a training run that diverged.

    Raises:
        ValueError: `count` or `iterations` out of range.

    References:
        Golub and Van Loan, "Matrix computations", chapter 10.

    Example:
        >>> scales = torch.tensor([1.0, 5.0, 3.0])
        >>> found = top_eigenvalues(lambda v: scales * v, torch.zeros(3), random.key(0), 2)
        >>> torch.testing.assert_close(found.values, torch.tensor([5.0, 3.0]).double())
    """
    leaves = tree.leaves(params)
    size = sum(leaf.numel() for leaf in leaves)
    rounds = _rounds(size, count, iterations, which)
    wide = leaves[0].dtype if dtype is None else dtype
    for leaf in leaves if dtype is None else ():
        wide = torch.promote_types(wide, leaf.dtype)

    def multiply(vector: Tensor) -> Tensor:
        image = tree.leaves(product(_parted(vector, params)))
        return torch.cat([leaf.reshape(-1) for leaf in image])

    basis, diagonal, beside = _lanczos(multiply, random.split(key, rounds), size, wide)
    matrix = torch.diag(diagonal) + torch.diag(beside[:-1], 1) + torch.diag(beside[:-1], -1)
    # eigh raises for NaN, under vmap for all rows because of one.
    is_finite = matrix.isfinite().all()
    found = torch.linalg.eigh(torch.where(is_finite, matrix, 0.0))
    values, rotations = (torch.where(is_finite, x, torch.nan) for x in found)
    rank = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    chosen = rank.sort(stable=True).indices[:count]
    rotations = rotations[:, chosen]
    rows = rotations.T.to(wide) @ basis
    vectors = [_parted(row / row.norm(), params) for row in rows.unbind()]
    stacked = tree.map(lambda *each: torch.stack(each), *vectors)
    return Eigenpairs(values[chosen], stacked, beside[-1] * rotations[-1].abs())


def _rounds(size: int, count: int, iterations: int | None, which: str) -> int:
    """Return the number of matrix-vector products in `top_eigenvalues`; raise for invalid arguments."""
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(
            f"which: expected 'largest', 'smallest' or 'magnitude', got {which!r}. Write "
            "which='largest'."
        )
    if not 1 <= count <= size:
        raise ValueError(
            f"count: expected 1 to {size}, the number of parameters, got {count}. Pass a number in this "
            "range."
        )
    rounds = min(size, max(2 * count + 10, 20) if iterations is None else iterations)
    if rounds < count:
        raise ValueError(
            f"iterations: expected at least count = {count}, got {iterations}. Write None for the "
            "default."
        )
    return rounds


def _parted(vector: Tensor, params: Any) -> Any:
    """Split a vector of all elements into a tree with the shapes of the parameters."""
    leaves, treedef = tree.flatten(params)
    parts, start = [], 0
    for leaf in leaves:
        parts.append(vector[start : start + leaf.numel()].view(leaf.shape))
        start += leaf.numel()
    return tree.unflatten(treedef, parts)


def sharpness(
    fn: Callable[[Any], Tensor],
    params: Any,
    key: Tensor,
    *,
    iterations: int = 20,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the sharpness of a loss, the largest eigenvalue of its Hessian.

    Gradient descent of learning rate h is stable along the eigenvector if the sharpness is below 2 / h.

    Args:
        fn: `params -> value`, 0-d; of a training step, `closures(state, batch)["value_fn"]`.
        params: a tree of floating-point tensors.
        key: int32 `(2,)`.
        iterations: Hessian-vector products.
        dtype: as of `hessian_vector_product`.

    Returns:
        float64, 0-d; NaN if a Hessian-vector product is not finite.

    References:
        Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs at
        the edge of stability", ICLR 2021.

    Example:
        >>> scales = torch.tensor([1.0, 5.0, 3.0])
        >>> value = sharpness(lambda p: (scales * p**2).sum() / 2, torch.ones(3), random.key(0))
        >>> torch.testing.assert_close(value, torch.tensor(5.0).double())
    """

    def product(vector: Any) -> Any:
        return hessian_vector_product(fn, params, vector, dtype=dtype)

    return top_eigenvalues(product, params, key, iterations=iterations, dtype=dtype).values[0]


def _lanczos(
    multiply: Callable[[Tensor], Tensor], starts: Tensor, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis `(rounds, size)`, and the tridiagonal matrix in this basis.

    The matrix is given by its diagonal and its off-diagonal, `(rounds,)` each. A vector that the basis
    already spans is replaced by a random vector orthogonal to the basis, with 0 in the off-diagonal, so
    that no spurious eigenvalue appears.
    """
    basis: list[Tensor] = []
    diagonal, beside = [], []
    vector = _unit(random.normal(starts[0], (size,), dtype))
    scale = torch.zeros((), dtype=torch.float64, device=vector.device)
    for i in range(len(starts)):
        basis.append(vector)
        image = multiply(vector).to(dtype)
        diagonal.append(vector.double() @ image.double())
        rest = _orthogonal(image, basis)
        length = rest.double().norm()
        scale = torch.maximum(scale, diagonal[-1].abs() + length)
        is_spanned = length <= 8 * torch.finfo(dtype).eps * scale
        beside.append(torch.where(is_spanned, 0.0, length))
        if i + 1 < len(starts):
            other = _orthogonal(random.normal(starts[i + 1], (size,), dtype), basis)
            vector = _unit(_orthogonal(torch.where(is_spanned, other, rest), basis))
    return torch.stack(basis), torch.stack(diagonal), torch.stack(beside)


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """Return the part of a vector orthogonal to a basis; project twice, because of rounding."""
    rows = torch.stack(basis)
    for _ in range(2):
        vector = vector - rows.T @ (rows @ vector)
    return vector


def _unit(vector: Tensor) -> Tensor:
    wide = vector.double()  # in float32 the squares of a matrix near 1e-20 underflow
    unit: Tensor = (wide / wide.norm()).to(vector.dtype)
    return unit


def _samples(samples: int) -> range:
    if samples < 1:
        raise ValueError(
            f"samples: expected a whole number of at least 1, got {samples!r}. Write samples=10."
        )
    return range(samples)


def _signs(params: Any, key: Tensor, sample: int, dtype: torch.dtype | None) -> Any:
    leaves, treedef = tree.flatten(params)
    signs = [
        random.rademacher(key, leaf.shape, dtype or leaf.dtype, folds=(sample, i))
        for i, leaf in enumerate(leaves)
    ]
    return tree.unflatten(treedef, signs)


def _estimate(drawn: list[Tensor]) -> Estimate:
    samples = torch.stack(drawn)
    error = samples.std(0) if len(drawn) > 1 else torch.full_like(samples[0], float("nan"))
    return Estimate(samples.mean(0), error / len(drawn) ** 0.5)
