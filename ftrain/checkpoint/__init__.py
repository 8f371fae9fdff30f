"""Checkpoints: a run can be killed at any moment and go on to the bits it would have had.

    store = Store("runs/first")
    store.save(state, step=100, metadata={"data": cursor.to_json()})
    state, metadata = store.load(like=init_state(seed=0))

A checkpoint is a directory of safetensors and a JSON manifest, with the sha256 of every file and
without any pickle. `save` and `load` are exact, `Store` keeps a run's checkpoints, `restore` takes
over what fits from a state that differs. `Lock` is what keeps two writers apart.

Read next: `save.py`.
"""

from ftrain.checkpoint.compile_cache import compile_cache
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointExistsError,
    CheckpointLockedError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointReadError,
    CheckpointVersionError,
    CheckpointWriteError,
    CorruptCheckpointWarning,
    DeterminismWarning,
)
from ftrain.checkpoint.load import load, verify
from ftrain.checkpoint.locks import Lock
from ftrain.checkpoint.manifest import FileRecord, Leaf, Manifest
from ftrain.checkpoint.restore import Report, restore
from ftrain.checkpoint.save import save
from ftrain.checkpoint.state_dicts import export_state_dict, import_state_dict
from ftrain.checkpoint.store import Store

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointLockedError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointReadError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "CorruptCheckpointWarning",
    "DeterminismWarning",
    "FileRecord",
    "Leaf",
    "Lock",
    "Manifest",
    "Report",
    "Store",
    "compile_cache",
    "export_state_dict",
    "import_state_dict",
    "load",
    "restore",
    "save",
    "verify",
]
