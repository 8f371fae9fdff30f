"""Evaluate programs in dual numbers: an oracle of a few operations, independent of torch.

A dual number is x + x' ε with ε² = 0. Each derivative that is taken has an ε of its own, so derivatives
nest: parts of a dual number are dual numbers of older ε. Gradients are forward derivatives along each
axis; maps and loops run in Python. `test_compositions.py` compares it with JAX.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["CONSTANTS", "MATRIX", "RATE", "Duals"]

CONSTANTS = np.array([[1.0, -0.6], [0.4, 0.9], [-0.5, 0.8], [0.7, 0.3]])
MATRIX = np.array([[0.8, -0.3], [0.5, 0.6]])
RATE = 0.1
V = Any
_LARGEST = 1e6  # argument of a sine, of which rounding leaves nine digits; NaN beyond
_epsilons = itertools.count()


@dataclasses.dataclass(frozen=True)
class Dual:
    """`value + slope · ε`, with a newer ε than those of its parts."""

    epsilon: int
    value: V
    slope: V

    __array_ufunc__ = None  # NumPy leaves operators to this class

    def __add__(self, other: V) -> V:
        return _linear(lambda a, b: a + b, self, other)

    def __sub__(self, other: V) -> V:
        return _linear(lambda a, b: a - b, self, other)

    def __mul__(self, other: V) -> V:
        epsilon = max(self.epsilon, _epsilon(other))
        (a, da), (b, db) = _parts(self, epsilon), _parts(other, epsilon)
        return Dual(epsilon, a * b, a * db + da * b)

    def __rsub__(self, other: V) -> V:
        return other + -1.0 * self

    __radd__, __rmul__ = __add__, __mul__


def _epsilon(x: V) -> int:
    return x.epsilon if isinstance(x, Dual) else -1


def _parts(x: V, epsilon: int) -> tuple[V, V]:
    if _epsilon(x) == epsilon:
        return x.value, x.slope
    return x, 0.0


def _linear(f: Callable[..., V], *xs: V) -> V:
    """Apply a linear function to the parts of its arguments."""
    epsilon = max(map(_epsilon, xs))
    if epsilon < 0:
        return f(*(np.asarray(x, np.float64) for x in xs))
    pairs = [_parts(x, epsilon) for x in xs]
    values, slopes = zip(*pairs, strict=True)
    slopes = tuple(
        d if isinstance(d, Dual) else np.broadcast_to(d, np.shape(plain(x)))
        for d, x in zip(slopes, values, strict=True)
    )
    return Dual(epsilon, _linear(f, *values), _linear(f, *slopes))


def _smooth(f: Callable[[V], V], slope: Callable[[V], V]) -> Callable[[V], V]:
    def apply(x: V) -> V:
        if isinstance(x, Dual):
            return Dual(x.epsilon, apply(x.value), slope(x.value) * x.slope)
        return f(np.where(np.abs(x) <= _LARGEST, x, np.nan))

    return apply


sin = _smooth(np.sin, lambda x: cos(x))
cos = _smooth(np.cos, lambda x: -1.0 * sin(x))
exp = _smooth(np.exp, lambda x: exp(x))
tanh = _smooth(np.tanh, lambda x: 1.0 + -1.0 * (tanh(x) * tanh(x)))


def plain(x: V) -> Any:
    """Return the value without any ε."""
    while isinstance(x, Dual):
        x = x.value
    return x


def _total(x: V) -> V:
    return _linear(lambda x: x.sum(), x)


class Duals:
    """`Library` of dual numbers."""

    sin, tanh, exp = staticmethod(sin), staticmethod(tanh), staticmethod(exp)
    detach, total = staticmethod(plain), staticmethod(_total)

    def constant(self, k: int, followed: bool) -> V:
        return CONSTANTS[k]

    def matrix(self, x: V) -> V:
        return _linear(lambda x: MATRIX @ x, x)

    def flip(self, x: V) -> V:
        return _linear(lambda x: x[::-1], x)

    def custom(self, x: V) -> V:
        return sin(2.0 * x)

    def function(self, x: V, y: V) -> V:
        return x * sin(y)

    def no_grad(self, fn: Callable[[], V]) -> V:
        return fn()

    def jvp(self, fn: Callable[[V], V], x: V, tangent: V) -> tuple[V, V]:
        epsilon = next(_epsilons)
        value, slope = _parts(fn(Dual(epsilon, x, tangent)), epsilon)
        return value, slope + np.zeros(np.shape(plain(value)))

    def gradient(self, how: str, fn: Callable[..., Any], x: Any, has_aux: bool) -> Any:
        xs = [x["a"], *x["b"]] if isinstance(x, dict) else [x]

        def of(*xs: V) -> Any:
            found = fn({"a": xs[0], "b": xs[1:]} if isinstance(x, dict) else xs[0])
            return found if has_aux else (found, None)

        def slope(i: int, axis: V) -> V:
            f = lambda y: of(*xs[:i], y, *xs[i + 1 :])[0]  # noqa: E731
            return self.jvp(f, xs[i], axis)[1]

        grads = [
            _linear(lambda a, b: np.stack([a, b]), *(slope(i, axis) for axis in np.eye(2)))
            for i in range(len(xs))
        ]
        value, aux = of(*xs)
        return value, aux, {"a": grads[0], "b": grads[1:]} if isinstance(x, dict) else grads[0]

    def vmap(self, fn: Callable[[V], V], rows: Sequence[V], dim: int) -> V:
        return (1.0 / len(rows)) * sum(fn(row) for row in rows)

    def scan(self, fn: Callable[..., V], start: V, xs: Sequence[V] | int) -> V:
        carry, total = start, 0.0
        for i in range(xs if isinstance(xs, int) else len(xs)):
            new = fn(carry, *([] if isinstance(xs, int) else [xs[i]]))
            total = (new if i % 2 == 0 else carry) + total
            carry = new + 0.1 * i
        return carry + 0.5 * total

    def loop(self, fn: Callable[[V], V], start: V, n: int) -> V:
        for _ in range(n):
            start = fn(start)
        return start

    def cond(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V:
        return sides[int(plain(x).sum() > 0.1)](*operands)

    def switch(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V:
        return sides[int(np.clip(np.floor(plain(x).sum() * 2), 0, len(sides) - 1))](*operands)

    def while_loop(self, fn: Callable[[V], V], start: V, n: int) -> V:
        for _ in range(n):
            if plain(start).sum() < 1.5:
                start = fn(start)
        return start

    def checkpoint(self, fn: Callable[[V], V], x: V) -> V:
        return fn(x)

    compiled = checkpoint

    def apply(self, fn: Callable[[V], V], p: V, q: V, x: V) -> V:
        return fn(self._layer(p, q, 0.5 * p, x))

    def step(self, p: V, q: V, x: V) -> V:
        params = [p, q, 0.5 * p]
        found = []
        for i, param in enumerate(params):

            def loss(w: V, i: int = i) -> V:
                y = tanh(self._layer(*params[:i], w, *params[i + 1 :], x))
                return _total(y * y)

            grad = self.gradient("", loss, param, False)[2]
            found.append(param + -RATE * grad)
        return found[0] + 0.5 * found[1] + found[2]

    def _layer(self, p: V, q: V, bias: V, x: V) -> V:
        return _linear(lambda a, b: np.stack([a, b]), _total(p * x), _total(q * x)) + bias
