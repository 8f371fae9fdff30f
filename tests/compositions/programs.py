"""Programs of nested derivatives, loops, branches and transforms, whose repr is their source.

A program is a smooth function of vectors in R^2. Each node computes a vector from the variables in
scope; a node with a body binds variables, and its body may use those of every node around it as well:
these are captured. `run` evaluates a program with a `Library`: torch and ftrain (`in_torch.py`), dual
numbers (`in_duals.py`), the oracle, or JAX (`in_jax.py`), with which the oracle is compared.

Read next: `strategies.py`, which draws programs, and `test_compositions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.compositions.expressions import (
    Add,
    Const,
    Custom,
    Detach,
    Expr,
    Flip,
    Function,
    Library,
    Matrix,
    Mul,
    NoGrad,
    Scope,
    Sin,
    Tanh,
    V,
    Var,
    node,
    nodes,
    objective,
)

__all__ = [
    "Add", "Apply", "Checkpoint", "Compiled", "Cond", "Const", "Custom", "Descend", "Detach", "Expr",
    "Flip", "Function", "Grad", "Jvp", "Library", "Matrix", "Mul", "NoGrad", "Program", "Scan", "Sin",
    "Step", "Switch", "Tanh", "Var", "Vmap", "While", "nodes", "objective",
]  # fmt: skip


# --- derivatives ----------------------------------------------------------------------------------


@node
class Grad(Expr):
    """Gradient of `objective(body)` with respect to one or two variables; others are captured.

    Attributes:
        how: "value_and_grad", "differentiable", "func", "vjp" or "autograd".
        body: binds a variable for each of `at`.
        aux: an auxiliary output, of the same scope; it is added to the result.
        value: add the value too.
    """

    how: str
    body: Expr
    at: tuple[Expr, ...]
    aux: Expr | None = None
    value: bool = False

    def run(self, lib: Library, scope: Scope) -> V:
        def fn(x: dict[str, Any]) -> Any:
            bound = [x["a"], *(x["b"][0:1])]
            inner = [*bound, *scope]
            value = objective(lib, self.body.run(lib, inner), *bound)
            if self.aux is None:
                return value
            return value, self.aux.run(lib, inner)

        first, *second = (each.run(lib, scope) for each in self.at)
        x = {"a": first, "b": tuple(second)}
        value, aux, grads = lib.gradient(self.how, fn, x, self.aux is not None)
        found = grads["a"]
        for each in grads["b"]:
            found = found + 0.5 * each
        if self.aux is not None:
            found = found + aux
        return found + value if self.value else found


@node
class Jvp(Expr):
    """Derivative of `body` along `tangent`."""

    body: Expr
    at: Expr
    tangent: Expr
    value: bool = False

    def run(self, lib: Library, scope: Scope) -> V:
        at, tangent = self.at.run(lib, scope), self.tangent.run(lib, scope)
        value, slope = lib.jvp(lambda x: self.body.run(lib, [x, *scope]), at, tangent)
        return value + slope if self.value else slope


@node
class Descend(Expr):
    """Steps of gradient descent on `objective(body)`, in `scan` or a Python loop."""

    how: str
    body: Expr
    at: Expr
    rate: Expr
    steps: int = 2
    scanned: bool = True

    def run(self, lib: Library, scope: Scope) -> V:
        rate = 0.1 * self.rate.run(lib, scope)

        def fn(p: V) -> Any:
            return objective(lib, self.body.run(lib, [p, *scope]), p)

        def step(p: V, *_: V) -> V:
            _, _, grad = lib.gradient(self.how, fn, p, False)
            return p - rate * grad

        start = self.at.run(lib, scope)
        if self.scanned:
            return lib.scan(step, start, self.steps)
        return lib.loop(step, start, self.steps)


# --- loops and branches ---------------------------------------------------------------------------


@node
class Scan(Expr):
    """Scan whose `body` binds the carry and an element of `xs`, if there are any."""

    body: Expr
    start: Expr
    xs: tuple[Expr, ...] | int = 2

    def run(self, lib: Library, scope: Scope) -> V:
        xs = self.xs
        rows = xs if isinstance(xs, int) else [x.run(lib, scope) for x in xs]
        start = self.start.run(lib, scope)
        return lib.scan(lambda c, *x: self.body.run(lib, [c, *x, *scope]), start, rows)


@node
class Cond(Expr):
    """Branch on the sign of a sum; with `operand`, each branch binds `on`, otherwise nothing."""

    on: Expr
    when: Expr
    otherwise: Expr
    operand: bool = True

    def run(self, lib: Library, scope: Scope) -> V:
        on = self.on.run(lib, scope)
        sides = [self.otherwise, self.when]
        calls = [lambda *x, side=side: side.run(lib, [*x, *scope]) for side in sides]
        return lib.cond(on, calls, [on] if self.operand else [])


@node
class Switch(Expr):
    """Choice of one of several branches, which bind `on`."""

    on: Expr
    sides: tuple[Expr, ...]

    def run(self, lib: Library, scope: Scope) -> V:
        on = self.on.run(lib, scope)
        calls = [lambda x, side=side: side.run(lib, [x, *scope]) for side in self.sides]
        return lib.switch(on, calls, [on])


@node
class While(Expr):
    """Loop of at most `steps` iterations; `detached` detaches the variables that the body reads."""

    body: Expr
    start: Expr
    steps: int = 2
    detached: bool = True

    def run(self, lib: Library, scope: Scope) -> V:
        start = self.start.run(lib, scope)
        if self.detached:
            start, scope = lib.detach(start), [lib.detach(x) for x in scope]
        return lib.while_loop(lambda c: self.body.run(lib, [c, *scope]), start, self.steps)


# --- transforms and wrappers ----------------------------------------------------------------------


@node
class Vmap(Expr):
    """Mean over the rows of `body`, mapped along `dim` of the rows and of the results."""

    body: Expr
    rows: tuple[Expr, ...]
    dim: int = 0

    def run(self, lib: Library, scope: Scope) -> V:
        rows = [row.run(lib, scope) for row in self.rows]
        return lib.vmap(lambda x: self.body.run(lib, [x, *scope]), rows, self.dim)


@node
class Checkpoint(Expr):
    body: Expr
    at: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.checkpoint(lambda x: self.body.run(lib, [x, *scope]), self.at.run(lib, scope))


@node
class Compiled(Expr):
    body: Expr
    at: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.compiled(lambda x: self.body.run(lib, [x, *scope]), self.at.run(lib, scope))


@node
class Apply(Expr):
    """Bound module of a linear layer with weights `p` and `q` and bias `p / 2`, then `body`."""

    body: Expr
    p: Expr
    q: Expr
    at: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        given = [each.run(lib, scope) for each in (self.p, self.q, self.at)]
        return lib.apply(lambda x: self.body.run(lib, [x, *scope]), *given)


@node
class Step(Expr):
    """Training step, which keeps no graph; with `detached`, its inputs are detached."""

    p: Expr
    q: Expr
    at: Expr
    detached: bool = True

    def run(self, lib: Library, scope: Scope) -> V:
        given = [each.run(lib, scope) for each in (self.p, self.q, self.at)]
        if self.detached:
            given = [lib.detach(each) for each in given]
        return lib.step(*given)


# --- the whole ------------------------------------------------------------------------------------


@node
class Program(Expr):
    """Function with the outermost transforms that differentiate it.

    Attributes:
        body: binds one variable.
        orders: a kind of derivative for each order, innermost first: those of `Grad`, "jvp", or
            "vmap", the mean over two rows, which is no derivative.
    """

    body: Expr
    orders: tuple[str, ...] = ()

    def run(self, lib: Library, scope: Scope) -> V:
        (x,) = scope
        return self.function(lib)(x)

    def function(self, lib: Library) -> Callable[[V], V]:
        """Return the function of one vector."""
        fn = lambda x: self.body.run(lib, [x])  # noqa: E731
        for how in self.orders:
            fn = _differentiated(lib, how, fn)
        return fn


def _differentiated(lib: Library, how: str, fn: Callable[[V], V]) -> Callable[[V], V]:
    if how == "jvp":
        return lambda x: lib.jvp(fn, x, lib.constant(1, False))[1]
    if how == "vmap":
        return lambda x: lib.vmap(fn, [x, 0.5 * x + lib.constant(2, False)], 0)
    return lambda x: lib.gradient(how, lambda x: objective(lib, fn(x), x), x, False)[2]
