"""Solvers of linear systems for trees of tensors, which need only products with the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ftrain.core import tree
from ftrain.optim import _checks

__all__ = ["Solver", "conjugate_gradients", "neumann"]

T = TypeVar("T")
#: `(product, right_side) -> x` with `product(x) = right_side`, on trees of tensors.
Solver = Callable[[Callable[[Any], Any], Any], Any]


def conjugate_gradients(
    product: Callable[[T], T],
    right_side: T,
    *,
    iterations: int,
    tolerance: float = 1e-10,
    damping: float = 0.0,
) -> T:
    r"""Return an approximate solution of $(A + \lambda I) x = b$ for a symmetric positive definite $A$.

    In exact arithmetic, as many iterations as $A$ has distinct eigenvalues suffice. The number of
    products is fixed, so that nothing waits for the device: iterations after convergence, or after a
    direction without positive curvature, change nothing.

    Args:
        product: $x \mapsto A x$, a function of trees.
        right_side: $b$, a tree of floating-point tensors.
        iterations: the number of products, at least 1.
        tolerance: $x$ stays unchanged once $\lVert A x - b \rVert \le \mathrm{tolerance} \, \lVert b
            \rVert$.
        damping: $\lambda \ge 0$, for an indefinite or badly conditioned $A$.

    Returns:
        A tree like `right_side`.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> stretch = lambda x: {"w": x["w"] * torch.tensor([1.0, 4.0])}
        >>> conjugate_gradients(stretch, {"w": torch.ones(2)}, iterations=2)
        {'w': tensor([1.0000, 0.2500])}

    References:
        Hestenes, Stiefel (1952), "Methods of Conjugate Gradients for Solving Linear Systems".
    """
    _checks.positive_int("iterations", iterations)
    _checks.non_negative("tolerance", tolerance)
    _checks.non_negative("damping", damping)
    x: T = tree.map(torch.zeros_like, right_side)
    residual = direction = right_side
    square = _inner(residual, residual)
    enough = square * tolerance**2
    for _ in range(iterations):
        turned = _plus(product(direction), damping, direction)
        curvature = _inner(direction, turned)
        is_solved = (square <= enough) & enough.isfinite()
        is_useful = ~is_solved & ~(curvature <= 0)  # so that a NaN or an infinity reaches x
        length = torch.where(is_useful, square / torch.where(is_useful, curvature, 1), 0)
        x = _plus(x, length, direction)
        residual = _plus(residual, -length, turned)
        after = _inner(residual, residual)
        share = torch.where(is_useful, after / torch.where(is_useful, square, 1), 0)
        direction = _plus(residual, share, direction)
        square = torch.where(is_useful, after, 0)
    return x


def neumann(product: Callable[[T], T], right_side: T, *, terms: int, step_size: float = 1.0) -> T:
    r"""Return an approximate solution of $A x = b$ by the Neumann series.

    $$x = \eta \sum_{i=0}^{n-1} (I - \eta A)^i \, b$$

    The series converges if all eigenvalues of $I - \eta A$ are smaller than 1 in magnitude. With $\eta$
    the learning rate of gradient descent and $A$ the Hessian, $n$ terms give the gradient of $n$
    unrolled steps at the solution.

    Args:
        product: $x \mapsto A x$, a function of trees.
        right_side: $b$, a tree of floating-point tensors.
        terms: $n$, at least 1; takes `terms - 1` products.
        step_size: $\eta > 0$.

    Returns:
        A tree like `right_side`.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> half = lambda x: {"w": x["w"] / 2}
        >>> neumann(half, {"w": torch.ones(1)}, terms=2)
        {'w': tensor([1.5000])}

    References:
        Lorraine, Vicol, Duvenaud (2020), [Optimizing Millions of Hyperparameters by Implicit
        Differentiation](https://arxiv.org/abs/1911.02590).
    """
    _checks.positive_int("terms", terms)
    _checks.positive("step_size", step_size)
    term: T = tree.map(lambda b: b * step_size, right_side)
    total = term
    for _ in range(terms - 1):
        term = _plus(term, -step_size, product(term))
        total = _plus(total, 1.0, term)
    return total


def _inner(a: Any, b: Any) -> torch.Tensor:
    # In float64 before the product: squares of float16 overflow at 256, of float32 underflow at 1e-23.
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    products = [(x.to(torch.float64) * y.to(torch.float64)).sum() for x, y in pairs]
    return torch.stack([x.to(products[0].device) for x in products]).sum()


def _plus(a: T, scale: torch.Tensor | float, b: Any) -> T:
    """Return `a + scale b` in the dtypes of `a`."""

    def one(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        factor = scale.to(x.device, x.dtype) if isinstance(scale, torch.Tensor) else scale
        return x + factor * y

    total: T = tree.map(one, a, b)
    return total
