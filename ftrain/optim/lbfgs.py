"""L-BFGS: quasi-Newton steps with an inverse Hessian stored as pairs of differences.

`scale_by_lbfgs` is the direction alone, for composition; `lbfgs` takes a step of the length that a
line search finds. Made for full batches and smooth functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.functional import value_and_grad
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked, other_options
from ftrain.optim._leaves import compute_dtype, first_device, matching_leaves, parameters
from ftrain.optim._line_search import strong_wolfe
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at, zero_count
from ftrain.optim.protocol import Count, GradientTransformation, PyTree

__all__ = ["LBFGSState", "ScaleByLBFGSState", "lbfgs", "scale_by_lbfgs"]

ValueFn = Callable[[PyTree], torch.Tensor]


class ScaleByLBFGSState(NamedTuple):
    """State of `scale_by_lbfgs`, with all parameters as one vector of `n` elements, at least float32.

    Attributes:
        count: int64, 0-d. Updates so far.
        params: `(n,)`. The parameters of the last update.
        grads: `(n,)`. Its gradients.
        steps: `(memory_size, n)`. Differences of parameters, the newest last.
        changes: `(memory_size, n)`. Those of the gradients.
        weights: `(memory_size,)`. One by the product of the two; 0 where there is no pair yet.
    """

    count: Count
    params: torch.Tensor
    grads: torch.Tensor
    steps: torch.Tensor
    changes: torch.Tensor
    weights: torch.Tensor


class LBFGSState(NamedTuple):
    """State of `lbfgs`, with all parameters as one vector of `n` elements, at least float32.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The first step tried at the last update; before the first update,
            at the first.
        step_size: float32, 0-d. The step that was taken; 0 where none was good, and before the first.
        params: `(n,)`. The parameters of the last update.
        grads: `(n,)`. Its gradients.
        steps: `(memory_size, n)`. Differences of parameters, the newest last.
        changes: `(memory_size, n)`. Those of the gradients.
        weights: `(memory_size,)`. One by the product of the two; 0 where there is no pair yet.
    """

    count: Count
    learning_rate: torch.Tensor
    step_size: torch.Tensor
    params: torch.Tensor
    grads: torch.Tensor
    steps: torch.Tensor
    changes: torch.Tensor
    weights: torch.Tensor


@algorithm
def lbfgs(
    learning_rate: LearningRate = 1.0,
    memory_size: int = 10,
    *,
    line_search_fn: Literal["strong_wolfe"] | None = "strong_wolfe",
    max_line_search_steps: int = 20,
    c1: float = 1e-4,
    c2: float = 0.9,
) -> GradientTransformation:
    r"""Return L-BFGS: quasi-Newton steps with a line search.

    $$u = -t H g, \qquad f(p + u) \le f(p) + c_1 u^\top g, \quad
    |u^\top \nabla f(p + u)| \le c_2 |u^\top g|$$

    where $H$ is the inverse Hessian of `scale_by_lbfgs`, and the search for $t$ starts at
    `learning_rate`.

    A trial takes one value and one gradient of `value_fn`; the search stops at the first good one,
    also in a compiled step. If none is good, the best that decreases the value is taken, or no step
    at all: then the memory is cleared, and the next direction is that of the gradient.

    Args:
        learning_rate: the first step that is tried, or without a search the step that is taken; a
            number >= 0, a 0-d tensor, or a schedule (first called with 0).
        memory_size: pairs of differences remembered, >= 1; each takes twice the parameters' memory.
        line_search_fn: `"strong_wolfe"`, or `None` for steps of `learning_rate`.
        max_line_search_steps: trials at most, >= 1.
        c1: sufficient decrease, with `0 < c1 < c2`.
        c2: sufficient flattening, below 1.

    Returns:
        A transformation with an `LBFGSState`. `update` needs `params` and, for the search, `value_fn`, a
        function `params -> loss`; the steps of `ftrain.make_steps` pass it. `loss=`, where it is
        given, is taken for the value at `params`.

    Raises:
        ValueError: an option out of its range; there is no `value_fn`; gradients and parameters differ
            in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> def rosenbrock(p):
        ...     return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2
        >>> optimizer = lbfgs()
        >>> params = {"x": torch.tensor(-1.0), "y": torch.tensor(1.0)}
        >>> state = optimizer.init(params)
        >>> for _ in range(30):
        ...     grads = torch.func.grad(rosenbrock)(params)
        ...     updates, state = optimizer.update(grads, state, params, value_fn=rosenbrock)
        ...     params = optim.apply_updates(params, updates)
        >>> bool(rosenbrock(params) < 1e-8)
        True

    References:
        Liu, Nocedal (1989), "On the limited memory BFGS method for large scale optimization";
        Nocedal, Wright (2006), "Numerical Optimization", algorithms 7.4 and 7.5.
    """
    check_learning_rate(learning_rate)
    _checks.positive_int("memory_size", memory_size)
    _checks.positive_int("max_line_search_steps", max_line_search_steps)
    if line_search_fn not in ("strong_wolfe", None):
        raise ValueError(
            f"line_search_fn: expected 'strong_wolfe' or None, got {line_search_fn!r}. Write "
            "line_search_fn='strong_wolfe'."
        )
    if not 0 < c1 < c2 < 1:
        raise ValueError(
            f"c1, c2: expected 0 < c1 < c2 < 1, got {c1!r} and {c2!r}. Write c1=1e-4, c2=0.9."
        )
    preconditioner = scale_by_lbfgs(memory_size)

    def init(params: PyTree) -> LBFGSState:
        count, *memory = preconditioner.init(params)
        rate = rate_at(learning_rate, count).float()
        return LBFGSState(count, rate, torch.zeros_like(rate), *memory)

    def update(
        grads: PyTree,
        state: LBFGSState,
        params: PyTree | None = None,
        *,
        value_fn: ValueFn | None = None,
        loss: torch.Tensor | None = None,
        **extra: Any,
    ) -> tuple[PyTree, LBFGSState]:
        count, _, _, *memory = state
        rate = rate_at(learning_rate, count)
        direction, new = preconditioner.update(grads, ScaleByLBFGSState(count, *memory), params)
        step = rate
        if line_search_fn is not None:
            value_fn = _checks.function_needed("lbfgs", "value_fn", value_fn)
            value = value_fn(params) if loss is None else loss
            line = _line(value_fn, params, direction)
            slope = -_inner(grads, direction, count.device)
            step = strong_wolfe(
                line, value, slope, rate, trials=max_line_search_steps, c1=c1, c2=c2
            )
            # Without a step there is no new pair, and the next direction would be the same again.
            kept = torch.where(step > 0, new.weights, torch.zeros_like(new.weights))
            new = new._replace(weights=kept)
        updates = tree.map(lambda d: d * -step.to(d.device, d.dtype), direction)
        return updates, LBFGSState(new.count, rate.float(), step.float(), *new[1:])

    return checked("lbfgs", LBFGSState, init, update, needs_params=True)


def scale_by_lbfgs(memory_size: int = 10) -> GradientTransformation:
    r"""Return the direction of L-BFGS, without step size and sign: $u = H g$.

    $H$ is the inverse Hessian with $H y = s$ for the last pairs of differences, $s$ of the
    parameters and $y$ of the gradients, and $s^\top y / y^\top y$ times the identity beyond them;
    $\min(1, 1 / \lVert g \rVert)$ times the identity before the first pair. A pair whose curvature
    $s^\top y$ is not positive is not stored.

    Args:
        memory_size: pairs remembered, >= 1.

    Returns:
        A transformation with a `ScaleByLBFGSState`. `update` needs `params`.

    Raises:
        ValueError: `memory_size` is out of its range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> direction = scale_by_lbfgs()
        >>> params = {"w": torch.tensor([0.3, 0.4])}
        >>> direction.update(params, direction.init(params), params)[0]  # |g| = 1/2
        {'w': tensor([0.3000, 0.4000])}

    References:
        Nocedal, Wright (2006), "Numerical Optimization", algorithm 7.4.
    """
    _checks.positive_int("memory_size", memory_size)

    def init(params: PyTree) -> ScaleByLBFGSState:
        leaves, _ = parameters(params)
        count = zero_count(first_device(leaves))
        zeros = torch.zeros_like(_vector(leaves))
        pairs = zeros.new_zeros(memory_size, len(zeros))
        return ScaleByLBFGSState(
            count, zeros, zeros.clone(), pairs, pairs.clone(), zeros.new_zeros(memory_size)
        )

    def update(
        grads: PyTree, state: ScaleByLBFGSState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByLBFGSState]:
        if len(state.weights) != memory_size:
            pairs = f"{len(state.weights)} pairs instead of {memory_size}"
            raise other_options("lbfgs", pairs)
        (ps, gs), treedef = matching_leaves(("params", params), ("grads", grads))
        p, g = _vector(ps), _vector(gs)
        s, y = p - state.params, g - state.grads
        curvature = s @ y
        # At the minimum both are rounding noise: torch.optim requires 1e-10, in any dtype.
        eps = torch.finfo(p.dtype).eps
        curved = (state.count > 0) & (curvature > eps * (s.norm() * y.norm() + eps**0.5))
        weight = torch.where(curved, _reciprocal(curvature, curved), 0)

        def remembered(memory: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
            return torch.where(curved, torch.cat([memory[1:], last[None]]), memory)

        steps, changes = remembered(state.steps, s), remembered(state.changes, y)
        weights = remembered(state.weights, weight)
        direction = _preconditioned(g, steps, changes, weights)
        new = ScaleByLBFGSState(state.count + 1, p, g, steps, changes, weights)
        return tree.unflatten(treedef, _leaves(direction, ps)), new

    return checked("scale_by_lbfgs", ScaleByLBFGSState, init, update, needs_params=True)


def _preconditioned(
    g: torch.Tensor, steps: torch.Tensor, changes: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return `H g`, computed by the two-loop recursion of L-BFGS over the stored pairs."""
    pairs = list(zip(steps.unbind(), changes.unbind(), weights.unbind(), strict=True))
    along = []
    for s, y, weight in reversed(pairs):
        along.append(weight * (s @ g))
        g = g - along[-1] * y
    newest = weights[-1] * (changes[-1] @ changes[-1])
    norm = g.norm()
    short = norm <= 1
    before_any = torch.where(short, 1, _reciprocal(norm, ~short))
    r = g * torch.where(newest > 0, _reciprocal(newest, newest > 0), before_any)
    for (s, y, weight), a in zip(pairs, reversed(along), strict=True):
        r = r + (a - weight * (y @ r)) * s
    return r


