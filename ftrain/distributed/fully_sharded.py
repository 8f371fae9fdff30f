"""Fully sharded training: each rank has some rows of the parameters and of the optimizer state.

Read next: `_units.py` (when parameters are gathered), `_gather.py` (the collectives),
`_sharded_optimizer.py` (why every optimizer is right).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ftrain.core._torch_collectives import group_of, whole_group
from ftrain.core.errors import ArgumentError
from ftrain.core.ranks import Ranks
from ftrain.core.remat import Where
from ftrain.core.step import Steps, TrainStep
from ftrain.distributed._gather import Share
from ftrain.distributed._logical_shards import sharded_evaluation
from ftrain.distributed._ordered import OrderedGroup
from ftrain.distributed._running_statistics import BufferChoice
from ftrain.distributed._sharded_steps import Parts, checked_steps, sharded_steps
from ftrain.distributed._shards import OrderedShards, Shards
from ftrain.distributed._units import ShardedBound

__all__ = ["fully_sharded"]


def fully_sharded(
    steps: Steps,
    mesh: DeviceMesh,
    *,
    units: Where | None = None,
    logical_shards: int | None = None,
    prefetch: bool = False,
    buffers: Mapping[str, BufferChoice] | None = None,
) -> Steps:
    """Return steps on ranks that each hold some rows of the parameters and of the optimizer's state.

    The steps compute what `data_parallel` computes, up to rounding. A tensor with at least as many rows
    (entries of its first axis) as there are ranks W is cut along its first axis, so each rank holds 1/W
    of it; smaller tensors, buffers and frozen parameters are replicated. While a unit runs, its whole
    parameters are gathered, and the backward pass gathers them again and computes the unit's activations
    again (`ftrain.remat`). Gradients are summed over ranks by a reduce-scatter for each unit. All
    collectives are operators of the step's graph.

    The optimizer's update is that of whole tensors: elementwise operators run on the rows of each rank,
    norms and means are combined over ranks, and any other operator (the products of Muon and SOAP) gets
    gathered tensors. A leaf of its state is sharded if it is computed from parameters by elementwise
    operators, as moments are.

    Args:
        steps: of `make_steps`.
        mesh: the ranks, a mesh with one axis; or with two, of which the second cuts the parameters and
            the first replicates them (hybrid sharding): gathers stay within a row of the mesh. Two axes
            need names.
        units: the modules whose parameters are gathered together: a pattern of paths (`"blocks.*"`), a
            class, or several of these, as of `ftrain.remat`. Default: the repeated blocks of the model,
            which are the children of one class of an `nn.ModuleList` or `nn.Sequential`. Parameters
            outside of units, and those that modules of two units share, are whole during a step.
        logical_shards: as of `data_parallel`, a power of two: each number of ranks that divides it gives
            the same bits. Gradients travel unreduced, by an all-to-all, and reductions in the optimizer,
            such as norms, take gathered tensors.
        prefetch: True to gather the parameters of the next unit, in the order in which the model defines
            them, while a unit runs. Two units are then whole at one time.
        buffers: as of `data_parallel`.

    Returns:
        Steps whose states are parts. `init_state` draws the whole initial parameters on each rank, the
        same on all, and keeps its rows. `eval_step` merges the metrics of all ranks; its attribute
        `one_rank` returns those of one rank's batch, but gathers parameters, so all ranks call it.

    Raises:
        TypeError: the steps are not those of `make_steps`.
        ValueError: a transformation has wrapped the steps; `units` selects no module, or one that cannot
            be a unit; a parameter has a hook; the mesh has more than two axes; `logical_shards` is not a
            power of two and a multiple of the ranks, or parameters are in half precision with it.
        NotImplementedError: in a step, an optimizer that differentiates the loss itself (Sophia, L-BFGS
            with a line search), or that writes to a part of a tensor in place; with `logical_shards`, a
            unit that runs twice in a forward pass, or whose parameters other code reads.

    Example:
        >>> import ftrain, torch
        >>> from ftrain import distributed, optim
        >>> steps = ftrain.make_steps(
        ...     lambda: nn.Linear(3, 2), lambda m, x: m(x).square().mean(), optim.adamw(1e-3)
        ... )
        >>> with distributed.initialize(device="cpu") as mesh:
        ...     sharded = fully_sharded(steps, mesh)
        ...     state, metrics = sharded.train_step(sharded.init_state(seed=0), torch.ones(4, 3))
        >>> int(state.step)
        1

    References:
        Zhao et al. (2023), [PyTorch FSDP](https://arxiv.org/abs/2304.11277); Zhang et al. (2024),
        [SimpleFSDP](https://arxiv.org/abs/2411.00284).
    """
    if mesh.ndim > 2:
        raise ValueError(
            "mesh: expected one axis, or two for (replicate, shard), got "
            f"{mesh.ndim} axes {mesh.mesh_dim_names}. Pass a mesh with one or two axes."
        )
    if mesh.ndim == 2 and mesh.mesh_dim_names is None:
        raise ValueError(
            "mesh: expected two axes with names, got axes without names. Pass "
            "mesh_dim_names=('replicate', 'shard') to init_device_mesh."
        )
    together = whole_group(mesh)
    group = together if mesh.ndim == 1 else group_of(mesh, mesh.ndim - 1)
    step, evaluate = checked_steps(steps)
    if logical_shards is not None:
        _check_wide(step)
        group = OrderedGroup(group.name, group.rank, group.size)
    share = Share(None if mesh.ndim == 1 else group_of(mesh, 0))
    bound = ShardedBound(step.model, units, group, share, prefetch=prefetch)
    rows = list(bound.rows.values())

    def build(module: nn.Module, accumulate: int) -> Ranks:
        given = (together, module, accumulate, buffers or {})
        if logical_shards is not None:
            return OrderedShards(*given, logical_shards, rows, share, group)
        return Shards(*given, rows, share, group)

    found = sharded_steps(steps, Parts(bound, rows, group, together), build)
    if logical_shards is None:
        return found
    local = found.eval_step.one_rank  # type: ignore[attr-defined]
    eval_step = sharded_evaluation(local, together, logical_shards)
    eval_step = functools.wraps(evaluate)(eval_step)
    eval_step.one_rank = local  # type: ignore[attr-defined]  # read by Trainer
    return found._replace(eval_step=eval_step)


def _check_wide(step: TrainStep) -> None:
    """Raise if parameters are in half precision, which would round partial sums of gradients."""
    module = step.model.skeleton.module
    for name in step.model.skeleton.trainable:
        dtype = step.policy.params or module.get_parameter(name).dtype
        if dtype.itemsize < 4:
            raise ArgumentError(
                "logical_shards",
                "expected parameters in float32 or wider, because gradients in half precision are "
                f"rounded between sums over ranks, got {dtype} for {name!r}",
                "Write precision='bf16-mixed', or leave logical_shards out.",
            )
