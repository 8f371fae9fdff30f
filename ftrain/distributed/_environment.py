"""Rank, number of ranks and rendezvous address of this process, as its launcher describes them.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; `srun` sets SLURM_PROCID and
others. A process without these variables is the only one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ftrain.core.errors import ArgumentError

__all__ = ["Launch", "launch"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Variables that srun sets for each process of a step, but a batch script does not have.
_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")


class Launch(NamedTuple):
    """Rank of this process among the processes of a job, and the address where they meet.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its host, from 0.
        address: host name of the rendezvous store; "" for a single process.
        port: port of the rendezvous store; 0 for a single process.
        hosted: True if the launcher runs the rendezvous store; otherwise rank 0 does.
        attempt: number of restarts of the job by its launcher.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    hosted: bool = False
    attempt: str = "0"


def launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read this process's rank in its job from torchrun's or SLURM's environment variables, if set.

    Args:
        environment: the environment variables; `None`: those of this process.

    Raises:
        ValueError: only some of the variables are set, or one is not a number.

    Example:
        >>> launch({})
        Launch(rank=0, size=1, local_rank=0, address='', port=0, hosted=False, attempt='0')
        >>> slurm = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
        >>> launch({**slurm, "SLURM_STEP_NODELIST": "n[3-6]", "SLURM_JOB_ID": "10007"})[:5]
        (5, 8, 1, 'n3', 20007)
    """
    found = os.environ if environment is None else environment
    if any(name in found for name in ("RANK", "WORLD_SIZE")):
        return _torchrun(found)
    # Not SLURM_NTASKS, which a batch script has too: its single process would wait for other ranks.
    if all(name in found for name in _STEP) and found["SLURM_STEP_NUM_TASKS"] != "1":
        return _slurm(found)
    return Launch()


def _torchrun(found: Mapping[str, str]) -> Launch:
    missing = [name for name in _TORCHRUN if not found.get(name)]
    if missing:
        there = ", ".join(f"{name}={found[name]}" for name in _TORCHRUN if found.get(name))
        raise ArgumentError(
            "environment",
            f"expected {', '.join(_TORCHRUN)}, which torchrun sets together, got {there} without "
            f"{', '.join(missing)}",
            "Start the program with torchrun, or unset the variables for a single process.",
        )
    rank, size = _number(found, "RANK"), _number(found, "WORLD_SIZE")
    if not 0 <= rank < size:
        raise ArgumentError(
            "environment",
            f"expected RANK from 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={size}",
            "Start the program with torchrun.",
        )
    return Launch(
        rank,
        size,
        _number(found, "LOCAL_RANK") if found.get("LOCAL_RANK") else 0,
        found["MASTER_ADDR"],
        _number(found, "MASTER_PORT"),
        found.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        found.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _slurm(found: Mapping[str, str]) -> Launch:
    job = _number(found, "SLURM_JOB_ID") if found.get("SLURM_JOB_ID") else 0
    # Jobs on one host get different ports unless their numbers differ by a multiple of 10,000.
    port = _number(found, "MASTER_PORT") if found.get("MASTER_PORT") else 20000 + job % 10000
    return Launch(
        _number(found, "SLURM_PROCID"),
        _number(found, "SLURM_STEP_NUM_TASKS"),
        _number(found, "SLURM_LOCALID") if found.get("SLURM_LOCALID") else 0,
        found.get("MASTER_ADDR") or _first_host(found["SLURM_STEP_NODELIST"]),
        port,
        attempt=found.get("SLURM_RESTART_COUNT", "0"),
    )


def _first_host(nodes: str) -> str:
    """Return the first host of a list in SLURM's notation.

    >>> _first_host("gpu[007-012,020],cpu1"), _first_host("a1,a2"), _first_host("n[3-4]-ib")
    ('gpu007', 'a1', 'n3-ib')
    """
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ArgumentError(
            "environment",
            f"expected a list of hosts in SLURM_STEP_NODELIST, got {nodes!r}",
            "Set MASTER_ADDR to the host of rank 0.",
        )
    return "".join(part or "" for part in match.groups())


def _number(found: Mapping[str, str], name: str) -> int:
    try:
        return int(found.get(name, ""))
    except ValueError:
        raise ArgumentError(
            "environment",
            f"expected a whole number in {name}, got {found.get(name, '')!r}",
            f"Start the program with torchrun or srun, which set {name}.",
        ) from None
