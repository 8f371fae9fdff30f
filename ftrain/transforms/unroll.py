"""`unroll`: differentiate through training.

Read next: `_region.py`, which recomputes steps, and `implicit.py`, which needs no steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_levels import is_transformed
from ftrain.core.compile import is_tracing
from ftrain.core.metrics import Metrics
from ftrain.core.scan import scan
from ftrain.core.state import TrainState
from ftrain.optim import _checks
from ftrain.transforms._order import check_not_compiled
from ftrain.transforms._region import region
from ftrain.transforms._wrapped import Step
from ftrain.transforms.differentiable import differentiable

__all__ = ["detach_training", "unroll"]


def unroll(
    train_step: Step,
    k: int,
    *,
    remat: bool = True,
    truncate: int | None = None,
    detach: Callable[[TrainState], TrainState] | None = None,
) -> Step:
    r"""Return a differentiable function that runs `k` training steps.

        state, metrics_i = train_step(state, batches[i])    for i in 0 .. k - 1

    Its results are differentiable with respect to every floating-point leaf of state and batches, as
    `differentiable` lists them, and have the bits of `k` calls of `train_step`. In reverse mode, the
    forward pass stores the states at the starts of segments of about $\sqrt k$ steps. The backward pass
    computes one segment again, stores the states in it, then computes each of its steps again. So it
    needs memory for $2 \sqrt k$ states and the graph of one step, and the time of two more forward
    passes. Draws depend on the state's key alone, so dropout masks are the same in each pass. Gradients
    of any order can be taken; those of second and higher order store the graph of the first backward
    pass.

    In forward mode (`torch.func.jvp`), no states are stored. Under `torch.vmap` and other transforms of
    torch.func, nothing is recomputed: values and gradients are the same, with the memory of `k` graphs.
    Compiled (`ftrain.compile(hypergradient)`), the segments and their steps are two nested loops
    (`ftrain.scan`), so that the time to compile does not depend on `k`; a window of `truncate` steps is
    a pair of loops of its own. With `remat=False`, the program grows with `k`.

    Args:
        train_step: `(state, batch) -> (state, metrics)`, not compiled.
        k: the number of steps, at least 1.
        remat: recompute in the backward pass; False keeps the graphs of all `k` steps.
        truncate: detach the state after every `truncate` steps, except after the last. The gradient of
            the final state is then that of the last window (of `truncate` steps if `truncate` divides
            `k`), biased towards the near future; metrics have the gradient of their own window.
        detach: the function that detaches the state for `truncate`; default: `detach_training`, which
            keeps the hyper-parameters of `optim.with_hyperparams` and the extras connected.

    Returns:
        `(state, batches) -> (state, metrics)`. Each leaf of `batches` has a leading axis of length `k`
        (`transforms.stack` makes it from a list of batches); so has each leaf of `metrics`.

    Raises:
        ValueError: a number is less than 1; in a call, the leading axis of a leaf is not `k` long; in a
            backward pass that is not compiled, a step captures a tensor that requires a gradient.
        TypeError: `train_step` is compiled; a number is not an integer.

    Example:
        >>> import ftrain
        >>> from ftrain import optim
        >>> optimizer = optim.with_hyperparams(optim.adam, learning_rate=1e-3)
        >>> steps = ftrain.make_steps(
        ...     lambda: torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optimizer
        ... )
        >>> train = unroll(steps.train_step, 9)
        >>> def validation_loss(rate, state, batches):
        ...     opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        ...     state, metrics = train(state.replace(opt_state=opt_state), batches)
        ...     return differentiable(steps.eval_step)(state, batches[0])["loss"]
        >>> loss, hypergradient = ftrain.value_and_grad(validation_loss)(
        ...     torch.tensor(1e-3), steps.init_state(0), torch.ones(9, 4, 3)
        ... )
        >>> bool(hypergradient < 0)  # a larger rate would be better
        True

    References:
        Finn, Abbeel, Levine (2017), [Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks](https://arxiv.org/abs/1703.03400); Franceschi, Donini, Frasconi, Pontil (2017),
        [Forward and Reverse Gradient-Based Hyperparameter
        Optimization](https://arxiv.org/abs/1703.01785); Shaban, Cheng, Hatch, Boots (2019), [Truncated
        Back-propagation for Bilevel Optimization](https://arxiv.org/abs/1810.10667); Chen, Xu, Zhang,
        Guestrin (2016), [Training Deep Nets with Sublinear Memory
        Cost](https://arxiv.org/abs/1604.06174).
    """
    check_not_compiled("unroll", train_step)
    _checks.positive_int("k", k)
    if truncate is not None:
        _checks.positive_int("truncate", truncate)
    elif detach is not None:
        raise ValueError(
            "truncate: expected a number of steps, which `detach` needs, got None. "
            "Write unroll(..., truncate=n, detach=fn)."
        )
    cut = detach or detach_training
    step = differentiable(train_step)

    def steps_of(state: TrainState, batches: list[Any]) -> tuple[TrainState, list[Metrics]]:
        one = region(step) if remat and len(batches) > 1 else step
        metrics = []
        for batch in batches:
            state, latest = one(state, batch)
            metrics.append(latest)
        return state, metrics

    segment = region(steps_of) if remat else steps_of

    def stored(state: TrainState, batches: Any, length: int) -> tuple[TrainState, Metrics]:
        rows, n = _rows(batches, length), _segment_size(length)
        metrics: list[Metrics] = []
        for first in range(0, length, n):
            state, latest = segment(state, rows[first : first + n])
            metrics += latest
        return state, tree.map(lambda *each: torch.stack(each), *metrics)

    @functools.wraps(train_step)
    def unrolled(state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
        _check_rows(batches, k)
        in_loops = remat and is_tracing() and not is_transformed()
        run = functools.partial(_looped, step) if in_loops else stored
        window = truncate or k
        found: list[Metrics] = []
        for start in range(0, k, window):
            rows = tree.map(lambda x, start=start: x[start : start + window], batches)
            state, metrics = run(cut(state) if start else state, rows, min(window, k - start))
            found.append(metrics)
        return state, tree.map(lambda *parts: torch.cat(parts), *found)

    return unrolled


def _looped(step: Step, state: TrainState, batches: Any, length: int) -> tuple[TrainState, Metrics]:
    """Take a step for each row of the batches, in two nested loops of about `sqrt(length)` steps each.

    The derivative of a loop stores the state before each iteration, and computes each again.
    """
    n = _segment_size(length)
    whole = length - length % n
    segments = tree.map(lambda x: x[:whole].reshape(whole // n, n, *x.shape[1:]), batches)
    state, metrics = scan(
        lambda state, rows: scan(step, state, rows, n), state, segments, whole // n
    )
    metrics = tree.map(lambda x: x.flatten(0, 1), metrics)
    if whole == length:
        return state, metrics
    rest = tree.map(lambda x: x[whole:], batches)
    state, last = scan(step, state, rest, length - whole)
    return state, tree.map(lambda *parts: torch.cat(parts), metrics, last)


def _segment_size(k: int) -> int:
    """Return the square root of `k`, rounded up."""
    return math.isqrt(k - 1) + 1


def detach_training(state: TrainState) -> TrainState:
    """Return a state whose gradients stop at parameters, buffers and the optimizer's statistics.

    Extras stay connected, and in the optimizer's state the hyper-parameters that
    `optim.with_hyperparams` keeps.

    Args:
        state: the state before a step.
    """
    paths = tree.paths(state.opt_state)
    leaves, treedef = tree.flatten(state.opt_state)
    leaves = [
        x if ".hyperparams[" in path else x.detach() for path, x in zip(paths, leaves, strict=True)
    ]
    return state.replace(
        params=tree.map(torch.Tensor.detach, state.params),
        buffers=tree.map(torch.Tensor.detach, state.buffers),
        opt_state=tree.unflatten(treedef, leaves),
    )


def _check_rows(batches: Any, k: int) -> None:
    """Raise unless each leaf of the batches is a tensor with a leading axis of length `k`."""
    for path, leaf in zip(tree.paths(batches), tree.leaves(batches), strict=True):
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0 or leaf.shape[0] != k:
            got = f"shape {tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
            raise ValueError(
                f"batches{path}: expected a tensor with a leading axis of length k = {k}, got {got}. "
                f"Stack {k} batches: ftrain.transforms.stack(batches)."
            )


def _rows(batches: Any, length: int) -> list[Any]:
    """Split a tree of stacked tensors along the leading axis into `length` batches."""
    return [tree.map(lambda x, i=i: x[i], batches) for i in range(length)]
