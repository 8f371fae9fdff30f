"""Hypothesis strategies of programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis import assume

from tests.compositions.programs import (
    Add,
    Apply,
    Checkpoint,
    Compiled,
    Cond,
    Const,
    Custom,
    Descend,
    Detach,
    Expr,
    Flip,
    Function,
    Grad,
    Jvp,
    Matrix,
    Mul,
    NoGrad,
    Program,
    Scan,
    Sin,
    Step,
    Switch,
    Tanh,
    Var,
    Vmap,
    While,
    nodes,
)

__all__ = ["COMBINATORS", "SMOOTH", "loses_tangents", "points", "programs"]

Draw = Any
INNER = ("value_and_grad", "value_and_grad", "differentiable", "func", "vjp")
OUTER = (*INNER, "jvp", "vmap", "autograd")
COMBINATORS = (
    "Grad", "Grad", "Grad", "Jvp", "Descend", "Scan", "Scan", "Cond", "Cond", "Switch", "Vmap", "Apply",
    "Checkpoint", "Detach", "NoGrad", "Compiled", "While", "Step",
)  # fmt: skip

#: Those whose derivatives are the limits of differences: no detached part, no branch, nothing refused.
SMOOTH = ("Grad", "Jvp", "Descend", "Scan", "Vmap", "Apply")


@st.composite
def programs(
    draw: Draw, depth: int = 3, orders: int = 3, kinds: Sequence[str] = COMBINATORS
) -> Program:
    """Return a strategy of programs with combinators nested up to `depth`.

    Args:
        orders: the most derivatives at the outside.
        kinds: the combinators to draw from; one named twice is drawn more often. Programs without
            forward derivatives are drawn too, except if "Jvp" is named twice.
    """
    forward = "Jvp" in kinds and (kinds.count("Jvp") > 1 or draw(st.booleans()))
    outer = OUTER
    if not forward:
        kinds = [kind for kind in kinds if kind != "Jvp"]
        outer = tuple(how for how in OUTER if how != "jvp")
    body = _nested(draw, draw(st.integers(1, depth)), 1, kinds)
    how = draw(st.lists(st.sampled_from(outer), min_size=0, max_size=orders))
    while "autograd" in how[:-1]:  # it is plain autograd: under transforms torch refuses it
        how.remove("autograd")
    # The oracle takes a multiple of the time for each derivative that is nested in another.
    how = how[: max(0, 4 - _order(body, {Grad: 1, Jvp: 1, Descend: 2}))]
    program = Program(body, tuple(how))
    # Compiled code refuses such programs, so some are enough.
    assume(not loses_tangents(program) or draw(st.booleans()))
    return program


def loses_tangents(program: Program) -> bool:
    """Return True if torch drops tangents of a program without an error.

    It takes no derivative of the `jvp` of an autograd function, and none of a custom operator.
    """
    forward = _order(program.body, {Jvp: 1}) + program.orders.count("jvp")
    kinds = {type(each) for each in nodes(program)}
    return (forward > 1 and Function in kinds) or (forward > 0 and Custom in kinds)


def _order(tree: Any, kinds: Mapping[type[Expr], int]) -> int:
    """Return how many derivatives of these kinds are nested at most; each kind counts as often."""
    if isinstance(tree, tuple):
        return max((_order(each, kinds) for each in tree), default=0)
    if not isinstance(tree, Expr):
        return 0
    inner = max((_order(value, kinds) for value in vars(tree).values()), default=0)
    return kinds.get(type(tree), 0) + inner


def points() -> Any:
    """Return a strategy of pairs of points."""
    return st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4)


def _simple(draw: Draw, n: int, size: int, kinds: Sequence[str]) -> Expr:
    """Return a polynomial, sin, tanh or the like of the `n` variables in scope."""
    kind = draw(st.integers(0, 9)) if size else draw(st.integers(0, 3))
    if kind <= 2:
        return Var(draw(st.integers(0, n - 1)))
    if kind == 3:
        return Const(draw(st.integers(0, 3)), draw(st.integers(0, 3)) == 0)
    if kind <= 6:
        two = (Add, Mul, Function)[draw(st.sampled_from([0, 1, 1, 2]))]
        return two(_simple(draw, n, size - 1, kinds), _simple(draw, n, size - 1, kinds))
    one = (Sin, Tanh, Matrix, Flip, _operator(draw, kinds))[draw(st.integers(0, 4))]
    return one(_simple(draw, n, size - 1, kinds))


def _operator(draw: Draw, kinds: Sequence[str]) -> type[Expr]:
    """Return a custom operator, but seldom one beside forward derivatives, which it does not have."""
    return Sin if "Jvp" in kinds and draw(st.integers(0, 7)) else Custom


def _nested(draw: Draw, depth: int, n: int, kinds: Sequence[str]) -> Expr:
    """Return an expression with combinators nested to `depth`, some inside an operation."""
    if depth <= 0:
        return _simple(draw, n, 2, kinds)
    found = _combinator(draw, depth, n, kinds)
    wrap = draw(st.integers(0, 5))
    if wrap == 0:
        return Mul(found, _simple(draw, n, 1, kinds))
    if wrap == 1:
        return Add(_simple(draw, n, 1, kinds), found)
    if wrap == 2:
        return (Sin, Tanh, _operator(draw, kinds))[draw(st.integers(0, 2))](found)
    return found


def _combinator(draw: Draw, depth: int, n: int, kinds: Sequence[str]) -> Expr:
    kind = draw(st.sampled_from(kinds))

    def body(binds: int) -> Expr:
        return _nested(draw, depth - 1, n + binds, kinds)

    def other(binds: int = 0) -> Expr:
        if depth > 1 and draw(st.integers(0, 5)) == 0:
            return _nested(draw, depth - 1, n + binds, kinds)
        return _simple(draw, n + binds, 1, kinds)

    flag = draw(st.booleans())
    if kind == "Grad":
        two = draw(st.integers(0, 2)) == 0
        at = (other(), other()) if two else (other(),)
        aux = other(len(at)) if draw(st.integers(0, 2)) == 0 else None
        return Grad(draw(st.sampled_from(INNER)), body(len(at)), at, aux, flag)
    if kind == "Jvp":
        return Jvp(body(1), other(), other(), flag)
    if kind == "Descend":
        how = draw(st.sampled_from(INNER))
        return Descend(how, body(1), other(), other(), draw(st.integers(1, 3)), flag)
    if kind == "Scan":
        if flag:
            return Scan(body(1), other(), draw(st.integers(1, 3)))
        xs = tuple(other() for _ in range(draw(st.integers(1, 3))))
        return Scan(body(2), other(), xs)
    if kind == "Cond":
        binds = int(flag)
        return Cond(other(), body(binds), other(binds), flag)
    if kind == "Switch":
        return Switch(other(), (other(1), body(1), other(1))[: draw(st.integers(2, 3))])
    if kind == "Vmap":
        rows = tuple(other() for _ in range(draw(st.integers(1, 2))))
        return Vmap(body(1), rows, int(flag))
    if kind == "Apply":
        return Apply(body(1), other(), other(), other())
    if kind == "While":
        return While(body(1), other(), draw(st.integers(0, 3)), flag)
    if kind == "Step":
        return Step(other(), other(), other(), flag)
    if kind in ("Detach", "NoGrad"):
        return {"Detach": Detach, "NoGrad": NoGrad}[kind](body(0))
    return {"Checkpoint": Checkpoint, "Compiled": Compiled}[kind](body(1), other())
