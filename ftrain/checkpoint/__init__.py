"""Checkpoints from which a run that was killed at any moment resumes with the same bits.

    store = Store("runs/first")
    store.save(state, step=100, metadata={"data": cursor.to_json()})
    state, metadata = store.load(like=init_state(seed=0))

A checkpoint is a directory of safetensors and a JSON manifest, with the sha256 of every file and
without any pickle. `save` and `load` are exact, `Store` manages a run's checkpoints, `restore`
copies matching tensors into a state that differs from the saved one. `Lock` excludes a second writer.

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
    CheckpointRankError,
    CheckpointReadError,
    CheckpointVersionError,
    CheckpointWriteError,
    CorruptCheckpointWarning,
    DeterminismWarning,
)
from ftrain.checkpoint.load import load, verify
from ftrain.checkpoint.locks import Lock
from ftrain.checkpoint.manifest import FileRecord, LeafRecord, Manifest, PieceRecord
from ftrain.checkpoint.restore import Report, restore
from ftrain.checkpoint.save import save
from ftrain.checkpoint.shard import Shard
from ftrain.checkpoint.state_dicts import read_state_dict, write_state_dict
from ftrain.checkpoint.store import Store

__all__ = [
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointLockedError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointRankError",
    "CheckpointReadError",
    "CheckpointVersionError",
    "CheckpointWriteError",
    "CorruptCheckpointWarning",
    "DeterminismWarning",
    "FileRecord",
    "LeafRecord",
    "Lock",
    "Manifest",
    "PieceRecord",
    "Report",
    "Shard",
    "Store",
    "compile_cache",
    "load",
    "read_state_dict",
    "restore",
    "save",
    "verify",
    "write_state_dict",
]
