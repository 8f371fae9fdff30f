"""Check that a compiler is installed (C++ for inductor, C for Triton), and the error if it is not."""

from __future__ import annotations

import os
import shutil
import sys

from ftrain.core import _torch_inductor
from ftrain.core.errors import CompilerMissingError

__all__ = ["check_compiler", "no_compiler"]


_REMEDY = "ftrain.compile(..., backend='eager'), or do not compile"


def check_compiler(remedy: str = _REMEDY, device_type: str = "cpu") -> None:
    """Raise if inductor would find no compiler for a device (takes 60 µs if there is one).

    Inductor looks for a compiler even if all its programs are in its cache. Its own list of compilers is
    read only if the usual one is missing, because torch's compiler takes two seconds to load.

    Args:
        remedy: for the message, the code with which a user can run without a compiler.
        device_type: "cuda": Triton's C compiler; "cpu": the C++ compiler; others: none is needed.

    Raises:
        CompilerMissingError: no compiler was found.
    """
    if device_type == "cuda":
        _check_triton_compiler(remedy)
    if device_type != "cpu":
        return
    usual = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(usual) or sys.platform == "win32":
        return
    tried = _torch_inductor.cpp_compilers()
    if tried is not None and not any(map(shutil.which, tried)):
        named = ", as the environment variable CXX says" if os.environ.get("CXX") in tried else ""
        raise no_compiler(f"Looked for {' and '.join(tried)}{named}.", remedy)


def _check_triton_compiler(remedy: str) -> None:
    """Raise if Triton finds no C compiler to build the Python module that calls the CUDA driver.

    Without a compiler, the driver is loaded to see whether that module is in Triton's cache.
    """
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return
    error = _torch_inductor.triton_error()
    if error is not None and "C compiler" in str(error):
        raise no_compiler(f"Looked for gcc and clang; Triton reports: {error}", remedy, "C")


def no_compiler(reason: str, remedy: str = _REMEDY, language: str = "C++") -> CompilerMissingError:
    """Return the error for a missing compiler, with the remedies.

    Args:
        reason: the commands that were tried, or the error that was raised.
        remedy: as in `check_compiler`.
        language: "C++" for programs on the CPU, "C" for Triton's on a GPU.
    """
    package, variable = ("gcc", "CC") if language == "C" else ("g++", "CXX")
    fedora = "gcc" if language == "C" else "gcc-c++"
    return CompilerMissingError(
        f"ftrain.compile found no {language} compiler. {reason.rstrip('.')}. Install one "
        f"(Debian, Ubuntu: apt install {package}; Fedora: dnf install {fedora}; macOS: xcode-select "
        f"--install) or name it in the environment variable {variable}. Without one the results are the "
        f"same, more slowly: write {remedy}."
    )
