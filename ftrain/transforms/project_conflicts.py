"""Gradients of several tasks, without the parts that conflict (PCGrad)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import random, tree
from ftrain.core.accumulate import MicroBatches
from ftrain.core.gradients import GradientResult
from ftrain.core.metrics import Mean, Metrics, Sum
from ftrain.core.norm import global_norm
from ftrain.core.state import TrainState
from ftrain.optim._leaves import compute_dtype
from ftrain.transforms._wrapped import named
from ftrain.transforms.from_gradients import Gradients

__all__ = ["project_conflicts"]

_STREAM = 0x70636772


def project_conflicts(tasks: Mapping[str, Gradients]) -> Gradients:
    r"""Return a gradient function: the sum of several tasks' gradients without their conflicts.

    Each gradient is projected onto the normal plane of every other gradient that it conflicts with.

    For each task $i$ and all others $j$ in random order, drawn from the state's key:

    $$g_i \leftarrow g_i - \frac{\min(g_i^\top g_j, 0)}{\lVert g_j \rVert^2} g_j$$

    with the original $g_j$. Without conflicts the result is the sum of the gradients. The projections
    are computed from the matrix of inner products, so they take no more memory than the gradients.

    The tasks are called one after the other: each gets the buffers, loss scale and key that the task
    before it returned. A step is skipped if one of the gradients is not finite.

    Args:
        tasks: `(state, batch) -> GradientResult` by name, such as `ftrain.gradients(model, loss_fn)` for
            each loss, all of one model.

    Returns:
        `(state, batches) -> GradientResult` with `batches` a mapping by task name. Metrics are `loss`
        (the sum of the tasks' losses), `grad_norm` (of the result), `skipped`, and those of each task
        under `name/`.

    Raises:
        ValueError: there is no task; in a call, the batches have other names.

    Example:
        >>> import ftrain
        >>> tasks = {
        ...     "up": lambda model, x: (model(x) - 1).square().mean(),
        ...     "down": lambda model, x: (model(x) + 1).square().mean(),
        ... }
        >>> apply = ftrain.bind(torch.nn.Linear(3, 1))
        >>> both = project_conflicts({k: ftrain.gradients(apply, fn) for k, fn in tasks.items()})
        >>> params, buffers = apply.init(random.key(0))
        >>> state = TrainState(torch.tensor(0), params, buffers, (), (), random.key(1), {})
        >>> result = both(state, {"up": torch.ones(4, 3), "down": torch.ones(4, 3)})
        >>> sorted(result.metrics)[:4]
        ['down/grad_norm', 'down/loss', 'down/skipped', 'grad_norm']

    References:
        Yu, Kumar, Gupta, Levine, Hausman, Finn (2020), [Gradient Surgery for Multi-Task
        Learning](https://arxiv.org/abs/2001.06782).
    """
    if not tasks:
        raise ValueError(
            "project_conflicts: expected at least one task, got none. Write "
            "project_conflicts({'name': gradients})."
        )

    def projected(state: TrainState, batches: Any) -> GradientResult:
        batches = check_names("project_conflicts", batches, tasks)
        results: list[GradientResult] = []
        after = state
        for name, gradients in tasks.items():
            result = gradients(after, batches[name])
            after = after.replace(buffers=result.buffers, scaler=result.scaler, rng=result.rng)
            results.append(result)
        grads = _combined([result.grads for result in results], state.rng)
        finite = [result.finite for result in results if result.finite is not None]
        good = torch.stack(finite).all() if finite else None
        losses = torch.stack([result.metrics["loss"] for result in results])
        loss = losses.sum()
        norm = global_norm(grads).to(loss.dtype)
        applied = torch.ones_like(loss, dtype=torch.bool) if good is None else good
        entries = {
            "loss": Mean(loss, torch.ones_like(loss)),
            "grad_norm": Mean(torch.where(applied, norm, 0), applied.to(norm.dtype)),
            "skipped": Sum(torch.logical_not(applied).to(torch.int64)),
        }
        for name, result in zip(tasks, results, strict=True):
            entries |= named(result.metrics, name)
        return GradientResult(grads, good, after.buffers, after.scaler, after.rng, Metrics(entries))

    return projected


def check_names(function: str, batches: Any, expected: Mapping[str, Any]) -> Any:
    """Return batches by name; raise unless `batches` is a mapping with the expected names.

    Micro-batches that each are such a mapping become micro-batches by name.
    """
    if isinstance(batches, MicroBatches):
        parts = [check_names(function, part, expected) for part in batches.batches]
        by_name = {name: tuple(part[name] for part in parts) for name in expected}
        return {name: MicroBatches(each, batches.weights) for name, each in by_name.items()}
    if not isinstance(batches, Mapping) or batches.keys() != expected.keys():
        got = sorted(batches) if isinstance(batches, Mapping) else type(batches).__name__
        raise ValueError(
            f"{function}: expected a batch for each of {sorted(expected)}, got {got}. Write "
            "{name: batch, ...}."
        )
    return batches


def _combined(grads: list[Any], key: torch.Tensor) -> Any:
    """Return the sum of the projected gradients, computed as a linear combination of `grads`."""
    n = len(grads)
    columns = list(zip(*(tree.leaves(g) for g in grads), strict=True))
    inner = torch.zeros(n, n, dtype=torch.float64, device=columns[0][0].device)
    for leaves in columns:
        rows = torch.stack([x.reshape(-1).to(compute_dtype(x.dtype)) for x in leaves])
        inner = inner + (rows @ rows.T).to(inner.device, torch.float64)
    shares = torch.zeros(n, dtype=torch.float64, device=inner.device)
    for i in range(n):
        share = torch.eye(n, dtype=torch.float64, device=inner.device)[i]  # of each gradient in g_i
        for j in random.permutation(key, n, folds=(_STREAM, i)).unbind():
            row = inner.index_select(0, j[None])[0]
            square = row.index_select(0, j[None])[0]
            overlap = (share @ row).clamp(max=0)
            conflicts = (j != i) & (overlap < 0) & (square > 0)
            off = torch.where(conflicts, overlap / torch.where(square > 0, square, 1), 0)
            share = share - off * (torch.arange(n, device=inner.device) == j)
        shares = shares + share
    weights = shares.unbind()

    def total(*leaves: torch.Tensor) -> torch.Tensor:
        wide = compute_dtype(leaves[0].dtype)
        pairs = zip(leaves, weights, strict=True)
        terms = [x.to(wide) * w.to(x.device, wide) for x, w in pairs]
        return torch.stack(terms).sum(0).to(leaves[0].dtype)

    return tree.map(total, *grads)
