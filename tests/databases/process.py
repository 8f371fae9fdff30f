"""Global state of a process that importing torch's test suite may change."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import settings


def state() -> dict[str, Any]:
    """Return flags, default dtype and device, generators, environment, paths and filters, by name."""
    backends = torch.backends
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "fills uninitialized memory": torch.utils.deterministic.fill_uninitialized_memory,
        "float32 products": torch.get_float32_matmul_precision(),
        "TF32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "cuDNN": (backends.cudnn.enabled, backends.cudnn.deterministic, backends.cudnn.benchmark),
        "oneDNN": backends.mkldnn.enabled,
        "fast path of attention": backends.mha.get_fastpath_enabled(),
        "flags frozen": backends.flags_frozen(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "swapped parameters": torch.__future__.get_swap_module_params_on_conversion(),
        "sparse checks": torch.sparse.check_sparse_tensor_invariants.is_enabled(),
        "validation of distributions": torch.distributions.Distribution._validate_args,
        "torch's generator": torch.get_rng_state().tolist(),
        "NumPy's generator": str(np.random.get_state()),
        "Python's generator": random.getstate(),
        "Hypothesis profile": settings.get_current_profile_name(),
        "environment": dict(os.environ),
        "import path": list(sys.path),
        "warning filters": list(warnings.filters),
        "log levels": (logging.getLogger().level, logging.getLogger("torch").level),
        "recursion limit": sys.getrecursionlimit(),
    }
