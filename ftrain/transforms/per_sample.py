"""Gradients of each example of a batch, and the scale of their noise.

Read next: `private.py` and `influence.py`, which are built on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftrain.core import random, tree
from ftrain.core._loss import LossFn
from ftrain.core.accumulate import MicroBatches
from ftrain.core.functional import Bound, bind
from ftrain.core.gradients import GradientResult, gradients
from ftrain.core.precision import Policy, Precision
from ftrain.core.state import TrainState
from ftrain.core.step import batch_statistics

__all__ = ["GradientNoise", "gradient_noise_scale", "per_sample_grads"]

Model = nn.Module | Callable[[], nn.Module] | Bound


class GradientNoise(NamedTuple):
    """Unbiased estimates of the noise and the size of a gradient, from one batch.

    Average both over batches before dividing: the ratio of single batches is biased.

    Attributes:
        trace: 0-d: the trace of the covariance of the gradients of single examples.
        squared_norm: 0-d: the squared norm of their expectation; may be negative.
    """

    trace: Tensor
    squared_norm: Tensor

    @property
    def noise_scale(self) -> Tensor:
        """Return the simple noise scale: the batch size above which larger batches gain little."""
        return self.trace / self.squared_norm


def per_sample_grads(
    model: Model,
    loss_fn: LossFn,
    *,
    precision: Precision | Policy = "32-true",
    chunk_size: int | None = None,
) -> Callable[[TrainState, Any], Any]:
    """Return a function `(state, batch) -> grads` that computes the gradient of each example.

    Row i of its result is the gradient that `gradients(model, loss_fn)` computes for example i alone,
    with the key `fold_in(state.rng, i)`: each example has random draws of its own.

    Args:
        model: as of `make_steps`.
        loss_fn: as of `make_steps`; called with batches of one example.
        precision: as of `make_steps`.
        chunk_size: examples computed at a time; default: all. Fewer need less memory for activations.

    Returns:
        A function of a state and a batch whose leaves have a first axis of examples; each example gets
        0-d tensors and other leaves unchanged. It returns a tree like `params` with leaves
        `(examples, ...)`.

    Raises:
        ValueError: a module computes statistics over the batch (BatchNorm), or a buffer depends on the
            example; in a call, leaves differ in their numbers of examples.

    Example:
        >>> from ftrain import make_steps, optim
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> state = make_steps(nn.Linear(2, 1), loss_fn, optim.sgd(0.1)).init_state(0)
        >>> grads = per_sample_grads(nn.Linear(2, 1), loss_fn)(state, torch.ones(5, 2))
        >>> grads["weight"].shape
        torch.Size([5, 1, 2])
    """
    results = per_sample_results(model, loss_fn, precision=precision)

    def grads_of(state: TrainState, batch: Any) -> Any:
        parts = chunks(count_examples(batch), chunk_size)
        found = [results(state, batch, part, state.rng).grads for part in parts]
        return found[0] if len(found) == 1 else tree.map(lambda *g: torch.cat(g), *found)

    return grads_of


def per_sample_results(
    model: Model, loss_fn: LossFn, *, precision: Precision | Policy
) -> Callable[[TrainState, Any, range, Tensor], GradientResult]:
    """Return `f(state, batch, examples, key)`, which computes a `GradientResult` for each example.

    The result has a first axis of examples, except its buffers: they must not depend on the example.
    """
    bound = bind(model)
    statistics = batch_statistics(bound)
    if statistics:
        raise ValueError(
            f"model: expected modules that treat each example alone, got statistics over the batch in "
            f"{', '.join(statistics)}, so that an example has no gradient of its own. Use GroupNorm or "
            "LayerNorm, or call eval() on these modules."
        )
    of_batch = gradients(bound, loss_fn, precision=precision)

    def results(state: TrainState, batch: Any, examples: range, key: Tensor) -> GradientResult:
        leaves, treedef = tree.flatten(batch)
        mapped = [i for i, leaf in enumerate(leaves) if _has_examples(leaf)]

        def of_one(number: Tensor, rows: list[Tensor]) -> tuple[GradientResult, Any]:
            own = list(leaves)
            for i, row in zip(mapped, rows, strict=True):
                own[i] = row.unsqueeze(0)
            at = state.replace(rng=random.fold_in(key, number))
            result = of_batch(at, tree.unflatten(treedef, own))
            return result._replace(buffers=()), result.buffers

        numbers = torch.arange(examples.start, examples.stop, device=state.step.device)
        rows = [leaves[i][examples.start : examples.stop] for i in mapped]
        try:
            result, buffers = torch.vmap(of_one, out_dims=(0, None))(numbers, rows)
        except ValueError as error:
            if "out_dim" not in str(error):
                raise
            raise ValueError(
                "model: expected buffers that do not depend on the example, got a module that writes "
                "statistics of its input to a buffer. Freeze the module, or "
                "replace it by one without buffers."
            ) from error
        whole: GradientResult = result._replace(buffers=buffers)
        return whole

    return results


def count_examples(batch: Any) -> int:
    """Return the number of examples of a batch; raise unless all leaves agree on it."""
    if isinstance(batch, MicroBatches):
        raise ValueError(
            "batch: expected one batch, got MicroBatches. Pass the batch, and chunk_size to compute "
            "fewer examples at a time."
        )
    paths = tree.paths(batch)
    counts = {
        f"batch{path}": len(leaf)
        for path, leaf in zip(paths, tree.leaves(batch), strict=True)
        if _has_examples(leaf)
    }
    if len(set(counts.values())) != 1 or 0 in counts.values():
        got = ", ".join(f"{path} with {n}" for path, n in counts.items()) or "none"
        raise ValueError(
            f"batch: expected leaves with a first axis of the same number of examples, got {got}. Store "
            "a value that all examples share as a 0-d tensor, or expand it to one row per example."
        )
    return next(iter(counts.values()))


def chunks(count: int, chunk_size: int | None) -> list[range]:
    """Return the ranges of examples to compute one after the other."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size: expected at least 1, got {chunk_size}. Write None for all examples at once."
        )
    size = chunk_size or count
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _has_examples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def gradient_noise_scale(grads: Any) -> GradientNoise:
    r"""Return the gradient noise, $\operatorname{tr} \Sigma$ and $|G|^2$, from gradients of examples.

    With $\Sigma$ the covariance and $G$ the mean of the gradients of single examples, their ratio is the
    batch size above which larger batches gain little.

    Args:
        grads: a tree of `(examples, ...)`, as `per_sample_grads` returns it; at least 2 examples.

    Returns:
        `GradientNoise(trace, squared_norm)`, float32 (float64 for float64 gradients), with the property
        `noise_scale`.

    Raises:
        ValueError: fewer than 2 examples.

    References:
        McCandlish, Kaplan, Amodei and the OpenAI Dota team, "An empirical model of large-batch
        training", arXiv:1812.06162, 2018.

    Example:
        >>> noise = gradient_noise_scale({"w": torch.tensor([[1.0], [3.0]])})
        >>> noise.trace, noise.squared_norm
        (tensor(2.), tensor(3.))
    """
    leaves = [g if g.dtype == torch.float64 else g.float() for g in tree.leaves(grads)]
    n = len(leaves[0]) if leaves else 0
    if n < 2:
        raise ValueError(
            f"grads: expected gradients of at least 2 examples, got {n}. Pass a larger batch to "
            "per_sample_grads."
        )
    means = [g.mean(0) for g in leaves]
    spread = [(g - mean).square().sum() for g, mean in zip(leaves, means, strict=True)]
    trace = torch.stack(spread).sum() / (n - 1)
    return GradientNoise(trace, torch.stack([m.square().sum() for m in means]).sum() - trace / n)
