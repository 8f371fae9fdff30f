"""The compiled step beside the run's checkpoints, so that a process that resumes need not compile it.

Measured (`python -m benchmarks.checkpoints`): on a machine that has no cache, a new one say, the first
step of a resumed process takes a fraction of the time with the run's cache copied along.
"""

from __future__ import annotations

import os
import pathlib

from ftrain.checkpoint._directories import make_directories
from ftrain.checkpoint.save import refusals

__all__ = ["compile_cache"]

_NAMES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "FTRAIN_CACHE_DIR": "ftrain"}


def compile_cache(directory: str | os.PathLike[str]) -> pathlib.Path:
    """From now on this process keeps what it compiles in `directory`, and finds it there.

    Call it before the first compiled step. It sets `TORCHINDUCTOR_CACHE_DIR` and `FTRAIN_CACHE_DIR`,
    which child processes inherit. The directory may be moved and copied; one that fits another
    processor or another torch is passed over, and costs nothing but its space.

    What lies there is machine code and pickles of torch's, and is run: unlike a checkpoint, a cache from
    somebody else is a program from somebody else. It is no part of any checkpoint, and can be deleted at
    any time.

    Args:
        directory: made if it is not there; `store.directory / "compiled"`, say.

    Returns:
        The directory.

    Raises:
        CheckpointWriteError: it cannot be made.

    >>> import tempfile
    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ):  # for this example only
    ...     cache = compile_cache(tempfile.mkdtemp())
    ...     os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")
    True
    """
    path = pathlib.Path(os.path.abspath(directory))
    with refusals(f"make the compile cache {path}"):
        make_directories(str(path))
    for variable, name in _NAMES.items():
        os.environ[variable] = str(path / name)
    return path
