"""Curvature of a loss: products of its Hessian, Gauss-Newton and Fisher matrices with a vector.

The matrices have one row for each element of a tree of parameters; none of them is formed. A product
takes two or three backward passes. It is a pure function, which `ftrain.compile`, `torch.vmap` and
`ftrain.value_and_grad` take. `F.scaled_dot_product_attention` runs its math kernel in a product: torch
has no second derivative of the others.

Read next: `spectrum.py`, which computes traces and eigenvalues from products alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ftrain.core import tree
from ftrain.core.functional import value_and_grad

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["fisher_vector_product", "gauss_newton_vector_product", "hessian_vector_product"]


def _with_math_attention(product: F) -> F:
    """Return a function that runs attention by the math kernel, backward passes included."""

    @functools.wraps(product)
    def run(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return product(*args, **kwargs)

    return run  # type: ignore[return-value]


@_with_math_attention
def hessian_vector_product(
    fn: Callable[[Any], Tensor], params: Any, vector: Any, *, dtype: torch.dtype | None = None
) -> Any:
    r"""Return $H v$ with the Hessian $H = \nabla^2 f$, as $\nabla \langle \nabla f, v \rangle$.

    Attention (`F.scaled_dot_product_attention`) runs its math kernel, because torch has no second
    derivative of its other kernels. It needs memory for the matrix of attention weights.

    Args:
        fn: `params -> value`, 0-d; of a training step, `closures(state, batch)["value_fn"]`.
        params: a tree of floating-point tensors.
        vector: a tree like `params`.
        dtype: dtype of the parameters in the call of `fn`, and of the product, such as torch.float64;
            default: the dtype of each leaf. Tensors that `fn` captures must have this dtype too.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: `vector` differs from `params` in structure or shapes.

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994).

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> hessian_vector_product(lambda p: p["w"].pow(3).sum(), params, {"w": torch.ones(2)})
        {'w': tensor([ 6., 12.])}
    """
    params, vector = cast(params, dtype), _vector(params, vector, dtype)
    zeros = tree.map(torch.zeros_like, vector)

    def slope(at: Any) -> Tensor:
        # The zero term is for a linear loss: value_and_grad refuses a value without parameters in it.
        return inner(value_and_grad(fn)(at)[1], vector) + inner(at, zeros)

    return value_and_grad(slope)(params)[1]


@_with_math_attention
def gauss_newton_vector_product(
    outputs: Callable[[Any], Any],
    fn: Callable[[Any], Tensor],
    params: Any,
    vector: Any,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    r"""Return $J^\top H J v$, with the Jacobian $J$ of outputs and the Hessian $H$ of a loss at them.

    The matrix is the Hessian of `fn(outputs(params))` without the second derivatives of the outputs. It
    is positive semi-definite if `fn` is convex. For a cross-entropy of logits, it is the Fisher matrix.
    Attention runs its math kernel, as in `hessian_vector_product`.

    Args:
        outputs: `params -> outputs`, a tree of tensors (logits).
        fn: `outputs -> value`, 0-d.
        params: a tree of floating-point tensors.
        vector: a tree like `params`.
        dtype: as of `hessian_vector_product`.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: `vector` differs from `params` in structure or shapes.

    References:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural
        Computation 14 (2002).

    Example:
        >>> x, params = torch.tensor([[1.0, 2.0]]), {"w": torch.tensor([1.0, 1.0])}
        >>> gauss_newton_vector_product(
        ...     lambda p: x @ p["w"], lambda z: z.square().sum(), params, {"w": torch.ones(2)}
        ... )
        {'w': tensor([ 6., 12.])}
    """
    params, vector = cast(params, dtype), _vector(params, vector, dtype)
    at = tree.map(torch.Tensor.detach, outputs(params))
    change = _jacobian_product(outputs, params, vector, at)
    return _transposed_product(outputs, params, hessian_vector_product(fn, at, change))


@_with_math_attention
def fisher_vector_product(
    losses: Callable[[Any], Tensor], params: Any, vector: Any, *, dtype: torch.dtype | None = None
) -> Any:
    r"""Return $F v$, with $F = \frac{1}{n} \sum_i g_i g_i^\top$ and the gradients $g_i$ of n losses.

    With the labels of a data set, F is the empirical Fisher matrix. With labels that are drawn from the
    model's own distribution (`ftrain.random.categorical` of the logits), F is an unbiased estimate of
    the Fisher matrix. Attention runs its math kernel, as in `hessian_vector_product`.

    Args:
        losses: `params -> losses`, `(n,)`: the negative log-likelihood of each example.
        params: a tree of floating-point tensors.
        vector: a tree like `params`.
        dtype: as of `hessian_vector_product`.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: `vector` differs from `params` in structure or shapes; `losses` does not return
            a tensor `(n,)`.

    References:
        Kunstner, Balles and Hennig, "Limitations of the empirical Fisher approximation", NeurIPS 2019.

    Example:
        >>> x, params = torch.tensor([[1.0], [3.0]]), {"w": torch.tensor([2.0])}
        >>> fisher_vector_product(lambda p: x @ p["w"], params, {"w": torch.ones(1)})
        {'w': tensor([5.])}
    """
    params, vector = cast(params, dtype), _vector(params, vector, dtype)
    at = losses(params)
    if not isinstance(at, Tensor) or at.ndim != 1:
        got = tuple(at.shape) if isinstance(at, Tensor) else type(at).__name__
        raise ValueError(
            f"losses: expected one loss for each example, a tensor (n,), got {got}. Write "
            "reduction='none'."
        )
    change = _jacobian_product(losses, params, vector, at.detach())
    return _transposed_product(losses, params, change / len(at))


def _jacobian_product(fn: Callable[[Any], Any], params: Any, vector: Any, at: Any) -> Any:
    """Return `J v`, computed without forward mode: the derivative of `<J^T u, v>` with respect to u."""

    def pulled(cotangent: Any) -> Tensor:
        return inner(_transposed_product(fn, params, cotangent), vector)

    return value_and_grad(pulled)(tree.map(torch.zeros_like, at))[1]


def _transposed_product(fn: Callable[[Any], Any], params: Any, cotangent: Any) -> Any:
    return value_and_grad(lambda p: inner(fn(p), cotangent))(params)[1]


def inner(a: Any, b: Any) -> Tensor:
    """Return the inner product of two trees of the same structure, 0-d."""
    products = tree.leaves(tree.map(lambda x, y: (x * y).sum(), a, b))
    return torch.stack(products).sum()


def cast(params: Any, dtype: torch.dtype | None) -> Any:
    """Return a tree with all leaves in `dtype`; for `None`, return it unchanged."""
    return params if dtype is None else tree.map(lambda p: p.to(dtype), params)


def _vector(params: Any, vector: Any, dtype: torch.dtype | None) -> Any:
    """Return the vector in the dtypes of the parameters; raise unless it has their shapes."""

    def converted(p: Tensor, v: Tensor) -> Tensor:
        if p.shape != v.shape:
            raise ValueError(
                f"vector: expected the shapes of the parameters, got {tuple(v.shape)} for a parameter "
                f"{tuple(p.shape)}. Build it with ftrain.tree.map over the parameters."
            )
        return v.to(p.dtype if dtype is None else dtype)

    return tree.map(converted, params, vector)
