"""Check for the C++ compiler that inductor needs, and the error if it is missing."""

from __future__ import annotations

import os
import shutil
import sys

from ftrain.core import _torch_inductor
from ftrain.core.errors import CompilerMissingError

__all__ = ["check_compiler", "no_compiler"]


_REMEDY = "ftrain.compile(..., backend='eager'), or do not compile"


def check_compiler(remedy: str = _REMEDY) -> None:
    """Raise if inductor would find no compiler for the CPU (takes 60 µs if there is one).

    Inductor looks for one even if all its programs are in its cache. Its own list of compilers is read
    only if the usual one is missing: torch's compiler takes two seconds to load.

    Args:
        remedy: the code for the message that a user may write to run without a compiler.

    Raises:
        CompilerMissingError: no compiler was found.
    """
    usual = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(usual) or sys.platform == "win32":
        return
    tried = _torch_inductor.cpp_compilers()
    if tried is not None and not any(map(shutil.which, tried)):
        named = ", which CXX names" if os.environ.get("CXX") in tried else ""
        raise no_compiler(f"Looked for {' and '.join(tried)}{named}.", remedy)


def no_compiler(reason: str, remedy: str = _REMEDY) -> CompilerMissingError:
    """Return the error for a missing compiler, with the remedies.

    Args:
        reason: the commands that were tried, or the error that was raised.
        remedy: as of `check_compiler`.
    """
    return CompilerMissingError(
        "ftrain.compile found no C++ compiler. Install one (Debian, Ubuntu: apt install g++; "
        "Fedora: dnf install gcc-c++; macOS: xcode-select --install) or name it in the "
        "environment variable CXX. Without one the results are the same, more slowly: write "
        f"{remedy}. ({reason})"
    )
