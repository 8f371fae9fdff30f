"""Description of the machine and the software that a measurement was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["machine", "versions"]


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return a description of the machine: processor, cores, threads of this process, load, system.

    `cpu` ends with the instruction set that torch's own kernels use here, e.g. `AVX512`.

    Args:
        device: the device of the measurement; the name of an accelerator is added as `device`.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'load', 'system', 'threads']
    """
    found = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.device(device).type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def versions(packages: Sequence[str] = ("torch", "optree", "jax", "optax")) -> dict[str, str]:
    """Return the versions of Python and of each installed package, by name."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        # Two EPYCs of one family and model differed in AVX-512, and by a factor of 1.5 in a step's time.
        level = torch.backends.cpu.get_cpu_capability()
        detail = f"family {fields['cpu family']} model {fields['model']} {level}"
        return f"{fields['model name']} ({detail})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
