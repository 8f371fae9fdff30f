"""The C++ compiler that inductor needs: whether there is one, and what to say where there is none."""

from __future__ import annotations

import os
import shutil
import sys

from ftrain.core import _torch_inductor
from ftrain.core.errors import CompilerMissingError

__all__ = ["check_compiler", "no_compiler"]


def check_compiler() -> None:
    """Refuse to go on where inductor will find no compiler for the CPU: 60 µs where there is one.

    It looks for one even where all its programs are in its cache. What it would try is asked only where
    the usual one is missing: torch's compiler takes two seconds to load.

    Raises:
        CompilerMissingError: there is none.
    """
    usual = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(usual) or sys.platform == "win32":
        return
    tried = _torch_inductor.cpp_compilers()
    if tried is not None and not any(map(shutil.which, tried)):
        named = ", which CXX names" if os.environ.get("CXX") in tried else ""
        raise no_compiler(f"Looked for {' and '.join(tried)}{named}.")


def no_compiler(found: str) -> CompilerMissingError:
    """The error that says what to do.

    Args:
        found: what was looked for, or met.
    """
    return CompilerMissingError(
        "ftrain.compile found no C++ compiler. Install one (Debian, Ubuntu: apt install g++; "
        "Fedora: dnf install gcc-c++; macOS: xcode-select --install) or name it in the "
        "environment variable CXX. Without one the results are the same, more slowly: `compile=false` "
        "in a configuration or behind the command; Trainer(compile=False); or "
        f"ftrain.compile(..., backend='eager'), Trainer(compile={{'backend': 'eager'}}). ({found})"
    )
