r"""Implicit differentiation: the derivative of a solution, without the steps that led to it.

Read next: `linear_solvers.py`, the solvers of its linear system.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ftrain.core import _torch, tree
from ftrain.core._graph_leaves import refuse_cuts, survey
from ftrain.transforms._region import refuse_captured
from ftrain.transforms.differentiable import differentiable
from ftrain.transforms.linear_solvers import Solver, conjugate_gradients

__all__ = ["implicit"]

T = TypeVar("T")


def implicit(
    condition: Callable[..., T],
    solution: T,
    *args: Any,
    solver: Solver | None = None,
) -> T:
    r"""Return `solution`, differentiable with respect to `args` by the condition that it satisfies.

    If $c(x, a) = 0$ at the solution, then

    $$\frac{\mathrm{d} x}{\mathrm{d} a} = -\left(\frac{\partial c}{\partial x}\right)^{-1}
    \frac{\partial c}{\partial a}$$

    so the backward pass solves one linear system with $(\partial c / \partial x)^\top$, from products
    with this matrix alone. Memory and time do not depend on how the solution was found. The derivative
    is as exact as the solution and the solver are.

    - At a minimum of a training loss, `condition` is its gradient with respect to the parameters:
      `differentiable(gradients)(state, batch).grads`, as in the example. Its derivative is the Hessian:
      it is symmetric, so conjugate gradients solve the system where it is positive definite.
    - At a fixed point $x = f(x, a)$, it is $x - f(x, a)$. If $f$ contracts, `neumann` converges for any
      $f$; conjugate gradients need a symmetric derivative.
    - For the weight decay of an optimizer, $f$ is the training step on one fixed batch, and $x$ the
      parameters together with the running means of the optimizer. Training must settle at one fixed
      point: with `sgd`, `adamw`, `radam` and `soap` it does. `lion`, `muon`, `lamb` and `adafactor`
      take steps of a fixed size, and `amsgrad` keeps the largest mean of squares since the start. The
      derivative with respect to the learning rate is 0.

    Args:
        condition: `(solution, *args) -> tree` like the solution, zero there.
        solution: a tree of floating-point tensors.
        *args: trees; the result is differentiable with respect to their floating-point tensors.
        solver: `(product, right_side) -> x` with `product(x) = right_side`, on trees, such as
            `functools.partial(neumann, terms=50)`; default: 20 iterations of `conjugate_gradients`.

    Returns:
        A tree with the bits of `solution`. It can be differentiated once, in reverse mode.

    Raises:
        NotImplementedError: called under a torch.func transform or in forward mode.
        ValueError: in the backward pass, the condition does not return a tree like the solution, or
            captures a tensor that requires a gradient.

    Example:
        >>> ridge = lambda w, penalty: {"w": 2 * (w["w"] - 3.0) + 2 * penalty * w["w"]}
        >>> def loss(penalty):  # w = 3 / (1 + penalty) has the derivative -3 / (1 + penalty)^2
        ...     w = {"w": 3.0 / (1.0 + penalty.detach())}
        ...     return implicit(ridge, w, penalty)["w"].sum()
        >>> import ftrain
        >>> ftrain.value_and_grad(loss)(torch.tensor(1.0))
        (tensor(1.5000), tensor(-0.7500))

    References:
        Lorraine, Vicol, Duvenaud (2020), [Optimizing Millions of Hyperparameters by Implicit
        Differentiation](https://arxiv.org/abs/1911.02590); Rajeswaran, Finn, Kakade, Levine (2019),
        [Meta-Learning with Implicit Gradients](https://arxiv.org/abs/1909.04630).
    """
    if _torch.inside_functorch() is not None or _torch.is_forward_mode():
        raise NotImplementedError(
            "implicit: expected a call outside of torch.func transforms and forward-mode AD, got a call "
            "inside one. Differentiate with ftrain.value_and_grad outside of torch.vmap."
        )
    solve = solver or functools.partial(conjugate_gradients, iterations=20)
    leaves, treedef = tree.flatten(solution)
    others, others_def = tree.flatten(args)

    def of_leaves(xs: list[Any], given: list[Any]) -> list[torch.Tensor]:
        kept = differentiable(condition)
        out = kept(tree.unflatten(treedef, xs), *tree.unflatten(others_def, given))
        flat, out_def = tree.flatten(out)
        if out_def != treedef or any(c.shape != x.shape for c, x in zip(flat, xs, strict=True)):
            raise ValueError(
                "implicit: expected `condition` to return a tree like the solution, got another tree "
                f"({tree.first_difference(out, solution) or 'its shapes differ'}). Return one residual "
                "for each element of the solution."
            )
        return flat

    outputs = _Implicit.apply(of_leaves, solve, len(leaves), *leaves, *others)  # type: ignore[no-untyped-call]
    result: T = tree.unflatten(treedef, list(outputs))
    return result


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, condition: Any, solver: Solver, n: int, *leaves: Any) -> tuple[Any, ...]:
        ctx.condition, ctx.solver, ctx.n = condition, solver, n
        ctx.others = [None if isinstance(x, torch.Tensor) else x for x in leaves]
        ctx.save_for_backward(*(x if isinstance(x, torch.Tensor) else None for x in leaves))
        return tuple(x.clone() for x in leaves[:n])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        n, needed = ctx.n, ctx.needs_input_grad[3:]
        inputs = [
            other if x is None else x.detach().requires_grad_(need or i < n)
            for i, (x, other, need) in enumerate(
                zip(ctx.saved_tensors, ctx.others, needed, strict=True)
            )
        ]
        solution, others = inputs[:n], inputs[n:]
        start = _torch.sequence_number()
        with torch.enable_grad():
            residuals = ctx.condition(solution, others)
        tracked = [c for c in residuals if c.requires_grad]
        refuse_captured("implicit", tracked, solution, inputs)
        refuse_cuts(survey(tracked, inputs, start), False, "implicit: the condition")

        def pulled(vectors: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[torch.Tensor]:
            pairs = [(c, v) for c, v in zip(residuals, vectors, strict=True) if c.requires_grad]
            found = torch.autograd.grad(
                [c for c, _ in pairs],
                wanted,
                [v for _, v in pairs],
                retain_graph=True,
                allow_unused=True,
            )
            return [
                torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)
            ]

        wanted = [x for x, need in zip(others, needed[n:], strict=True) if need]
        if not wanted:
            return (None,) * (3 + len(inputs))
        right_side = [-g for g in cotangents]
        vectors = ctx.solver(lambda v: pulled(v, solution), right_side)
        grads = iter(pulled(vectors, wanted))
        return None, None, None, *(None,) * n, *(next(grads) if g else None for g in needed[n:])
