"""Settings that the bits of a run depend on, recorded when saving and compared when loading."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftrain.checkpoint import _json
from ftrain.core._torch_precision import CONVOLUTIONS, PRODUCTS, fp32_precision

__all__ = ["PRNG", "RECORDED", "changes", "fingerprint", "versions"]

# Name of the generator. A run resumed with another implementation would draw other numbers.
PRNG = "threefry2x32-20, jax_threefry_partitionable"


#: Names of all settings that `fingerprint` can record; some are left out at defaults or without CUDA.
RECORDED = frozenset(
    {
        *("torch", "torch commit", "machine", "cpu capability", "threads"),
        *("deterministic algorithms", "float32 matmul precision", "onednn", "onednn float32"),
        *("cuda", "cudnn", "cudnn benchmark", "cudnn tf32", "cublas workspace", "devices"),
        "cudnn deterministic",
    }
)


def fingerprint(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the build, processor, thread and mode settings that floating-point bits depend on.

    Args:
        given: settings that only the caller has, such as those of the compiled step.
    """
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "torch commit": torch.version.git_version,
        "machine": platform.machine(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": _products(),
        "onednn": bool(torch.backends.mkldnn.enabled),
    }
    on_cpu = _each(CONVOLUTIONS[2:])
    if on_cpu != "ieee":  # checkpoints of earlier versions do not record the default
        found["onednn float32"] = on_cpu
    if torch.cuda.is_available():
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # torch
            "cudnn benchmark": torch.backends.cudnn.benchmark,
            "cudnn tf32": _cudnn(),
            "cublas workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        }
        if torch.backends.cudnn.deterministic:  # the default is not recorded either
            found["cudnn deterministic"] = True
    # Encoded as in the manifest: a tuple or a NaN must be equal to its value after loading.
    encoded: dict[str, Any] = _json.encode_user({**found, **(given or {})}, "fingerprint")
    return encoded


def _products() -> str:
    """Return the float32 matmul precision: `"highest"`, `"high"`, ..., or each backend's precision."""
    named = {
        ("ieee", "ieee"): "highest",
        ("tf32", "tf32"): "high",
        ("tf32", "bf16"): "medium",
    }
    on_cuda, on_cpu = fp32_precision(PRODUCTS)
    return named.get((on_cuda, on_cpu), _each(PRODUCTS))


def _cudnn() -> bool | str:
    """Return `cudnn.allow_tf32`, or each layer kind's precision if convolutions and RNNs differ."""
    found = _each(CONVOLUTIONS[:2])
    return {"tf32": True, "ieee": False}.get(found, found)


def _each(parts: Sequence[tuple[str, str]]) -> str:
    """Return the float32 precision of torch settings: one value, or each by name if they differ."""
    found = fp32_precision(tuple(parts))
    if len(set(found)) == 1:
        return found[0]
    return ", ".join(f"{'.'.join(part)} {each}" for part, each in zip(parts, found, strict=True))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the installed libraries, saved in a checkpoint for information only."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("ftrain", "optree", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two fingerprints, as sentences."""
    return [
        f"{name}: {saved.get(name)!r} when saved, {now.get(name)!r} now"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
