"""Cache of compiled steps beside a run's checkpoints, so that a resumed process need not compile.

Measured (`python -m benchmarks.checkpoints`): on a machine without other caches, such as a new one, the
first step of a resumed process takes a fraction of the time if the run's cache was copied along.
"""

from __future__ import annotations

import os
import pathlib

from ftrain.checkpoint._directories import make_directories
from ftrain.checkpoint.save import refusals

__all__ = ["compile_cache"]

_NAMES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "FTRAIN_CACHE_DIR": "ftrain"}


def compile_cache(directory: str | os.PathLike[str]) -> pathlib.Path:
    """Store the compiled programs of this process in `directory`, and reuse those stored there.

    Call this function before the first compiled step. It sets `TORCHINDUCTOR_CACHE_DIR` and
    `FTRAIN_CACHE_DIR`, which child processes inherit. The directory may be moved and copied;
    entries of another processor or another torch are ignored.

    The cache holds machine code and pickles of torch, which are executed: unlike a checkpoint, a
    cache from somebody else is a program from somebody else. The cache is not part of any checkpoint,
    and can be deleted at any time.

    Args:
        directory: created if it does not exist; for example `store.directory / "compiled"`.

    Returns:
        The directory.

    Raises:
        CheckpointWriteError: the directory cannot be created.

    Example:
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
