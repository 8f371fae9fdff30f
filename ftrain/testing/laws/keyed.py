"""Law 4: every random number comes from the key in the state, and each step draws new ones.

Read next: `accumulation.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.errors import UnkeyedRandomError
from ftrain.testing._copies import copied
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._draws import Drawn, drawn_in
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import Call, calls_of
from ftrain.testing.laws._words import plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_keyed"]

_KEYS = ("rng", "key")
_CAUSE = (
    "its numbers depend on all draws before, in this process and outside of the step, so that a "
    "resumed, repeated or compiled step computes something else."
)
_REMEDY = (
    "Draw from a key in the state: ftrain.random, or `with ftrain.random.keyed(key):` around modules "
    "that draw; elsewhere generator=torch.Generator().manual_seed(...) from the state."
)


@unchanging
def check_keyed(
    subject: Any,
    batches: Sequence[Any] = (),
    *,
    state: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] | None = None,
    key: str | None = None,
) -> Report:
    """Check law 4: no call advances a random generator, and each key in use changes at each step.

    The check covers torch's, NumPy's and Python's global generators, and those that the function holds
    in its closure, in global variables and in modules. A call may create a generator from a key.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, a step
            `(state, batch) -> (state, metrics)`, or a pure function if `args` is given.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        args: the arguments of a pure function, instead of batches and a state.
        key: the field of the state that holds the key; default: the integer tensors in fields called
            `rng` or `key`.

    Returns:
        The report; a row counts the operators that draw.

    Raises:
        LawViolation: a generator is advanced, or a key is used twice; the message names the operator,
            the module and the line.

    Example:
        >>> def step(state, batch):
        ...     return {"w": state["w"] + torch.rand(2)}, {}
        >>> check_keyed(step, [None], state={"w": torch.zeros(2)})
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "keyed": step(state, batches[0]) draws from
        torch's global generator
          operator: aten.rand.default
          ...
          remedy: Draw from a key in the state: ...
    """
    start = time.perf_counter()
    try:
        calls = calls_of(subject, batches, state, seed, args)
        found = [drawn_in(call) for call in calls]
    except UnkeyedRandomError as error:  # raised by ftrain's own steps
        raise LawViolation("keyed", str(error), cause=_CAUSE, remedy=_REMEDY) from error
    for call, drawn in zip(calls, found, strict=True):
        if drawn.generator is not None:
            raise _unkeyed(call, drawn)
    count = sum(drawn.operators for drawn in found)
    rows = [Row("generators", plural(len(calls), "call"), "none advanced")]
    rows.append(Row("operators that draw", f"{count:,}", "from keys" if count else "none"))
    for call, drawn in zip(calls, found, strict=True):
        if args is None and call.outputs:
            rows += _moving(call, drawn.output, key)
    return Report("keyed", True, tuple(dict.fromkeys(rows)), time.perf_counter() - start)


def _unkeyed(call: Call, drawn: Drawn) -> LawViolation:
    return LawViolation(
        "keyed",
        f"{call.label} draws from {drawn.generator}",
        operator=drawn.operator,
        line=drawn.line,
        cause=_CAUSE,
        remedy=_REMEDY,
    )


def _moving(call: Call, output: Any, key: str | None) -> list[Row]:
    """Raise if a key that the step uses is unchanged in the new state."""
    state = call.args[0]
    rows = []
    for path in _paths(state, key):
        place = tree.paths(state).index(path)
        new = dict(zip(tree.paths(output[0]), tree.leaves(output[0]), strict=True)).get(path)
        if not _is_used(call, output, place):
            rows.append(Row(f"state{path}", "1 key", "not used"))
            continue
        if new is not None and first_difference(new, tree.leaves(state)[place]) is None:
            raise LawViolation(
                "keyed",
                f"{call.label} uses the key state{path} and returns it unchanged",
                cause="each step draws the same numbers: the same dropout masks, the same noise.",
                remedy="Split it: `key, use = ftrain.random.split(state['key']).unbind()`, draw from "
                "`use`, and return `key` in the new state.",
            )
        rows.append(Row(f"state{path}", "1 key", "changes with each step"))
    return rows


def _paths(state: Any, key: str | None) -> list[str]:
    names = _KEYS if key is None else (key,)
    found = {path: leaf for name in names for path, leaf in tree.find(state, name).items()}
    if key is not None and not found:
        found = tree.find(state, key.strip(".[]'"))
        if not found:
            raise ValueError(
                f"key: expected the name of a field of the state, got {key!r}. Name the field that "
                "holds the key."
            )
    return [
        path
        for path, leaf in found.items()
        if isinstance(leaf, torch.Tensor) and not leaf.is_floating_point()
    ]


def _is_used(call: Call, output: Any, place: int) -> bool:
    """Return True if the outputs depend on a key, apart from the new key itself."""
    leaves, treedef = tree.flatten(copied(call.args[0]))
    leaves[place] = _other(leaves[place])
    other = call.run((tree.unflatten(treedef, leaves), copied(call.args[1])))
    path = tree.paths(call.args[0])[place]
    kept = [
        {
            p: leaf
            for p, leaf in zip(tree.paths(out), tree.leaves(out), strict=True)
            if p != f"[0]{path}"
        }
        for out in (tuple(other), tuple(output))
    ]
    return first_difference(kept[0], kept[1]) is not None


def _other(key: torch.Tensor) -> torch.Tensor:
    """Return a key that differs in some low bits (a step count that serves as key stays small)."""
    return key.logical_not() if key.dtype == torch.bool else key ^ 0x2A5
