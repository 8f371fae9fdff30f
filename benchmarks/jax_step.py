"""Training step of the MLP and of the GPT in JAX and optax, for comparison if both are installed.

The losses take ftrain's parameters, by torch's names and in torch's layout: a weight is `(outputs,
inputs)`. "bf16-mixed" computes products in bfloat16 and the remaining operations in float32, as
`torch.autocast` does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.contenders import BETAS, EPS, Precision, Task, split, steps
from ftrain import optim

try:
    import jax
    import jax.numpy as jnp
    import optax  # type: ignore[import-untyped]
except ImportError:
    jax = None  # type: ignore[assignment]

available = jax is not None

Params = Mapping[str, Any]
Dot = Callable[[Any, Any], Any]
Loss = Callable[[Params, Mapping[str, Any], Dot], Any]


def mlp_loss(params: Params, batch: Mapping[str, Any], dot: Dot) -> Any:
    """Return the mean squared error of a stack of linear layers with ReLU between them."""
    h = batch["x"]
    layers = len(params) // 2
    for i in range(layers):
        h = dot(h, params[f"layers.{2 * i}.weight"].T) + params[f"layers.{2 * i}.bias"]
        h = jax.nn.relu(h) if i < layers - 1 else h
    return jnp.square(h - batch["y"]).mean()


def gpt_loss(heads: int) -> Loss:
    """Return the mean cross-entropy of the next token under a GPT without biases and dropout.

    h = E[x] + P
    h = h + A(norm(h)),  A = softmax(mask(Q K^T / sqrt(d))) V W_o    for each block
    h = h + gelu(norm(h) W_up) W_down
    logits = norm(h) E^T
    """

    def loss(params: Params, batch: Mapping[str, Any], dot: Dot) -> Any:
        embedding = params["tokens.weight"]
        b, t = batch["x"].shape
        width = embedding.shape[1]
        mask = jnp.tril(jnp.ones((t, t), bool))
        h = embedding[batch["x"]] + params["positions.weight"][:t]
        for i in itertools.count():
            name = f"blocks.{i}."
            if name + "qkv.weight" not in params:
                break
            x = layer_norm(h, params[name + "norm1.weight"])
            qkv = dot(x, params[name + "qkv.weight"].T).reshape(b, t, 3, heads, width // heads)
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)
            scores = dot(q, k.swapaxes(2, 3)) / math.sqrt(width // heads)
            weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
            mixed = dot(weights, v).transpose(0, 2, 1, 3).reshape(b, t, width)
            h = h + dot(mixed, params[name + "out.weight"].T)
            x = layer_norm(h, params[name + "norm2.weight"])
            x = jax.nn.gelu(dot(x, params[name + "up.weight"].T), approximate=False)
            h = h + dot(x, params[name + "down.weight"].T)
        logits = dot(layer_norm(h, params["norm.weight"]), embedding.T)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    return loss


def layer_norm(x: Any, weight: Any) -> Any:
    """Normalize the last axis with torch's epsilon."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * weight


def training_step(
    task: Task, loss_fn: Loss, *, accumulate: int = 1, precision: Precision = "32-true"
) -> Callable[[], Any]:
    """Return the training step in JAX, jitted with a donated state; each call waits for its result.

    Args:
        task: the initial weights, batches and optimizer.
        loss_fn: the loss in JAX.
        accumulate: the number of micro-batches of a batch, which `jax.lax.scan` runs over.
        precision: "bf16-mixed" computes products in bfloat16.
    """
    params = _parameters(task)
    mask = jax.tree.map(lambda p: p.ndim >= 2, params) if task.mask is optim.matrices else None
    adamw = optax.adamw(task.rate, *BETAS, EPS, weight_decay=task.decay, mask=mask)
    optimizer = optax.chain(optax.clip_by_global_norm(task.max_norm), adamw) if task.clip else adamw
    batches = itertools.cycle([_stacked(split(batch, accumulate)) for batch in task.batches])
    dot = _dot(precision)

    def gradients(params: Any, batch: Any) -> Any:
        def one(total: Any, micro: Any) -> Any:
            found = jax.value_and_grad(loss_fn)(params, micro, dot)
            return jax.tree.map(jnp.add, total, found), None

        if accumulate == 1:
            return jax.value_and_grad(loss_fn)(params, {k: v[0] for k, v in batch.items()}, dot)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(one, zeros, batch)
        return jax.tree.map(lambda x: x / accumulate, total)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        loss, grads = gradients(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state = (params, jax.jit(optimizer.init)(params))

    def one() -> Any:
        nonlocal state
        state, loss = step(state, next(batches))
        return loss.block_until_ready()

    return one


def _parameters(task: Task) -> dict[str, Any]:
    params = steps(task).init_state(0).params
    return {name: jnp.array(value.numpy()) for name, value in params.items()}


def _stacked(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: jnp.asarray(np.stack([batch[name].numpy() for batch in batches]))
        for name in batches[0]
    }


def _dot(precision: Precision) -> Dot:
    if precision == "32-true":
        return jnp.matmul  # type: ignore[no-any-return]

    def dot(a: Any, b: Any) -> Any:
        product = jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
        return product.astype(jnp.float32)

    return dot


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
