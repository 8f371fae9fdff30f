"""Settings of torch that a configuration changes for the length of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.config.schema import Config

__all__ = ["environment"]


@contextlib.contextmanager
def environment(config: Config) -> Iterator[None]:
    """Apply the configured number of threads, determinism and anomaly mode during a `with` block."""
    threads = torch.get_num_threads()
    was = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module with a property, missing in its type stubs
    filled = memory.fill_uninitialized_memory
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
            # Without this variable, matrix products on CUDA raise. It stays set, because cuBLAS reads it
            # once in a process.
            if torch.version.cuda:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            memory.fill_uninitialized_memory = False
        with torch.autograd.set_detect_anomaly(config.detect_anomaly):
            yield
    finally:
        torch.set_num_threads(threads)
        # Only if changed: the call imports inductor, and after a Ctrl-C during that import it would
        # raise an error of the half-imported module instead.
        now = torch.are_deterministic_algorithms_enabled()
        if (now, torch.is_deterministic_algorithms_warn_only_enabled()) != (was, only_warned):
            torch.use_deterministic_algorithms(was, warn_only=only_warned)
        memory.fill_uninitialized_memory = filled
