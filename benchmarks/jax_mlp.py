"""Training step of the small MLP in JAX and optax, for comparison if both are installed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from benchmarks.contenders import BETAS, CLIP, DECAY, EPS, RATE, Task, steps

try:
    import jax
    import jax.numpy as jnp
    import optax  # type: ignore[import-untyped]
except ImportError:
    jax = None  # type: ignore[assignment]

available = jax is not None


def mlp_step(task: Task, layers: int = 3) -> Callable[[], Any]:
    """Return the training step in JAX, jitted with a donated state; each call waits for its result."""
    params = {
        name: jnp.asarray(value.numpy()) for name, value in steps(task).init_state(0).params.items()
    }
    adamw = optax.adamw(RATE, *BETAS, EPS, weight_decay=DECAY)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adamw) if task.clip else adamw
    batches = itertools.cycle(
        [{k: jnp.asarray(v.numpy()) for k, v in batch.items()} for batch in task.batches]
    )

    def loss_fn(params: Any, batch: Any) -> Any:
        h = batch["x"]
        for i in range(layers):
            h = h @ params[f"layers.{2 * i}.weight"].T + params[f"layers.{2 * i}.bias"]
            h = jax.nn.relu(h) if i < layers - 1 else h
        return jnp.square(h - batch["y"]).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state = (params, optimizer.init(params))

    def one() -> Any:
        nonlocal state
        state, loss = step(state, next(batches))
        return loss.block_until_ready()

    return one


def add_one(leaves: int, width: int) -> Callable[[], Any]:
    """Return a jitted function that adds one to each of many donated tensors."""
    state = {f"leaf{i}": jnp.ones(width) for i in range(leaves)}
    step = jax.jit(lambda state, x: ({k: v + x for k, v in state.items()}, x), donate_argnums=0)
    x = jnp.asarray(1e-3)

    def one() -> Any:
        nonlocal state
        state, out = step(state, x)
        return out.block_until_ready()

    return one
