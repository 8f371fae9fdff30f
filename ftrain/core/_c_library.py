"""C sources, compiled once on each machine to a library that is called through ctypes.

Read next: `random/_cpu_kernel.py`, the draws, and `ftrain/optim/_adam_kernel.py`, the update of Adam.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["NoLibraryError", "cache_folder", "compiler", "library", "load", "reason"]

T = TypeVar("T")

# Contraction is disabled: a fused multiply-add rounds only once, so that bits would depend on the
# machine.
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC")


class NoLibraryError(Exception):
    """Error for an unavailable C library, with a sentence that gives the reason as its message."""


def load(
    sources: Sequence[Path], functions: Callable[[Path], T], is_right: Callable[[T], bool]
) -> T:
    """Return the functions of the fastest library that compiles, loads and passes its check.

    Args:
        sources: the C file, which names the library, then the headers that it includes.
        functions: loads a compiled library, such as `ctypes.CDLL`.
        is_right: returns True if the functions compute the right values.

    Raises:
        OSError, subprocess.SubprocessError, NoLibraryError: there is none; `reason` explains it.
    """
    command = compiler()
    failure: Exception = NoLibraryError("")
    # OpenMP is not linked: its symbols are resolved by the runtime that torch has loaded, so that both
    # share one pool of threads. If torch has no OpenMP runtime (macOS), the library uses one thread.
    for extra in (("-march=native", "-fopenmp"), ("-march=native",), ()):
        try:
            return library(sources, functions, is_right, command, extra)
        except (PermissionError, FileExistsError, NotADirectoryError):
            raise  # an error of the cache folder does not depend on the flags
        except (OSError, subprocess.CalledProcessError, NoLibraryError) as error:
            failure = error
    raise failure


def library(
    sources: Sequence[Path],
    functions: Callable[[Path], T],
    is_right: Callable[[T], bool],
    command: tuple[str, ...],
    extra: tuple[str, ...],
) -> T:
    """Return the library compiled with the flags `extra`, from the cache if it holds an intact copy."""
    path = cache_folder() / f"{sources[0].stem}-{_fingerprint(sources, command, extra)}.so"
    cached = path.exists()
    if not cached:
        _compile(sources[0], command, extra, path)
    try:
        found = functions(path)
    except OSError:
        if not cached:
            raise
        _compile(sources[0], command, extra, path)
        found = functions(path)
    if not is_right(found):
        raise NoLibraryError(f"The compiled library {path} computes wrong numbers. Delete it.")
    return found


def reason(error: Exception) -> str:
    """Return a sentence that explains an error of `load`."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"The compiler failed: {shlex.join(error.cmd)}\n{error.stderr}"
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or (
        isinstance(error, OSError) and error.errno == 30  # read-only file system
    ):
        return (
            f"The cache folder cannot be written ({error}). Name another one in FTRAIN_CACHE_DIR."
        )
    return str(error)


def cache_folder() -> Path:
    """Return the directory of compiled libraries: FTRAIN_CACHE_DIR, or one in the user's cache."""
    named = os.environ.get("FTRAIN_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftrain"
    except RuntimeError as error:
        raise NoLibraryError(
            "The home folder is unknown. Set FTRAIN_CACHE_DIR to a folder for the cache."
        ) from error


def compiler() -> tuple[str, ...]:
    """Return the command of the C compiler: the one that CC names, or the first that is installed."""
    named = os.environ.get("CC")
    for command in [named] if named else ["cc", "gcc", "clang", "c++", "g++", "clang++"]:
        words = shlex.split(command)
        found = shutil.which(words[0])
        if found:
            language = "c++" if command.endswith("++") else "c"
            return (found, *words[1:], "-x", language)
    raise NoLibraryError(
        f"No C compiler was found: CC names {named}, which is not on the PATH. Install it, or unset CC."
        if named
        else "No C compiler was found (cc, gcc, clang). Install one, or name it in CC."
    )


def _fingerprint(sources: Sequence[Path], command: tuple[str, ...], extra: tuple[str, ...]) -> str:
    """Return the cache key of the machine code: sources, compiler, flags, processor."""
    binary = Path(command[0]).resolve()
    status = binary.stat()
    parts = (
        *(source.read_text() for source in sources),
        *(command, _FLAGS, extra),
        *(str(binary), status.st_size, status.st_mtime_ns),
        *(sys.platform, platform.machine(), _processor()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """Return the processor features that -march=native depends on, since machines may share a cache."""
    try:
        with open("/proc/cpuinfo") as lines:
            wanted = ("model name", "flags", "Features", "CPU part")
            seen: dict[str, str] = {}
            for line in lines:
                if not line.strip():
                    break  # assumes that all cores equal the first one
                if line.startswith(wanted):
                    name, _, value = line.partition(":")
                    seen[name.strip()] = value.strip()
            return repr(seen)
    except OSError:
        return platform.processor()


def _compile(source: Path, command: tuple[str, ...], extra: tuple[str, ...], path: Path) -> None:
    """Compile to a temporary file and rename it, so that concurrent processes do not interfere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        object_file, made = Path(scratch) / f"{source.stem}.o", Path(scratch) / path.name
        steps = (
            (*command, *_FLAGS, *extra, "-c", str(source), "-o", str(object_file)),
            (command[0], "-shared", str(object_file), "-o", str(made), "-lm"),
        )
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, path)
