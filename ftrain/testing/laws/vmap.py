"""Law 8: each row of a vmapped step equals the step of that row alone.

Read next: `accumulation.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_pytree import tree_leaves
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.gradients import GradientResult
from ftrain.core.step import TrainStep
from ftrain.testing._copies import copied
from ftrain.testing.laws._close import LOOSE, Apart, apart_by_leaf, apart_by_tree, smooth, tolerance
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import name_of, subject_of
from ftrain.testing.laws._traced import line_of, plain
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_vmap"]


@unchanging
def check_vmap(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    states: Sequence[Any] | None = None,
    relative: float | None = None,
    compile: Callable[[Any], Any] | None = None,
) -> Report:
    """Check law 8: each row of `torch.vmap(step)` equals the step of that row alone.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given.
        batches: a list of batches, each the same for all rows.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the first row's initial state.
        args: the arguments of a pure function, with the rows on the first axis of every leaf.
        states: the rows. Default: three seeds, or for a step alone the states of a run.
        relative: the largest norm of the difference of a leaf in one row, divided by the leaf's norm,
            because a batched product may sum in another order. Leaves that are not floats must have the
            same bytes; 0 compares the bytes of all leaves. Default: by dtype, 1e-4 in float32. For a
            step of ftrain, this default applies to the gradients, and 2e-2 to the new state as a whole,
            since Adam amplifies rounding.
        compile: a function applied to the vmapped step, such as `ftrain.compile`.

    Returns:
        The report.

    Raises:
        LawViolation: a row differs, or the step cannot be mapped; the message names the line.

    Example:
        >>> print(check_vmap(torch.cumsum, args=(torch.ones(3, 2), torch.zeros(3, dtype=int))))
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "vmap": cumsum cannot be mapped: ...
    """
    start = time.perf_counter()
    if args is not None:
        size = _size(args)
        rows = [tree.map(lambda x, i=i: x[i], args) for i in range(size)]
        _compare(subject, rows, None, relative, compile)
        row = Row(name_of(subject), plural(size, "row"), _close(relative))
        return Report("vmap", True, (row,), time.perf_counter() - start)
    whole = subject_of(subject, batches, state, seed)
    step = plain(whole.step)
    if states is None:
        if whole.init_state is not None:
            states = [whole.state, *(whole.init_state(seed + i) for i in (1, 2))]
        else:
            states = whole.states()
    for batch in whole.batches:
        shared = ([(each,) for each in states], (batch,))
        if isinstance(step, TrainStep):
            _compare(step.gradients, *shared, relative, compile, "gradients")
        is_loose = relative is None and isinstance(step, TrainStep)
        _compare(step, *shared, relative, compile, is_loose=is_loose)
    found = (Row(plural(len(states), "row"), amount(list(states)), _close(relative)),)
    return Report("vmap", True, found, time.perf_counter() - start)


def _close(relative: float | None) -> str:
    if relative is None:
        return "equal but for rounding"
    return "same bytes" if relative == 0.0 else f"relative norm at most {relative:.3g}"


def _size(args: tuple[Any, ...]) -> int:
    sizes = {x.shape[0] if x.ndim else None for x in tree.leaves(args)}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise ValueError(
            f"args: expected leaves with the same number of rows on their first axis, got "
            f"{[list(x.shape) for x in tree.leaves(args)]}. Stack the rows with torch.stack."
        )
    return int(size)


def _compare(
    fn: Any,
    rows: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] | None,
    relative: float | None,
    compile: Callable[[Any], Any] | None,
    name: str | None = None,
    is_loose: bool = False,
) -> None:
    """Raise unless `vmap(fn)` over rows equals `fn` of each row; `shared` arguments are not mapped."""
    name, rest = name or name_of(fn), shared or ()
    alone = [fn(*copied(row), *copied(rest)) for row in rows]
    stacked = tree.map(_stacked, *map(copied, rows))
    in_dims = (*map(_dims, rows[0]), *(None for _ in rest))
    mapped = torch.vmap(fn, in_dims=in_dims, out_dims=_dims(alone[0]))
    try:
        together = (compile(mapped) if compile else mapped)(*stacked, *copied(rest))
    except (RuntimeError, ValueError, TypeError, UnkeyedRandomError) as error:
        cause, remedy = _AUTOGRAD if "requires_grad_" in str(error) else _BRANCHES
        raise LawViolation(
            "vmap",
            f"{name} cannot be mapped: {str(error).strip()}",
            line=line_of(error),
            cause=cause,
            remedy=remedy,
        ) from error
    limit = tolerance(fn, (*rows[0], *rest)) if relative is None else relative
    for i, expected in enumerate(alone):
        row = tree.map(
            lambda leaf, i=i: leaf[i] if isinstance(leaf, torch.Tensor) else leaf, together
        )
        if shared is not None:
            row, expected = _smooth(row, limit), _smooth(expected, limit)  # noqa: PLW2901
        compare = apart_by_tree if is_loose else apart_by_leaf
        apart = compare(row, expected, LOOSE if is_loose else limit)
        if apart is not None:
            raise _differs(f"row {i} of the vmapped {name}", apart)


def _stacked(*leaves: Any) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], torch.Tensor) else leaves[0]


def _dims(values: Any) -> Any:
    """Return `in_dims` for `torch.vmap`: 0 for tensors, `None` for other leaves."""
    if all(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(values)):
        return 0
    return tree.map(lambda leaf: 0 if isinstance(leaf, torch.Tensor) else None, values)


_BRANCHES = (
    "under torch.vmap a tensor has no single value, shape or memory of its own: branches on values, "
    "writes into unmapped tensors and draws without a key are impossible.",
    "Write torch.where instead of a branch, out-of-place operators, and keyed draws.",
)
_AUTOGRAD = (
    "under torch.vmap a tensor cannot be made to require a gradient.",
    "Take gradients with ftrain.value_and_grad or torch.func.grad.",
)


def _smooth(output: Any, limit: float) -> Any:
    """Return a step's output with only those metrics that are smooth in its inputs."""
    if isinstance(output, GradientResult):
        return output._replace(metrics=smooth(output.metrics, limit))
    if isinstance(output, tuple) and len(output) == 2:
        return (output[0], smooth(output[1], limit))
    return output


def _differs(what: str, apart: Apart) -> LawViolation:
    return LawViolation(
        "vmap",
        f"{what} differs from the step of that row alone: {apart}",
        difference=apart.difference,
        cause="the step mixes rows: it reduces over all axes, shares one draw, or reads a shape that "
        "vmap hides.",
        remedy="Reduce over named axes from the end (dim=-1), and give each row its own key.",
    )
