"""Private torch APIs: settings of inductor, and descriptions of torch's build.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch

from ftrain.core._torch_distributions import without_validation

__all__ = ["blas", "inductor_settings", "print_options"]

_INDUCTOR = (
    "fallback_random",
    "deterministic",
    "emulate_precision_casts",
    "max_autotune",
    "coordinate_descent_tuning",
    "freezing",
    "use_fast_math",
    "epilogue_fusion",
    "cpp.simdlen",
    "cpp.threads",
    "cpp.dynamic_threads",
    "cpp.weight_prepack",
    "cpp.enable_unsafe_math_opt_flag",
    "cpp.enable_floating_point_contract_flag",
)


def inductor_settings() -> dict[str, Any]:
    """Return inductor's settings that change the bits of results, by name.

    (`torch._inductor.config`: torch 2.0 and later.)

    A setting that this version of torch does not have is left out. The first call imports inductor,
    which takes a second.
    """
    with without_validation():
        from torch._inductor import config  # noqa: PLC0415  costs a second
    found = {}
    for name in _INDUCTOR:
        try:
            found[name] = operator.attrgetter(name)(config)
        except AttributeError:
            continue
    return found


def print_options() -> dict[str, Any]:
    """Return the options of `torch.set_printoptions` (`torch._tensor_str`, 2.1 and later)."""
    read = getattr(torch._tensor_str, "get_printoptions", dict)
    options: dict[str, Any] = read()
    return options


def blas() -> dict[str, str]:
    """Return the BLAS library, and the versions of MKL, oneDNN and the compiler that built torch.

    They are read from `torch.__config__.show()` (1.0 and later).
    """
    text = torch.__config__.show()
    found = {}
    for name, pattern in (
        ("blas", r"BLAS_INFO=(\w+)"),
        ("mkl", r"Math Kernel Library Version (\S+)"),
        ("onednn version", r"MKL-DNN (v\S+)"),
        ("compiler of torch", r"- (GCC \S+|clang \S+|MSVC \S+)"),
    ):
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            found[name] = match[1]
    return found
