"""Data parallelism: every rank has the whole state and its own rows of each batch.

Read next: `_replicas.py`, sums over ranks, and `_logical_shards.py`, sums whose bits do not depend on
the number of ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ftrain.core._torch_collectives import group_of
from ftrain.core._words import a_or_an
from ftrain.core.gradients import GradientFn
from ftrain.core.ranks import Ranks
from ftrain.core.step import Steps, TrainStep
from ftrain.distributed._logical_shards import LogicalShards, sharded_evaluation
from ftrain.distributed._metrics import merged_evaluation
from ftrain.distributed._replicas import Replicas
from ftrain.distributed._running_statistics import BufferChoice

__all__ = ["data_parallel"]

S = TypeVar("S", Steps, GradientFn)


def data_parallel(
    steps: S,
    mesh: DeviceMesh,
    *,
    logical_shards: int | None = None,
    buffers: Mapping[str, BufferChoice] | None = None,
) -> S:
    """Return steps whose result, on every rank, equals that of one process on the rows of all ranks.

    W ranks with `accumulate=a` equal one process with `accumulate=W*a`. Rank `r` has micro-batches `r*a`
    to `r*a + a - 1`: `data.Loader(rank=r, ranks=W)` returns their rows, and the step uses their keys.
    Gradients are summed with their weights over ranks and divided once; the finite check, the loss scale
    and the optimizer see the result. Metrics are merged in rank order. All ranks return the same state
    and metrics, to the bit, if they begin with the same state: call `init_state` with one seed on all.

    BatchNorm computes statistics of a micro-batch, as with `accumulate`, and its running statistics are
    those after the micro-batches of all ranks in order.

    The result is a step like any other: compile it, donate its state, wrap it by `transforms.with_ema`.
    Ranks may have different numbers of rows; then return `Mean(total, weight)`, because a plain mean
    counts each micro-batch once.

    Args:
        steps: of `make_steps`, before any transformation; or the function of `ftrain.gradients`, for a
            step of your own.
        mesh: a mesh with one axis, which contains this process.
        logical_shards: S, a multiple of the number of ranks. A batch is cut into S micro-batches, S / W
            on each rank, whose gradients are summed in a fixed order: each W gives the same bits. A rank
            stores the gradients of all its shards at once, and receives those of other ranks unreduced.
            If S is a power of two, W gradients are sent instead of S. Evaluations are cut likewise.
        buffers: `{name: choice}` for buffers that the model writes to and that are not BatchNorm's:
            `"mean"` takes the mean over ranks, `"own"` keeps each rank's, which must be equal.

    Returns:
        Steps with the same `init_state`. `eval_step` merges the metrics of all ranks; each rank calls it
        as often as the others. Its attribute `one_rank` is the evaluation of a batch by one rank, with
        which a `Trainer` lets the ranks evaluate whole batches in turn.

    Raises:
        ValueError: the loss compares rows; gradients are reduced already; a transformation has wrapped
            the step; the model has a SyncBatchNorm; `logical_shards` is not a multiple of the ranks. In
            a call: the model writes to a buffer without a choice, or ranks differ in the number of rows
            of a metric that is concatenated.
        TypeError: `steps` are neither `Steps` nor a function of `ftrain.gradients`.
        NotImplementedError: in a call: the step is differentiated or mapped by `torch.vmap`.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import distributed, optim
        >>> steps = ftrain.make_steps(
        ...     lambda: nn.Linear(3, 1), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
        ... )
        >>> with distributed.initialize(device="cpu") as mesh:
        ...     init_state, train_step, eval_step = data_parallel(steps, mesh)
        ...     state, metrics = train_step(init_state(0), torch.ones(4, 3))

    References:
        Li et al. (2020), [PyTorch Distributed](https://arxiv.org/abs/2006.15704); Li et al. (2022),
        [EasyScale](https://arxiv.org/abs/2208.14228), for bits that do not depend on the ranks.
    """
    group = group_of(mesh)

    def build(module: nn.Module, accumulate: int) -> Ranks:
        if logical_shards is not None:
            return LogicalShards(group, module, accumulate, buffers or {}, logical_shards)
        return Replicas(group, module, accumulate, buffers or {})

    if isinstance(steps, GradientFn):
        return steps.over(build)
    step = getattr(steps, "train_step", None)
    if not isinstance(steps, Steps) or not isinstance(step, TrainStep):
        got = steps if step is None else step
        raise TypeError(
            "steps: expected the result of make_steps or of ftrain.gradients, got "
            f"{a_or_an(type(got).__name__)}. Pass one of them, and compile or wrap the parallel steps."
        )
    ranks: list[Ranks] = []

    def noted(module: nn.Module, accumulate: int) -> Ranks:
        ranks.append(build(module, accumulate))
        return ranks[0]

    gradients = step.gradients.over(noted)
    train_step = step.with_gradients(gradients, ranks[0].parts)

    if logical_shards is not None:
        evaluate = sharded_evaluation(steps.eval_step, group, logical_shards)
    else:
        evaluate = merged_evaluation(steps.eval_step, group)
    eval_step = functools.wraps(steps.eval_step)(evaluate)
    eval_step.one_rank = steps.eval_step  # type: ignore[attr-defined]  # read by Trainer
    return Steps(steps.init_state, train_step, eval_step)
