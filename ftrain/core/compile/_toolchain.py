"""Check for the C++ compiler that inductor needs, and the error without one."""

from __future__ import annotations

import os
import shutil
import sys

from ftrain.core import _torch_inductor
from ftrain.core.errors import CompilerMissingError

__all__ = ["check_compiler", "no_compiler"]


def check_compiler() -> None:
    """Raise if inductor would find no compiler for the CPU: 60 µs if there is one.

    Inductor looks for one even if all its programs are in its cache. Its own list of compilers is read
    only if the usual one is missing: torch's compiler takes two seconds to load.

    Raises:
        CompilerMissingError: no compiler was found.
    """
    usual = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(usual) or sys.platform == "win32":
        return
    tried = _torch_inductor.cpp_compilers()
    if tried is not None and not any(map(shutil.which, tried)):
        named = ", which CXX names" if os.environ.get("CXX") in tried else ""
        raise no_compiler(f"Looked for {' and '.join(tried)}{named}.")


def no_compiler(found: str) -> CompilerMissingError:
    """Return the error for a missing compiler, with the remedies.

    Args:
        found: the commands that were tried, or the error that was raised.
    """
    return CompilerMissingError(
        "ftrain.compile found no C++ compiler. Install one (Debian, Ubuntu: apt install g++; "
        "Fedora: dnf install gcc-c++; macOS: xcode-select --install) or name it in the "
        "environment variable CXX. Without one the results are the same, more slowly: `compile=false` "
        "in a configuration or behind the command; Trainer(compile=False); or "
        f"ftrain.compile(..., backend='eager'), Trainer(compile={{'backend': 'eager'}}). ({found})"
    )
