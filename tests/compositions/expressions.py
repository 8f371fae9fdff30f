"""Expression nodes without a body, and the interface of the operations in programs.

Read next: `programs.py`, the nodes that bind variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

__all__ = [
    "Add", "Const", "Custom", "Detach", "Expr", "Flip", "Function", "Library", "Matrix", "Mul", "NoGrad",
    "Scope", "Sin", "Tanh", "V", "Var", "node", "nodes", "objective",
]  # fmt: skip

V = Any  # a float64 vector with two entries
Scope = list[V]  # the innermost variable first


class Library(Protocol):
    """Interface of the operations in programs."""

    def constant(self, k: int, followed: bool) -> V: ...
    def sin(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def exp(self, x: V) -> V: ...
    def matrix(self, x: V) -> V: ...
    def flip(self, x: V) -> V: ...
    def total(self, x: V) -> Any: ...
    def custom(self, x: V) -> V: ...
    def function(self, x: V, y: V) -> V: ...
    def detach(self, x: V) -> V: ...
    def no_grad(self, fn: Callable[[], V]) -> V: ...
    def gradient(self, how: str, fn: Callable[..., Any], x: Any, has_aux: bool) -> Any: ...
    def jvp(self, fn: Callable[[V], V], x: V, tangent: V) -> tuple[V, V]: ...
    def vmap(self, fn: Callable[[V], V], rows: Sequence[V], dim: int) -> V: ...
    def scan(self, fn: Callable[..., V], start: V, xs: Sequence[V] | int) -> V: ...
    def loop(self, fn: Callable[[V], V], start: V, n: int) -> V: ...
    def cond(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V: ...
    def switch(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V: ...
    def while_loop(self, fn: Callable[[V], V], start: V, n: int) -> V: ...
    def checkpoint(self, fn: Callable[[V], V], x: V) -> V: ...
    def compiled(self, fn: Callable[[V], V], x: V) -> V: ...
    def apply(self, fn: Callable[[V], V], p: V, q: V, x: V) -> V: ...
    def step(self, p: V, q: V, x: V) -> V: ...


class Expr:
    """Node that computes a vector from the variables in scope."""

    def run(self, lib: Library, scope: Scope) -> V:
        raise NotImplementedError


def nodes(tree: Any) -> Iterator[Expr]:
    """Iterate over a program's nodes."""
    if isinstance(tree, Expr):
        yield tree
        for field in dataclasses.fields(tree):  # type: ignore[arg-type]  # each node is a dataclass
            yield from nodes(getattr(tree, field.name))
    elif isinstance(tree, tuple):
        for each in tree:
            yield from nodes(each)


def objective(lib: Library, value: V, *by: V) -> Any:
    """Return a scalar of `value` that depends on each of `by` at every order."""
    total = lib.total(value * lib.constant(0, False))
    for x in by:
        total = total + lib.total(lib.exp(0.3 * x))
    return total


node = dataclasses.dataclass(frozen=True)


# --- without a body -------------------------------------------------------------------------------


@node
class Var(Expr):
    """Variable, counted from the innermost one; the outermost if there are fewer."""

    i: int = 0

    def run(self, lib: Library, scope: Scope) -> V:
        return scope[min(self.i, len(scope) - 1)]


@node
class Const(Expr):
    """Tensor from outside of the program; with `followed`, a leaf that requires a gradient."""

    k: int = 0
    followed: bool = False

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.constant(self.k, self.followed)


@node
class Add(Expr):
    a: Expr
    b: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return self.a.run(lib, scope) + 0.7 * self.b.run(lib, scope)


@node
class Mul(Expr):
    a: Expr
    b: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return self.a.run(lib, scope) * self.b.run(lib, scope)


@node
class Sin(Expr):
    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.sin(self.a.run(lib, scope))


@node
class Tanh(Expr):
    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.tanh(self.a.run(lib, scope))


@node
class Matrix(Expr):
    """Product with a captured matrix."""

    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.matrix(self.a.run(lib, scope))


@node
class Flip(Expr):
    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.flip(self.a.run(lib, scope))


@node
class Custom(Expr):
    """Custom operator sin(2x) with a registered derivative."""

    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.custom(self.a.run(lib, scope))


@node
class Function(Expr):
    """Custom `torch.autograd.Function` a · sin(b)."""

    a: Expr
    b: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.function(self.a.run(lib, scope), self.b.run(lib, scope))


@node
class Detach(Expr):
    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.detach(self.a.run(lib, scope))


@node
class NoGrad(Expr):
    """`a` under `torch.no_grad()` and detached, since forward mode ignores `no_grad`."""

    a: Expr

    def run(self, lib: Library, scope: Scope) -> V:
        return lib.detach(lib.no_grad(lambda: self.a.run(lib, scope)))
