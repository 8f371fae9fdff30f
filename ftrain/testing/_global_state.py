"""Snapshots of the global state that a pure function must not change: random states, modes, settings,
environment variables.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ftrain.core import _torch
from ftrain.core._torch_dispatch import dispatch_depth
from ftrain.core._torch_distributions import validation_default
from ftrain.core._torch_precision import (
    CONVOLUTIONS,
    PRODUCTS,
    fp32_precision,
    set_fp32_precision,
)
from ftrain.core._torch_settings import print_options

__all__ = ["changes", "restore", "world"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Variables that torch, its compiler, pytest and CUDA set when they are first used.
_OF_LIBRARIES = ("TORCH", "_TORCH", "TRITON", "PYTEST", "CUDA", "KMP_")
_VARIABLES = "environment variables"
# Switches of torch.backends.cuda, which also apply to the CPU.
_ATTENTION = ("flash", "mem_efficient", "math")


def world() -> dict[str, Any]:
    """Return a snapshot of the global state, `{name: value}` with values that `==` can compare."""
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
        "float32 precision": (fp32_precision(PRODUCTS), fp32_precision(CONVOLUTIONS)),
        "oneDNN": torch.backends.mkldnn.enabled,
        "kernels of attention": [
            getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _ATTENTION
        ],
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "validation of torch.distributions": validation_default(),
        "function modes": _torch.function_mode_depth(),
        "dispatch modes": dispatch_depth(),
        "transforms": _torch.inside_functorch() is not None,
        "recursion limit": sys.getrecursionlimit(),
        # Detected by computing a subnormal number, because torch has no getter for this setting.
        "flushing of subnormal floats to zero": sys.float_info.min / 2 == 0.0,
        "print options of torch": print_options(),
        "print options of numpy": np.get_printoptions(),
        _VARIABLES: {
            name: value for name, value in os.environ.items() if not name.startswith(_OF_LIBRARIES)
        },
    }


def changes(before: dict[str, Any]) -> list[str]:
    """Return the names of the global values that have changed since the snapshot `before`."""
    now = world()
    return [
        f"{name} {_keys(before[name], now[name])}" if name == _VARIABLES else name
        for name in _changed(before, now)
    ]


def restore(before: dict[str, Any]) -> None:
    """Restore the changed global values from the snapshot `before`, if torch can set them."""
    for name in _changed(before, world()):
        if name in _RESTORE:
            _RESTORE[name](before[name])


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if now[name] != value]


def _keys(before: dict[str, str], now: dict[str, str]) -> str:
    names = sorted({*before, *now})
    return ", ".join(name for name in names if before.get(name) != now.get(name))


def _set_variables(before: dict[str, str]) -> None:
    for name in [name for name in os.environ if not name.startswith(_OF_LIBRARIES)]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)


def _set_random_state(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _set_autocast(settings: list[tuple[bool, torch.dtype]]) -> None:
    for device, (on, dtype) in zip(_DEVICES, settings, strict=True):
        torch.set_autocast_enabled(device, on)
        torch.set_autocast_dtype(device, dtype)


def _set_default_device(device: torch.device) -> None:
    """Set torch's default device; for the CPU, unset it."""
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _set_cudnn(settings: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = settings


def _set_attention(settings: list[bool]) -> None:
    for name, on in zip(_ATTENTION, settings, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(on)


_RESTORE: dict[str, Callable[[Any], Any]] = {
    "random state of torch": _set_random_state,
    "random state of numpy": lambda state: np.random.set_state(pickle.loads(state)),
    "random state of Python": random.setstate,
    "grad mode": torch.set_grad_enabled,
    "anomaly mode": torch.autograd.set_detect_anomaly,
    "autocast": _set_autocast,
    "autocast cache": torch.set_autocast_cache_enabled,
    "default dtype": torch.set_default_dtype,
    "default device": _set_default_device,
    "float32 precision": lambda each: set_fp32_precision(*each),
    "oneDNN": lambda on: setattr(torch.backends.mkldnn, "enabled", on),
    "kernels of attention": _set_attention,
    "cudnn": _set_cudnn,
    "deterministic algorithms": lambda on: torch.use_deterministic_algorithms(
        on[0], warn_only=on[1]
    ),
    "number of threads": torch.set_num_threads,
    "recursion limit": sys.setrecursionlimit,
    "flushing of subnormal floats to zero": torch.set_flush_denormal,
    "print options of torch": lambda options: torch.set_printoptions(**options),  # type: ignore[no-untyped-call]  # torch's
    "print options of numpy": lambda options: np.set_printoptions(**options),
    _VARIABLES: _set_variables,
}
