"""Detection of draws from random generators (not from keys), operator by operator.

Read next: `keyed.py`, the law that forbids them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ftrain.core._torch_dispatch import DispatchMode, OpOverload
from ftrain.core.random import _generators
from ftrain.core.random._find_draw import find_draws
from ftrain.core.random._keyed_reach import is_seeded
from ftrain.core.random._own_generators import state_of
from ftrain.testing._copies import copied
from ftrain.testing.laws._held_objects import Held, roots_of
from ftrain.testing.laws._sites import Site, running_site
from ftrain.testing.laws._subject import Call

__all__ = ["Drawn", "drawn_in"]

_NAMES = {
    "torch": "torch's global generator",
    "device": "torch's generator of the accelerator",
    "numpy": "NumPy's global generator",
    "python": "the generator of Python's random functions",
}
_KINDS = (np.random.Generator, np.random.RandomState, random.Random)


class Drawn(NamedTuple):
    """Random draws of one call: the generator that advanced, and the operator and line that drew.

    Attributes:
        generator: the generator that the call has advanced; `None` if all draws come from keys.
        operator: the first operator that advanced it; `None` if no operator did.
        line: the line that advanced it, and its module; `None` if unknown.
        operators: the number of operators that draw, from keys or from generators.
        output: what the call returned.
    """

    generator: str | None
    operator: str | None
    line: str | None
    operators: int
    output: Any


def drawn_in(call: Call) -> Drawn:
    """Run a call and return its random draws; restore the generators afterwards."""
    held = Held(*roots_of(call.fn), follow_globals=True)
    torchs = [(name, g) for name, g in held.generators if isinstance(g, torch.Generator)]
    others = [(name, g) for name, g in held.generators if isinstance(g, _KINDS)]
    marks = _generators.read(_generators.accelerator(), [g for _, g in others])
    states = [g.get_state() for _, g in torchs]
    args, mode = copied(call.args), _Draws([g for _, g in torchs])
    try:
        with mode:
            output = call.run(args)
        site = mode.site
        operator = None if site is None else site.operator
        line = None if site is None else site.where
        for (name, g), state in zip(torchs, states, strict=True):
            if not torch.equal(g.get_state(), state):
                return Drawn(_held(name), operator, line, mode.operators, output)
        names = _generators.moved(marks)
        if not names:
            return Drawn(None, None, None, mode.operators, output)
        if site is None or names[0] not in ("torch", "device"):
            operator, line = None, _line(call, marks)
        name = _name(names[0], others, marks)
        return Drawn(name, operator, line, mode.operators, output)
    finally:
        _generators.restore(marks, _generators.moved(marks))
        for (_, g), state in zip(torchs, states, strict=True):
            g.set_state(state)
        held.restore()
        held.restore_tensors()


def _name(kind: str, others: list[tuple[str, Any]], marks: _generators.Marks) -> str:
    if kind != "own":
        return _NAMES[kind]
    moved = (
        name
        for (name, g), (_, state) in zip(others, marks.own, strict=True)
        if state_of(g) != state
    )
    return _held(next(moved, "a generator"))


def _held(name: str) -> str:
    return f"the generator `{name}`, which the function holds"


def _line(call: Call, marks: _generators.Marks) -> str | None:
    draws = find_draws(lambda: call.run(copied(call.args)), marks)
    return draws[0].line if draws else None


class _Draws(DispatchMode):
    """Dispatch mode that counts random operators, and records the first that advances a generator."""

    def __init__(self, own: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.site: Site | None = None
        self.operators = 0
        self._own = own

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not _may_draw(func):
            return func(*args, **(kwargs or {}))
        before = self._states()
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        if self.site is None and self._states() != before:
            self.site = running_site(func)
        return out

    def _states(self) -> list[bytes]:
        device = _generators.accelerator()
        found = [torch.default_generator.get_state(), *(g.get_state() for g in self._own)]
        if device is not None:
            found.append(torch.get_device_module(device).get_rng_state(device))
        return [state.numpy().tobytes() for state in found]


def _may_draw(func: Any) -> bool:
    """Return True for operators that torch tags as random, and for all operators outside of torch."""
    if not isinstance(func, OpOverload) or func.namespace not in ("aten", "prims"):
        return True
    return is_seeded(func)
