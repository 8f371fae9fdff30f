"""Evaluate programs in JAX, with its derivatives and `vmap`; loops are unrolled, branches selected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tests.compositions.in_duals import CONSTANTS, MATRIX, RATE

__all__ = ["Jax"]

V = Any


class Jax:
    """`Library` of JAX functions. Call it inside of `jax.enable_x64(True)`."""

    sin, tanh, exp = staticmethod(jnp.sin), staticmethod(jnp.tanh), staticmethod(jnp.exp)
    detach = staticmethod(jax.lax.stop_gradient)

    def constant(self, k: int, followed: bool) -> V:
        return jnp.asarray(CONSTANTS[k])

    def matrix(self, x: V) -> V:
        return (jnp.asarray(MATRIX) * x).sum(1)

    def flip(self, x: V) -> V:
        return jnp.stack([x[1], x[0]])

    def total(self, x: V) -> V:
        return x.sum()

    def custom(self, x: V) -> V:
        return jnp.sin(2 * x)

    def function(self, x: V, y: V) -> V:
        return x * jnp.sin(y)

    def no_grad(self, fn: Callable[[], V]) -> V:
        return fn()

    def gradient(self, how: str, fn: Callable[..., Any], x: Any, has_aux: bool) -> Any:
        out, grads = jax.value_and_grad(fn, has_aux=has_aux)(x)
        value, aux = out if has_aux else (out, None)
        return value, aux, grads

    def jvp(self, fn: Callable[[V], V], x: V, tangent: V) -> tuple[V, V]:
        value, slope = jax.jvp(fn, (x,), (tangent,))
        return value, slope

    def vmap(self, fn: Callable[[V], V], rows: Sequence[V], dim: int) -> V:
        return jax.vmap(fn)(jnp.stack([*rows])).mean(0)

    def scan(self, fn: Callable[..., V], start: V, xs: Sequence[V] | int) -> V:
        carry, total = start, 0.0
        for i in range(xs if isinstance(xs, int) else len(xs)):
            new = fn(carry, *([] if isinstance(xs, int) else [xs[i]]))
            total = total + (new if i % 2 == 0 else carry)
            carry = new + 0.1 * i
        return carry + 0.5 * total

    def loop(self, fn: Callable[[V], V], start: V, n: int) -> V:
        for _ in range(n):
            start = fn(start)
        return start

    def cond(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V:
        low, high = (side(*operands) for side in sides)
        return jnp.where(x.sum() > 0.1, high, low)

    def switch(self, x: V, sides: Sequence[Callable[..., V]], operands: Sequence[V]) -> V:
        index = jnp.floor(x.sum() * 2).clip(0, len(sides) - 1)
        picked = functools.partial(jnp.where, index == 0)
        found = sides[0](*operands)
        for i, side in enumerate(sides[1:], 1):
            picked = functools.partial(jnp.where, index == i)
            found = picked(side(*operands), found)
        return found

    def while_loop(self, fn: Callable[[V], V], start: V, n: int) -> V:
        for _ in range(n):
            start = jnp.where(start.sum() < 1.5, fn(start), start)
        return start

    def checkpoint(self, fn: Callable[[V], V], x: V) -> V:
        return fn(x)

    compiled = checkpoint

    def apply(self, fn: Callable[[V], V], p: V, q: V, x: V) -> V:
        return fn(self._linear(p, q, 0.5 * p, x))

    def step(self, p: V, q: V, x: V) -> V:
        def loss(params: tuple[V, V, V]) -> V:
            return (jnp.tanh(self._linear(*params, x)) ** 2).sum()

        params = (p, q, 0.5 * p)
        grads = jax.grad(loss)(params)
        new_p, new_q, bias = (w - RATE * g for w, g in zip(params, grads, strict=True))
        return new_p + 0.5 * new_q + bias

    def _linear(self, p: V, q: V, bias: V, x: V) -> V:
        return jnp.stack([(p * x).sum(), (q * x).sum()]) + bias
