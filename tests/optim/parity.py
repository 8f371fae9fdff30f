"""Compare trajectories of one algorithm in ftrain and in an independent implementation.

Both run for 100 steps with their own states, on the same random gradients or on the gradients of a
function at their own parameters; they are not synchronized between steps. The difference of two
trajectories is the largest `||ours - theirs|| / ||theirs||` over all steps, with norms over the whole
tree.

Read next: `parity_table.py`, which lists the compared pairs; `page.py`, which reports the results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from hypothesis import strategies as st

import ftrain
from ftrain import optim
from tests.optim.cases import random_tree

STEPS = 100
BOUNDS = {torch.float64: 1e-12, torch.float32: 4e-6}
Hyper = dict[str, Any]


class Parity(NamedTuple):
    """Comparison of one algorithm with one oracle.

    `hyper` draws hyper-parameters; `ours` and `theirs` build from them (`theirs` a function of
    the list of parameters for torch, a transformation for optax). Leaves have these `shapes`, and
    gradients magnitudes of 10 to the power of up to ± `spread`; with a `drift` they are so much noise
    around a constant. A `loss` of the leaves and the module it is written in (`torch` or `jax.numpy`)
    is handed in as `value_fn`; `descends` says that the gradients are its own. `float32` is the bound
    there, where rounding is magnified about three times what was measured.
    """

    algorithm: str
    oracle: str
    hyper: st.SearchStrategy[Hyper]
    ours: Callable[[Hyper], optim.GradientTransformation]
    theirs: Callable[[Hyper], Any]
    shapes: tuple[tuple[int, ...], ...] = ((), (0,), (7,), (33, 5), (4, 3, 2))
    spread: float = 2.0
    drift: float | None = None
    loss: Callable[[list[Any], Any], Any] | None = None
    descends: bool = False
    float32: float = BOUNDS[torch.float32]

    @property
    def bounds(self) -> dict[torch.dtype, float]:
        return {**BOUNDS, torch.float32: self.float32}

    def value_fn(self, module: Any = torch) -> Callable[[dict], Any]:
        assert self.loss is not None
        return lambda params: self.loss([params[name] for name in sorted(params)], module)


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Return a strategy for 10 to a power between the bounds."""
    return st.floats(low, high).map(lambda e: 10.0**e)


def drawn(rate: tuple[float, float] = (-3, 0), **more: Any) -> st.SearchStrategy[Hyper]:
    return st.fixed_dictionaries({"rate": powers(*rate), **more})


fractions = st.floats(0.0, 0.99, allow_subnormal=False)  # optax in float32 has NaN at 5e-324
slow = powers(-4, -0.3).map(lambda x: 1 - x)  # decays of squares: 0.5 to 0.9999
small = powers(-10, -3)  # eps
decays = st.one_of(st.just(0.0), powers(-4, -1))
adam = {"b1": fractions, "b2": slow, "eps": small}
EVERY = optim.everything


def l2(h: Hyper, optimizer: optim.GradientTransformation) -> optim.GradientTransformation:
    """The L2 penalty of torch's `weight_decay`."""
    return optim.chain(optim.add_decayed_weights(h["decay"], mask=EVERY), optimizer)


def betas(h: Hyper) -> Hyper:
    return {"lr": h["rate"], "betas": (h["b1"], h["b2"]), "eps": h["eps"]}


def torch_(build: type[torch.optim.Optimizer], **kwargs: Any) -> Callable:
    return functools.partial(build, foreach=False, **kwargs)


def hold(row: Parity, data: st.DataObject) -> None:
    """Draw hyper-parameters and a seed, and hold the row to its bounds."""
    h, seed = data.draw(row.hyper), data.draw(st.integers(0, 2**31))
    for dtype, bound in row.bounds.items():
        assert difference(row, h, seed, dtype) <= bound, dtype


def difference(row: Parity, h: Hyper, seed: int, dtype: torch.dtype) -> float:
    """Return the largest relative distance of the two trajectories over all steps."""
    params = random_tree(seed, row.shapes, dtype, 0.5)
    grads = gradients(row, seed, dtype)
    return _apart(_flat(_ours(row, h, params, grads)), _theirs(row, h, params, grads))


