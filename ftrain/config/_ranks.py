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

__all__ = ["is_restarted", "mesh_of", "over_ranks", "row_ranks"]

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
            says = "expected data_parallel, fully_sharded or tensor_parallel, since "
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
    # Only runs on ranks need it.
    from ftrain.distributed import data_parallel, fully_sharded, tensor_parallel  # noqa: PLC0415

    options = config.distributed
    _check_keys(config)
    grid = _grid(config, mesh)
    try:
        if options.strategy == "fully_sharded":
            shards = options.logical_shards
            found = fully_sharded(steps, grid, units=options.units, logical_shards=shards)
        elif options.strategy == "tensor_parallel":
            found = tensor_parallel(steps, grid, options.rules or {})
        else:
            found = data_parallel(steps, mesh, logical_shards=options.logical_shards)
    except (TypeError, ValueError) as error:
        about_shards = isinstance(error, ArgumentError) and error.argument == "logical_shards"
        key = "logical_shards" if about_shards else "strategy"
        if options.units and re.search("pattern|units", str(error)):
            key = "units"
        if options.rules and re.search("pattern|rules", str(error)):
            key = "rules"
        raise _refused(config, key, _advice(error)) from error
    return found._replace(eval_step=steps.eval_step) if mesh.size() == 1 else found


def row_ranks(config: Config, mesh: Any) -> tuple[int, int]:
    """Return this rank's index among the ranks that load different rows, and the number of such ranks.

    Raises:
        ConfigError: `distributed.mesh` does not suit the number of ranks.
    """
    if mesh is None:
        return 0, 1
    if config.distributed.strategy != "tensor_parallel":
        return mesh.get_rank(), mesh.size()
    first, second = _axes(config, mesh) or (1, mesh.size())
    return mesh.get_rank() // second, first


def _axes(config: Config, mesh: Any) -> tuple[int, int] | None:
    """Return the numbers of ranks along the two axes of `distributed.mesh`; `None` for one axis."""
    given = config.distributed.mesh
    if given is None:
        return None
    (first, second), size = given, mesh.size()
    if first == -1 and second > 0:
        first = size // second
    elif second == -1 and first > 0:
        second = size // first
    if first < 1 or second < 1 or first * second != size:
        says = f"expected two numbers whose product is the number of ranks, {size}, got {[*given]}"
        raise _refused(
            config, "mesh", f"{says}. Write -1 as the first number, for as many as there are."
        )
    return first, second


def _grid(config: Config, mesh: Any) -> Any:
    """Return the mesh of the steps: all ranks on one axis, or on the two axes of `distributed.mesh`."""
    axes = _axes(config, mesh)
    if axes is None or mesh.size() == 1:
        return mesh
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  # as above

    return init_device_mesh(mesh.device_type, axes, mesh_dim_names=("data", "model"))


def _check_keys(config: Config) -> None:
    """Raise if a key does not apply to the distributed strategy, or if `rules` is missing."""
    options = config.distributed
    strategy = options.strategy
    only = {
        "units": ("fully_sharded",),
        "rules": ("tensor_parallel",),
        "mesh": ("fully_sharded", "tensor_parallel"),
        "logical_shards": ("data_parallel", "fully_sharded"),
    }
    for key, strategies in only.items():
        value = getattr(options, key)
        if value is not None and strategy not in strategies:
            got = ", ".join(map(str, value)) if isinstance(value, (tuple, dict)) else value
            remedy = f"Write distributed.strategy={strategies[0]}."
            raise _refused(config, key, f"expected null with {strategy}, got {got}. {remedy}")
    if strategy == "tensor_parallel" and not options.rules:
        says = "expected column or row for patterns of layers, got none. Write "
        raise _refused(
            config, "rules", says + "rules: {blocks.*.inner: column, blocks.*.outer: row}."
        )
    if config.log_digests is not None and strategy != "data_parallel":
        says = f"expected null with {strategy}, since rank 0 has a part of each tensor only, got "
        raise ConfigError.at(
            "log_digests",
            config.places.of(("log_digests",)),
            f"{says}{config.log_digests}. Remove the key, or write distributed.strategy=data_parallel.",
        )


def _advice(error: Exception) -> str:
    """Return an error's message without the Python argument's name, which is not a configuration key."""
    return error.advice if isinstance(error, ArgumentError) else str(error)


def _refused(config: Config, key: str, message: str) -> ConfigError:
    path = ("distributed", key)
    return ConfigError.at(".".join(path), config.places.of(path), message)
