"""Last part of a step: return the new state, or the old one if a gradient was not finite.

Read next: `_skip_nonfinite.py`, which selects the state; `_learning_rates.py`, which reports the
learning rates; `step.py`, where `gradients`, `update` and `commit` make a training step.
"""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._checks import check_state, isolated
from ftrain.core._learning_rates import learning_rates
from ftrain.core._new_memory import unshared
from ftrain.core._skip_nonfinite import old_or_new
from ftrain.core._torch import value_at_hand
from ftrain.core._words import a_or_an
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Metrics
from ftrain.core.state import TrainState

__all__ = ["check_order", "commit", "committed"]

_SMALL = 1024  # elements, which are copied in less time than the search for other references takes


def commit(
    state: TrainState, proposed: TrainState, result: GradientResult
) -> tuple[TrainState, Metrics]:
    """Return the next state and the metrics of the step, learning rates included.

    The next state is the proposed one or, if gradients were not finite, the old one with new scaler and
    key. It is selected on the device, leaf by leaf, without a wait. The next state shares no memory with
    the old one. The metrics are those of the result, and the learning rates of the next state as
    `learning_rate`, or with the path in `opt_state` as part of the name if there are several.

    Args:
        state: the state before the step.
        proposed: the state after the step, as `update` returned it, possibly with further changes, such
            as to `extras`. Its buffers, scaler and key are replaced by those of `result`.
        result: the gradients of a batch, as `gradients` returned them.

    Raises:
        TypeError: an argument has the wrong type; the order is `(state, proposed, result)`.
        ValueError: the proposed state differs from the state in structure, shape, dtype or device, so
            that the next step would have to be compiled again; the message names the leaf.
    """
    check_order("commit", state=state, proposed=proposed, result=result)
    return committed(state, proposed, result, is_temporary=False)


def committed(
    state: TrainState, proposed: TrainState, result: GradientResult, *, is_temporary: bool
) -> tuple[TrainState, Metrics]:
    """Return the next state and the metrics, as `commit` does, with fewer copies if `is_temporary`.

    Args:
        state: the state before the step.
        proposed: the state after the step.
        result: the gradients of a batch.
        is_temporary: True if the caller does not use `proposed` and `result` afterwards. Then their
            tensors become part of the next state without a copy if no other object refers to them and
            they are ordinary: without a graph, attributes, or memory shared with other processes.
    """
    check_state(state)
    proposed = proposed.replace(buffers=result.buffers, scaler=(), rng=result.rng)
    kept = state.replace(scaler=(), rng=result.rng)
    olds, treedef = tree.flatten(kept)
    news, new_def = tree.flatten(proposed)
    if new_def != treedef:
        difference = tree.first_difference(proposed, kept)
        raise ValueError(
            f"a step changed the structure of its state, {difference}. Return the structure that the "
            "step got, because a change would compile the step again."
        )
    _check_same_layout(kept, olds, news)
    known = None if result.finite is None else value_at_hand(result.finite)
    is_copied = [True] * len(news)
    if known and is_temporary:
        large = [place for place, new in enumerate(news) if new.numel() > _SMALL]
        # The two containers are `news` and the node of the proposed state that holds the leaf.
        for place in unshared([news[place] for place in large], containers=2):
            is_copied[large[place]] = not _is_ordinary(news[large[place]])

    with isolated(state.step.device.type):
        leaves = old_or_new(olds, news, is_copied, result.finite, known)
        chosen = tree.unflatten(treedef, leaves)
        rng = result.rng
        if result.finite is not None and known is None:
            # Both branches are the same key, but because of this operator every write to a donated state
            # depends on all gradients, so that a step that runs out of memory earlier leaves the state
            # unchanged.
            rng = torch.where(result.finite, rng, rng)
        metrics = Metrics({**result.metrics.entries, **learning_rates(chosen.opt_state)})
    return chosen.replace(scaler=result.scaler, rng=rng), metrics


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Return True if a copy of a tensor would differ only in its memory."""
    return not (
        tensor.requires_grad
        or tensor.is_inference()
        or tensor.__dict__
        or tensor.untyped_storage().is_shared()
    )


def _check_same_layout(old: TrainState, olds: list[torch.Tensor], news: list[Any]) -> None:
    for index, (a, b) in enumerate(zip(olds, news, strict=True)):
        if not isinstance(b, torch.Tensor):
            path = tree.paths(old)[index]
            place = f"a step changed state{path}" if isinstance(a, torch.Tensor) else f"state{path}"
            raise ValueError(
                f"{place}: expected a tensor, got {a_or_an(type(b).__name__)}. "
                "Convert it: torch.as_tensor(...)."
            )
        if a.shape == b.shape and a.dtype == b.dtype and a.device == b.device:
            continue
        for what, was, now in (
            ("shape", tuple(a.shape), tuple(b.shape)),
            ("dtype", a.dtype, b.dtype),
            ("device", a.device, b.device),
        ):
            if was != now:
                path = tree.paths(old)[index]
                remedy = (
                    f"Convert the new tensor to this {what}: a change would compile the step again."
                )
                if not a.numel():
                    remedy = (
                        "It was empty: run one batch through the model before passing it on, or create "
                        "the buffer with its final shape."
                    )
                raise ValueError(
                    f"a step changed the {what} of state{path}: expected {was}, got {now}. {remedy}"
                )


def check_order(function: str, **given: Any) -> None:
    """Raise if the arguments are out of order: each needs the type that its name implies."""
    for name, value in given.items():
        if name == "optimizer":
            fits = callable(getattr(value, "update", None))
        else:
            fits = isinstance(value, GradientResult if name == "result" else TrainState)
        if not fits:
            got = ", ".join(type(value).__name__ for value in given.values())
            raise TypeError(
                f"{function}: expected ({', '.join(given)}) in this order, got ({got}). Write:\n"
                "    result = gradients(state, batch)\n"
                "    proposed = ftrain.update(optimizer, state, result)\n"
                "    state, metrics = ftrain.commit(state, proposed, result)"
            )