def rounding(row: Parity, h: Hyper, seed: int) -> tuple[float, float]:
    """Return the distances of both float32 runs from the oracle in float64, from equal starts."""
    params = random_tree(seed, row.shapes, torch.float32, 0.5)
    grads = gradients(row, seed, torch.float32)
    exact = _theirs(row, h, _double(params), [_double(g) for g in grads])
    ours = _apart(_flat(_ours(row, h, params, grads)), exact)
    return ours, _apart(_theirs(row, h, params, grads), exact)


def _apart(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((x - y).norm(dim=1) / y.norm(dim=1)).max().item()


def _double(leaves: dict) -> dict:
    return {name: leaf.double() for name, leaf in leaves.items()}


def _theirs(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> torch.Tensor:
    found = _flat((_torch if row.oracle == "torch" else _optax)(row, h, params, grads))
    assert torch.isfinite(found).all(), (row.algorithm, row.oracle, h)
    return found


def gradients(row: Parity, seed: int, dtype: torch.dtype) -> list[dict]:
    """Return the gradients of every step for both sides, unless the row has a loss."""
    found = [random_tree(seed + 1 + t, row.shapes, dtype, row.spread) for t in range(STEPS)]
    if row.drift is None:
        return found
    way = random_tree(seed, row.shapes, dtype, row.spread)
    return [{name: w + row.drift * g[name] for name, w in way.items()} for g in found]


def _flat(run: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return one float64 vector per step with the elements of all leaves."""
    return torch.cat([x.double().reshape(STEPS, x[0].numel()) for x in run.values()], 1)


def _ours(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> dict:
    optimizer, found = row.ours(h), []
    state = optimizer.init(params)
    extra = {} if row.loss is None else {"value_fn": row.value_fn()}
    for g in grads:
        here = _slope(row, params) if row.descends else g
        updates, state = optimizer.update(here, state, params, **extra)
        params = optim.apply_updates(params, updates)
        found.append(params)
    return {name: torch.stack([p[name] for p in found]) for name in params}


def _slope(row: Parity, params: dict) -> dict:
    return ftrain.value_and_grad(row.value_fn())(params)[1]


def _torch(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> dict:
    """In a default dtype of float64, in which torch then keeps its scalar states."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
        optimizer, found = row.theirs(h)(list(theirs.values())), []
        for g in grads:
            now = {name: p.detach().clone() for name, p in theirs.items()}
            here = _slope(row, now) if row.descends else g
            for name, p in theirs.items():
                p.grad = here[name].clone()
            optimizer.step(lambda: 0.0)  # what L-BFGS asks for, and does not read without a search
            found.append({name: p.detach().clone() for name, p in theirs.items()})
    finally:
        torch.set_default_dtype(before)
    return {name: torch.stack([p[name] for p in found]) for name in params}


def _optax(row: Parity, h: Hyper, params: dict, grads: list[dict]) -> dict:
    """With 64-bit types on: optax computes `1 - b ** t` in JAX's default float."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        numbers = {k: v for k, v in h.items() if type(v) is float}
        others = tuple((k, v) for k, v in h.items() if type(v) is not float)
        stacked = {name: np.stack([g[name].numpy() for g in grads]) for name in params}
        start = {name: p.numpy() for name, p in params.items()}
        found = _optax_run(row, others)(numbers, start, stacked)
        return {name: torch.tensor(np.asarray(x)) for name, x in found.items()}
    finally:
        jax.config.update("jax_enable_x64", before)


@functools.cache
def _optax_run(row: Parity, others: tuple) -> Callable:
    """One program for all draws: Python numbers are weakly typed arguments."""

    @jax.jit
    def run(numbers: Hyper, params: Any, grads: Any) -> Any:
        optimizer = row.theirs({**numbers, **dict(others)})

        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            here = jax.grad(row.value_fn(jnp))(params) if row.descends else g
            updates, state = optimizer.update(here, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    return run
