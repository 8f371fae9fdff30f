"""Snapshots of the global state that a pure function must not change: random states, modes, settings."""

from __future__ import annotations

import pickle
import random
import sys
from typing import Any

import numpy as np
import torch

from ftrain.core import _torch
from ftrain.core._torch_dispatch import dispatch_depth
from ftrain.core._torch_distributions import validation_default
from ftrain.core._torch_precision import CONVOLUTIONS, PRODUCTS, fp32_precision

__all__ = ["changes", "world"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def world() -> dict[str, Any]:
    """Return a snapshot of the global state, as values by name that `==` can compare."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
    return {
        "random state of torch": torch.get_rng_state().numpy().tobytes(),
        "random state of torch on a GPU": [
            state.numpy().tobytes() for state in (torch.cuda.get_rng_state_all() if on_gpu else ())
        ],
        "random state of numpy": pickle.dumps(np.random.get_state()),
        "random state of Python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": [
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _DEVICES
        ],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "number of threads": torch.get_num_threads(),
        "float32 precision": fp32_precision(PRODUCTS + CONVOLUTIONS),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "validation of torch.distributions": validation_default(),
        "function modes": _torch.function_mode_depth(),
        "dispatch modes": dispatch_depth(),
        "transforms": _torch.inside_functorch() is not None,
        "recursion limit": sys.getrecursionlimit(),
    }


def changes(before: dict[str, Any]) -> list[str]:
    """Return the names of the values that have changed since the snapshot `before`."""
    now = world()
    return [name for name, value in before.items() if now[name] != value]
