"""Search for the source of the first infinity or NaN in a step; runs only when a run fails."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import optree
import torch

from ftrain.core import tree
from ftrain.core._torch import is_wrapped
from ftrain.core._torch_dispatch import DispatchMode
from ftrain.loop._emitter import Emitter
from ftrain.loop._ensemble_members import members_of

__all__ = ["first_nonfinite", "nonfinite_leaf", "nonfinite_source"]

_FOREIGN = (
    *(str(pathlib.Path(str(module.__file__)).resolve().parent) for module in (torch, optree)),
    str(pathlib.Path(__file__).resolve().parents[1]),
)


def first_nonfinite(step: Callable[..., Any], state: Any, batch: Any) -> str:
    """Describe the first non-finite tensor in the batch, in the state, or returned by an operator.

    Args:
        step: the uncompiled step, which is run once more, operator by operator.
        state: the state before the step. Not changed.
        batch: the batch of the step.
    """
    there = nonfinite_leaf("batch", batch)
    there = there or nonfinite_leaf("state", state, members=members_of(state))
    if there is not None:
        return there
    found = _Watch()
    try:
        with found:
            step(state, batch)
    except Exception as error:  # a step may raise because of the non-finite value
        if found.first is None:
            return f"this step raised {type(error).__name__} when it was computed again: {error}"
    return found.first or "all values are finite when this step is computed again"


def nonfinite_source(run: Emitter, batch: Any, step: int, position: int) -> str:
    """Repeat a step without compilation; return a sentence that locates its first non-finite value."""
    if not run.runtime.ranks.is_one:  # the other ranks would have to repeat the step as well
        return f"At step {step}, batch {position} of epoch {run.state.progress.epoch}."
    found = first_nonfinite(run.runtime.plain_step, run.state.train, batch)
    return f"At step {step}, batch {position} of epoch {run.state.progress.epoch}: {found}."


def nonfinite_leaf(
    name: str, value: Any, where: str = "", members: int | None = None
) -> str | None:
    """Describe the first non-finite tensor of a pytree; `None` if all its tensors are finite.

    Args:
        name: name of the pytree.
        value: the pytree.
        where: text after the tensor's path.
        members: number of members, if the pytree is the state of an ensemble.
    """
    for path, leaf in zip(tree.paths(value), tree.leaves(value), strict=True):
        bad = _bad(leaf)
        if bad:
            return f"{name}{path}{where} holds {bad}{_members_with(leaf, members)}"
    return None


class _Watch(DispatchMode):
    """Dispatch mode that records the first operator with finite arguments and a non-finite result."""

    first: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.first is None:
            with torch.no_grad():
                new = _kinds(result) - _kinds((args, kwargs))
            if new:
                bad = next(filter(None, map(_bad, tree.leaves(result))))
                self.first = f"{func} gives {bad}{_line()}"
        return result


def _kinds(values: Any) -> set[str]:
    """Return the kinds of non-finite values in a pytree: "NaN", "infinite", both or neither.

    A Python float NaN does not count: an operator that turns it into a NaN tensor is reported. A Python
    float infinity counts, so that a mask of -inf is not reported.
    """
    found = set()
    for leaf in tree.leaves(values):
        number = isinstance(leaf, float)
        text = str(leaf).replace("nan", "") if number else _bad(leaf) or ""
        found |= {
            kind for kind, sign in (("NaN", "nan"), ("infinite", "inf")) if sign in text.lower()
        }
    return found


def _members_with(leaf: torch.Tensor, members: int | None) -> str:
    """Return a text such as ` (members 1, 4)` that names the ensemble members with non-finite values."""
    if not members or not leaf.ndim or len(leaf) != members:
        return ""
    bad = (~leaf.isfinite()).reshape(members, -1).any(1).nonzero().flatten().tolist()
    listed = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    return f" (member{'s' if len(bad) > 1 else ''} {listed})"


def _bad(leaf: Any) -> str | None:
    """Return a text such as `2 NaN, 1 infinite of 8 values`; `None` if no value is NaN or infinite."""
    if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
        return None
    if type(leaf) is not torch.Tensor and type(leaf) is not torch.nn.Parameter:
        return None
    if leaf.is_meta or is_wrapped(leaf) or not leaf.numel():
        return None
    nan, infinite = int(leaf.isnan().sum()), int(leaf.isinf().sum())
    text = [f"{nan} NaN"] if nan else []
    text += [f"{infinite} infinite"] if infinite else []
    return f"{', '.join(text)} of {leaf.numel()} values" if text else None


def _line() -> str:
    """Return `file:line` of the innermost stack frame outside of torch, optree and ftrain."""
    ours = [
        frame
        for frame in traceback.extract_stack()
        if not frame.filename.startswith((*_FOREIGN, "<"))
    ]
    if not ours:
        return ""
    return f", at {ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line}"