def _reciprocal(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return `1 / x` where the mask is True, else 1, so that no derivative is infinite."""
    return 1 / torch.where(where, x, 1)


def _line(value_fn: ValueFn, params: PyTree, direction: PyTree) -> Any:
    """Return a function of t: the value and slope of the loss at `params - t direction`."""

    def line(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def moved(p: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
            return like(p + d * -t.to(d.device, d.dtype), p)

        value, grads = value_and_grad(value_fn)(tree.map(moved, params, direction))
        return value, -_inner(grads, direction, t.device)

    return line


def _inner(a: PyTree, b: PyTree, device: torch.device) -> torch.Tensor:
    products = [
        (x.to(y.dtype) * y).sum().to(device, torch.float64)
        for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)
    ]
    return sum(products, double(0.0, device))


def _vector(leaves: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate all leaves to one vector, in the widest of their compute dtypes."""
    dtype = torch.float32
    for leaf in leaves:
        dtype = torch.promote_types(dtype, compute_dtype(leaf.dtype))
    if not leaves:
        return torch.zeros(0)
    return torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves])


def _leaves(vector: torch.Tensor, ps: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = torch.split(vector, [p.numel() for p in ps]) if ps else ()
    return [
        part.reshape(p.shape).to(compute_dtype(p.dtype)) for part, p in zip(parts, ps, strict=True)
    ]
