"""Ranks of a configured run: the processes that torchrun or SLURM started, and their strategy."""

from __future__ import annotations

import contextlib
import os
import re
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
            says = "expected data_parallel or fully_sharded, since "
            says += f"{size} processes were started, got none, with which "
            remedy = (
                "each process would train the same run. Write distributed.strategy=data_parallel."
            )
            raise _refused(config, "strategy", says + remedy)
        yield None
        return
    kind = None if config.device == "auto" else config.device.partition(":")[0]
    if size > 1 and ":" in config.device:
        says = f"expected cuda, cpu or auto, since each of {size} ranks has its own device, got "
        raise ConfigError.at(
            "device", config.places.of(("device",)), f"{says}{config.device}. Write device=cuda."
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

    A `Trainer` lets the ranks evaluate whole batches in turn: no row is padded, and the bits of the
    metrics do not depend on the number of ranks.

    Raises:
        ConfigError: the steps cannot run on several ranks, or `logical_shards` does not suit the number
            of ranks.
    """
    if mesh is None:
        return steps
    from ftrain.distributed import data_parallel, fully_sharded  # noqa: PLC0415  # only runs on ranks need it

    options = config.distributed
    if options.strategy == "fully_sharded":
        _check_sharded(config)
    elif options.units is not None:
        says = "expected null with data_parallel, which gathers no parameters, got "
        remedy = "Write distributed.strategy=fully_sharded."
        raise _refused(config, "units", f"{says}{', '.join(options.units)}. {remedy}")
    try:
        if options.strategy == "fully_sharded":
            found = fully_sharded(steps, mesh, units=options.units)
        else:
            found = data_parallel(steps, mesh, logical_shards=options.logical_shards)
    except (TypeError, ValueError) as error:
        about_shards = isinstance(error, ArgumentError) and error.argument == "logical_shards"
        key = "logical_shards" if about_shards else "strategy"
        if options.units and re.search("pattern|units", str(error)):
            key = "units"
        raise _refused(config, key, _advice(error)) from error
    return found._replace(eval_step=steps.eval_step) if mesh.size() == 1 else found


def _check_sharded(config: Config) -> None:
    """Raise if a key has no meaning for states of which each rank has a part."""
    if config.distributed.logical_shards is not None:
        says = "expected null with fully_sharded, whose bits depend on the number of ranks, got "
        remedy = "Write distributed.strategy=data_parallel."
        found = config.distributed.logical_shards
        raise _refused(config, "logical_shards", f"{says}{found}. {remedy}")
    if config.log_digests is not None:
        says = "expected null with fully_sharded, since rank 0 has a part of each tensor only, got "
        raise ConfigError.at(
            "log_digests",
            config.places.of(("log_digests",)),
            f"{says}{config.log_digests}. Remove the key, or write distributed.strategy=data_parallel.",
        )


def _advice(error: Exception) -> str:
    """Return the message of an error without the name of the argument, which is not a key."""
    return error.advice if isinstance(error, ArgumentError) else str(error)


def _refused(config: Config, key: str, message: str) -> ConfigError:
    path = ("distributed", key)
    return ConfigError.at(".".join(path), config.places.of(path), message)
