"""Gradient accumulation across steps, with one update for several gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.cond import apply_if
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import first_device, matching_leaves, parameters, scalars_by_device
from ftrain.optim._partial_trees import unchanged
from ftrain.optim._rate import double, zero_count
from ftrain.optim.protocol import GradientTransformation, PyTree

__all__ = ["MultiStepsState", "multi_steps"]

Steps = int | Callable[[torch.Tensor], torch.Tensor | int]


class MultiStepsState(NamedTuple):
    """State of `multi_steps`.

    Attributes:
        micro_step: int64, 0-d. Number of gradients accumulated since the last update.
        updates_done: int64, 0-d. Updates of the inner optimizer so far; the argument of `k` if that is a
            function.
        weight: float64, 0-d. The total weight of the accumulated gradients.
        loss: float64, 0-d. The weighted sum of their losses, if losses are passed.
        total: the weighted sum of the accumulated gradients, a tree like the parameters; at least
            float32.
        inner: the optimizer's own state.
    """

    micro_step: torch.Tensor
    updates_done: torch.Tensor
    weight: torch.Tensor
    loss: torch.Tensor
    total: PyTree
    inner: PyTree


def multi_steps(inner: GradientTransformation, k: Steps) -> GradientTransformation:
    """Accumulate the gradients of `k` steps, and update once with their mean.

    `inner` runs at every k-th step only: in eager mode by an `if` on the counter (which waits for
    an accelerator), in a compiled step by a branch of the program. At the other steps the
    parameters stay as they are, bit for bit. Schedules inside count updates, not steps.

    `make_steps(accumulate=k)` splits one batch into micro-batches within a step; `multi_steps`
    accumulates over several batches.

    Args:
        inner: the optimizer of the mean gradients. It receives the mean of the losses too. It must not
            call `value_fn` or `grad_fn`, which use the last batch only: for such an optimizer, swap the
            wrappers, `sam(multi_steps(...))`.
        k: the number of steps per update, >= 1; or a function of the number of updates so far (int64,
            0-d).

    Returns:
        A transformation with a `MultiStepsState`. Its `update` takes `weight=`, a 0-d tensor or number:
        the weight of this gradient in the mean, such as its number of tokens. By default all weights are
        equal.

    Raises:
        ValueError: `k` below 1; gradients and parameters differ in structure or shape.

    Example:
        >>> from ftrain import optim
        >>> optimizer = multi_steps(optim.sgd(1.0), 2)
        >>> params = {"w": torch.tensor([5.0])}
        >>> state = optimizer.init(params)
        >>> for g in (1.0, 3.0):
        ...     updates, state = optimizer.update({"w": torch.tensor([g])}, state, params)
        ...     params = optim.apply_updates(params, updates)
        ...     params
        {'w': tensor([5.])}
        {'w': tensor([3.])}
    """
    _checks.optimizer("multi_steps", inner)
    if not callable(k):
        _checks.positive_int("k", k)

    def init(params: PyTree) -> MultiStepsState:
        leaves, treedef = parameters(params)
        count = zero_count(first_device(leaves))
        zero = double(0.0, count.device)
        total = tree.unflatten(treedef, [unchanged(p) for p in leaves])
        return MultiStepsState(count, count.clone(), zero, zero.clone(), total, inner.init(params))

    def update(
        grads: PyTree,
        state: MultiStepsState,
        params: PyTree | None = None,
        *,
        weight: torch.Tensor | float | None = None,
        loss: torch.Tensor | None = None,
        **extra: Any,
    ) -> tuple[PyTree, MultiStepsState]:
        if params is not None:
            matching_leaves(("params", params), ("grads", grads))
        (totals, gs), treedef = matching_leaves(
            ("state.total", state.total), ("grads", grads), strict_dtype=False
        )
        if isinstance(weight, torch.Tensor) and weight.ndim:
            raise ValueError(
                "weight: expected a number or a 0-d tensor, the weight of this gradient in the mean, "
                f"got shape {tuple(weight.shape)}. Reduce it to one number: weight.sum()."
            )
        device = state.weight.device
        share = double(1.0 if weight is None else weight, device)
        gathered = state.weight + share
        losses = state.loss if loss is None else state.loss + share * double(loss, device)
        place = scalars_by_device(share)
        sums = [
            t + (g.to(t.dtype) if weight is None else g.to(t.dtype) * place(t.device, t.dtype)[0])
            for t, g in zip(totals, gs, strict=True)
        ]
        steps = state.micro_step + 1
        is_last = steps >= (k(state.updates_done) if callable(k) else k)
        rest = {**extra, "value_fn": _of_last("value_fn"), "grad_fn": _of_last("grad_fn")}

        def step(value: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            whole = torch.where(gathered == 0, 1.0, gathered)
            divide = scalars_by_device(whole)
            means = [t / divide(t.device, t.dtype)[0] for t in sums]
            if loss is not None:
                rest["loss"] = (losses / whole).to(loss.dtype)
            if weight is not None:
                rest["weight"] = gathered
            return inner.update(tree.unflatten(treedef, means), value[1], params, **rest)

        still = tree.unflatten(treedef, [unchanged(t) for t in totals])
        updates, new = apply_if(is_last, step, (still, state.inner))

        def reset(value: torch.Tensor, start: float = 0.0) -> torch.Tensor:
            return torch.where(is_last.to(value.device), start, value)

        return updates, MultiStepsState(
            torch.where(is_last, 0, steps),
            state.updates_done + is_last,
            reset(gathered),
            reset(losses),
            tree.unflatten(
                treedef, [like(reset(s, -0.0), t) for s, t in zip(sums, totals, strict=True)]
            ),
            new,
        )

    return checked("multi_steps", MultiStepsState, init, update)


def _of_last(name: str) -> Callable[[PyTree], PyTree]:
    def refuse(params: PyTree) -> PyTree:
        raise ValueError(
            f"`multi_steps`: expected an inner optimizer that does not call `{name}`, which evaluates "
            "only the last batch, not all accumulated batches. Wrap in the other order, "
            "`sam(multi_steps(...))`, or accumulate within a step by `make_steps(accumulate=k)`."
        )

    return refuse
