"""Ranks of a configured run: the processes that torchrun or SLURM started, and their strategy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.core.errors import ArgumentError
from ftrain.core.step import Steps

__all__ = ["is_restarted", "mesh_of", "over_ranks"]

#: Environment variables of torchrun and of SLURM's srun; each of several processes has one of them.
_LAUNCHERS = ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@contextlib.contextmanager
def mesh_of(config: Config) -> Iterator[Any]:
    """Make the process group of a run for a `with` block; yield the mesh, or `None` for one process.

    Raises:
        ConfigError: several processes were started without a strategy, or the strategy is unavailable.
        RankError: a rank does not start within the time-out.
    """
    options = config.distributed
    if options.strategy == "none" and not any(name in os.environ for name in _LAUNCHERS):
        yield None
        return
    from ftrain import distributed  # noqa: PLC0415  # only runs on ranks need torch.distributed
    from ftrain.distributed._environment import launch  # noqa: PLC0415

    try:
        size = launch().size
    except ValueError as error:
        raise _refused(config, "strategy", _advice(error)) from None
    if options.strategy == "none":
        if size > 1:
            says = f"expected data_parallel, since {size} processes were started, got none, with which "
            remedy = (
                "each process would train the same run. Write distributed.strategy=data_parallel"
            )
            raise _refused(config, "strategy", says + remedy)
        yield None
        return
    if options.strategy == "fully_sharded":
        says = (
            "expected data_parallel, got fully_sharded, which configurations do not support yet. "
        )
        raise _refused(config, "strategy", says + "Write distributed.strategy=data_parallel")
    kind = None if config.device == "auto" else config.device.partition(":")[0]
    if size > 1 and ":" in config.device:
        says = f"expected cuda, cpu or auto, since each of {size} ranks has its own device, got "
        raise ConfigError.at(
            "device", config.places.of(("device",)), f"{says}{config.device}. Write device=cuda"
        )
    try:
        group = distributed.initialize(device=kind, timeout=options.timeout)
        mesh = group.__enter__()
    except ValueError as error:
        raise _refused(config, "strategy", _advice(error)) from None
    with contextlib.ExitStack() as stack:
        stack.push(group)
        yield mesh


def is_restarted(mesh: Any) -> bool:
    """Return True if the launcher has restarted the ranks after the failure of a rank."""
    if mesh is None:
        return False
    from ftrain.distributed._environment import launch  # noqa: PLC0415  # only runs on ranks need it

    return launch().attempt != "0"


def over_ranks(config: Config, steps: Steps, mesh: Any) -> Steps:
    """Return steps that compute on all ranks of a mesh; without a mesh, the steps themselves.

    The evaluation step has an attribute `one_rank`, with which a `Trainer` lets the ranks evaluate whole
    batches in turn: no row is padded, and the bits do not depend on the number of ranks.

    Raises:
        ConfigError: the steps cannot run on several ranks, or `logical_shards` does not suit the number
            of ranks.
    """
    if mesh is None:
        return steps
    from ftrain.distributed import data_parallel  # noqa: PLC0415  # only runs on ranks need it

    options = config.distributed
    try:
        found = data_parallel(steps, mesh, logical_shards=options.logical_shards)
    except (TypeError, ValueError) as error:
        about_shards = isinstance(error, ArgumentError) and error.argument == "logical_shards"
        key = "logical_shards" if about_shards else "strategy"
        raise _refused(config, key, _advice(error)) from error
    if mesh.size() == 1:
        return found._replace(eval_step=steps.eval_step)
    found.eval_step.one_rank = steps.eval_step  # type: ignore[attr-defined]  # read by Trainer
    return found


def _advice(error: Exception) -> str:
    """Return the message of an error without the name of the argument, which is not a key."""
    return error.advice if isinstance(error, ArgumentError) else str(error)


def _refused(config: Config, key: str, message: str) -> ConfigError:
    path = ("distributed", key)
    return ConfigError.at(".".join(path), config.places.of(path), message)
