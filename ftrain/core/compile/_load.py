"""Programs that are loaded from files."""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ftrain.core.compile import _saved
from ftrain.core.compile._compiled import Compiled
from ftrain.core.compile._lowered import Executable

__all__ = ["load_executable"]


def load_executable(path: str | os.PathLike[str]) -> Executable[..., Any]:
    """Load a program that `Executable.save` wrote; nothing is traced or compiled.

    The program needs no source code of the function that was compiled, and returns the same bits. It
    expects the environment that it was compiled in: a file of another version of Python, torch or
    ftrain, or of a processor with instruction sets that this one lacks, is refused. Global settings,
    such as the number of threads, are checked at each call. Variables of the environment that change
    torch's kernels (MKL_CBWR) are not.

    The file contains machine code and pickled objects: load files of a trusted source only.

    Returns:
        The program. If it was compiled with `donate=True`, it takes its state's memory.

    Raises:
        DataError: the file is damaged or was made for another environment; a class has other fields
            here, or an operator is not registered.
        OSError: the file cannot be read.
    """
    # Modes and transforms of torch belong to a thread: in a new one, no tensor of the program is fake,
    # wrapped or an inference tensor.
    with ThreadPoolExecutor(1, "ftrain-load") as thread:
        program, call, donate = thread.submit(_saved.read, pathlib.Path(path)).result()
    compiled: Compiled[..., Any] = Compiled(call.fn, donate, None, "inductor", True)
    return compiled.executable(program, call.key)
