"""Law 3: the new state has the layout of the old one, so that a run compiles one program.

Read next: `keyed.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._python_objects import GENERATORS
from ftrain.core.compile import Compiled
from ftrain.core.compile import compile as compile_
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference
from ftrain.testing.laws._counts import require_counting
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import (
    Call,
    InapplicableError,
    Subject,
    name_of,
    outputs_of,
    subject_of,
)
from ftrain.testing.laws._traced import require_tensors, untraceable
from ftrain.testing.laws._words import KEYS, amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_fixpoint", "layout_of"]

Layout = dict[str, Any]


@unchanging
def check_fixpoint(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    compiled: bool = True,
) -> Report:
    """Check law 3: the state keeps its structure, shapes, dtypes, devices and strides.

    Every leaf must be a tensor that requires no gradient. Leaves that share memory must continue to
    share it, and a step count must not stop growing (float32 cannot count beyond 16,777,216). One
    compiled program then serves all batches of one layout; this is checked by tracing the step as one
    graph.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`.
        batches: a list of batches; each one is a step of the run.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        compiled: trace the step, run it over all batches, and count the programs.

    Returns:
        The report.

    Raises:
        LawViolation: a leaf of the new state differs in kind, or the step needs several programs; the
            message names the leaf or the line.

    Example:
        >>> def step(state, batch):
        ...     return {"w": state["w"] - batch, "steps": state["steps"] + 1.0}, {}
        >>> state = {"w": torch.zeros(2), "steps": torch.tensor(0)}
        >>> check_fixpoint(step, [torch.ones(2)], state=state)
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "fixpoint": state['steps'] after step 1 has another
        dtype: expected int64, got float32
          cause: ...
    """
    start = time.perf_counter()
    whole = subject_of(subject, batches, state, seed)
    states = [copied(whole.state)]
    was = layout_of(whole.state)  # of the original: a copy would be contiguous
    for i, batch in enumerate(whole.batches):
        states.append(whole.stepped(states[-1], batch)[0])
        _compare(layout_of(states[-1]), was, i + 1)
    rows = [Row("state after each step", amount(states[0]), "same layout")]
    _compare_sharing(whole.state, states[1])
    if len(states) > 2:
        count = require_counting(whole, states)
        rows.append(Row("counts of steps", plural(count, "leaf", "leaves"), "do not stop"))
    if compiled:
        rows.append(_one_program(whole))
    return Report("fixpoint", True, tuple(rows), time.perf_counter() - start)


def layout_of(state: Any) -> Layout:
    """Return `{path: class, shape, dtype, device and strides}` for the leaves of a state."""
    return {
        path: _kind(leaf) for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True)
    }


def _kind(leaf: Any) -> dict[str, Any]:
    if not isinstance(leaf, torch.Tensor):
        return {"class": type(leaf).__name__}
    return {
        "class": "Tensor",
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype).removeprefix("torch."),
        "device": str(leaf.device),
        "strides": leaf.stride() if leaf.layout == torch.strided else str(leaf.layout),
        "requires_grad": leaf.requires_grad or leaf.grad_fn is not None,
    }


_CAUSES = {
    "class": ("Python numbers and objects are constants of a compiled step: each new value is compiled "
              "again, and a checkpoint does not store it.",
              "Write torch.tensor(...) in the initial state, and compute with tensors."),
    "shape": ("the leaf grows, shrinks or broadcasts from step to step.",
              "Allocate its final shape in the initial state, and write into it with torch.where or "
              "index_copy."),
    "dtype": ("an operand of another dtype promotes the leaf.",
              "Cast the operand: write x.to(state_leaf.dtype)."),
    "device": ("the new leaf is made on another device.",
               "Make new tensors with torch.zeros_like(...) or device=x.device."),
    "strides": ("the new leaf is a transposed or expanded tensor.",
                "Write .contiguous(), or lay the initial state out in the same way."),
    "requires_grad": ("the new state keeps the graph of the step, whose memory grows with each step.",
                      "Write .detach() on the new leaf, or update under torch.no_grad()."),
}  # fmt: skip


_GENERATORS = frozenset(kind.__name__ for kind in GENERATORS)
_OF_GENERATORS = "a random generator is an object, which a compiled step cannot draw from."


def _compare(now: Layout, was: Layout, step: int) -> None:
    if now.keys() != was.keys():
        missing, new = sorted(was.keys() - now.keys()), sorted(now.keys() - was.keys())
        raise LawViolation(
            "fixpoint",
            f"the state after step {step} has other leaves: {_listed('missing', missing)}"
            f"{', ' if missing and new else ''}{_listed('new', new)}",
            cause="the step adds or drops an entry, or fills a container that began empty.",
            remedy="Give the initial state every entry, with zeros of the final shape.",
        )
    for path, kind in now.items():
        for name, value in kind.items():
            expected = was[path].get(name)
            if name == "class" and value != "Tensor":
                expected = "Tensor"
            if name == "requires_grad" and value:
                expected = False
            if value != expected:
                cause, remedy = _CAUSES[name]
                if name == "class" and value in _GENERATORS:
                    cause, remedy = _OF_GENERATORS, KEYS
                raise LawViolation(
                    "fixpoint",
                    f"state{path} after step {step} has another {name}: "
                    f"expected {expected}, got {value}",
                    difference=Difference(path, None, value, expected, None, 0, 0, "structure"),
                    cause=cause,
                    remedy=remedy,
                )


def _compare_sharing(before: Any, after: Any) -> None:
    """Raise if two leaves that share memory in the first state no longer share it after a step."""
    places: dict[tuple[Any, ...], int] = {}
    leaves, now, paths = tree.leaves(before), tree.leaves(after), tree.paths(before)
    for i, leaf in enumerate(leaves):
        if not leaf.numel() or leaf.layout != torch.strided:
            continue
        other = places.setdefault((leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride()), i)
        if other != i and now[i].data_ptr() != now[other].data_ptr():
            raise LawViolation(
                "fixpoint",
                f"state{paths[other]} and state{paths[i]} share memory before step 1, but not after it",
                cause="tied weights that are two leaves of the state are updated as two weights; or a "
                "copy of them (an average, a target network) begins as the parameters themselves.",
                remedy="Keep one leaf for tied weights, as named_parameters() does, and clone() a leaf "
                "that only begins equal.",
            )


def _listed(what: str, paths: list[str]) -> str:
    return f"{what} {', '.join(paths[:4])}" if paths else ""


def _one_program(whole: Subject) -> Row:
    """Run a compiled step on all batches; raise unless it compiles one program per batch layout."""
    step = whole.step
    try:
        for batch in whole.batches:
            require_tensors(Call(name_of(step), step, (whole.state, batch), ("state", "batch")))
    except InapplicableError as error:
        return Row("compiled step", "not compiled", str(error))
    compiled: Any = step if isinstance(step, Compiled) else compile_(step, backend="eager")
    kinds = {str((tree.structure(batch), layout_of(batch))) for batch in whole.batches}
    before, current = compiled.n_compiles, copied(whole.state)
    for batch in whole.batches:
        with untraceable("fixpoint", name_of(step)):
            current, _ = outputs_of(compiled(current, copied(batch)))
    programs = compiled.n_compiles - before
    if programs > len(kinds):
        raise LawViolation(
            "fixpoint",
            f"{name_of(step)} compiled {programs} programs for {plural(len(kinds), 'kind')} of batches, "
            f"expected {len(kinds)}",
            cause="a Python value, a captured tensor or a setting changes between the steps.",
            remedy="Pass what changes as a tensor of the state or of the batch.",
        )
    return Row("compiled step", plural(len(whole.batches), "call"), plural(programs, "program"))
