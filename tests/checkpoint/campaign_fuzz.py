"""Load mutated checkpoints: `python -m tests.checkpoint.campaign_fuzz --count 100000`.

Every hash is corrected after the mutation, so that the parsers behind the hashes are tested. A reader
may load a mutant that is still consistent; otherwise it must raise a `CheckpointError`, fast and without
allocating much memory.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ftrain import checkpoint
from ftrain.checkpoint import _json
from tests.checkpoint.forge import DATA, join, seal, split
from tests.checkpoint.states import train_state

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64, 10**30, 0.5, -0.0,
    1e308, "", "*", ".", "..", "../x", "/", "\0", "\ud800", "é", "a" * 300, "F32", "float32", "U8",
    "int64", ".step", ".params['w']", ".params['b']", DATA, [], {}, [[]], [0], [0, 0], [1, 2, 3], [-1],
    {"a": 1}, [None], {"__float__": "inf"}, {"__float__": []}, ["dict", []],
    ["dict", [["['a']", "*"]]],
]  # fmt: skip


class Result(NamedTuple):
    """Counts of a campaign; `other` (errors other than `CheckpointError`) and `slow` must be 0."""

    mutants: int
    loaded: int
    refused: int
    other: int
    slow: int
    megabytes: int
    seconds: float


def mutate_json(content: Any, dice: random.Random) -> None:
    """Make one to three changes anywhere in a JSON value."""
    for _ in range(dice.choice([1, 1, 2, 3])):
        places: list[tuple[Any, Any]] = []
        stack = [content]
        while stack:
            node = stack.pop()
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            places += [(node, key) for key in keys]
            stack += [node[key] for key in keys if isinstance(node[key], (dict, list))]
        if not places:
            return
        node, key = dice.choice(places)
        kind = dice.random()
        if kind < 0.6:
            node[key] = copy.deepcopy(dice.choice(VALUES))
        elif kind < 0.75:
            del node[key]
        elif kind < 0.9:
            other, place = dice.choice(places)
            try:
                node[key] = copy.deepcopy(other[place])
            except (KeyError, IndexError):
                continue
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        else:
            node[f"{key}x"] = node[key]


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flip, remove, double or replace a few bytes."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(changed) + 1)
        count = dice.choice([1, 1, 2, 10, 100])
        kind = dice.random()
        if kind < 0.4 and at < len(changed):
            changed[at] ^= 1 << dice.randrange(8)
        elif kind < 0.6:
            del changed[at : at + count]
        elif kind < 0.8:
            changed[at:at] = changed[at : at + count]
        else:
            changed[at:at] = dice.choice(
                [b"[", b"{", b'"', b"\xff", b"9" * count, b"[" * 5000, b"NaN"]
            )
    return bytes(changed)


def mutant(path: Path, manifest: bytes, file: bytes, dice: random.Random) -> None:
    """Write a checkpoint that differs from the original."""
    content = json.loads(manifest)
    kind = dice.randrange(4)
    if kind == 0:
        seal(path, mutate_bytes(manifest, dice))
        return
    if kind == 1:
        mutate_json(content, dice)
    else:
        header, data = split(file)
        if kind == 2:
            mutate_json(header, dice)
            changed = join(header, data)
        else:
            length = 8 + int.from_bytes(file[:8], "little")
            changed = mutate_bytes(file[:length], dice) + data
        (path / DATA).write_bytes(changed)
        sha256 = hashlib.sha256(changed).hexdigest()
        content["files"][0] |= {"size": len(changed), "sha256": sha256}
    try:
        rendered = _json.render(content)
    except (ValueError, TypeError):
        rendered = json.dumps(content).encode()
    seal(path, rendered)


def printable(error: Exception) -> bool:
    """Return True if a message can be printed, for any names in the file."""
    return len(str(error)) < 10_000 and "\ud800" not in str(error)


def campaign(count: int, seed: int = 0) -> Result:
    """Read `count` mutants, each by one of the reading functions."""
    torch.set_num_threads(1)
    dice, found, like = random.Random(seed), Counter[str](), train_state(0)
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=base, prefix="ftrain-fuzz-") as name:
        original, path = Path(name) / "original", Path(name) / "mutant"
        checkpoint.save(
            original, train_state(1), metadata={"epoch": [1, 2.5, None, {"a": "b"}]}, step=1
        )
        manifest, file = (original / "manifest.json").read_bytes(), (original / DATA).read_bytes()
        shutil.copytree(original, path)
        readers = (
            lambda: checkpoint.load(path, like=like, on_change="ignore"),
            lambda: checkpoint.load(path, like=like, on_change="ignore"),
            lambda: checkpoint.verify(path),
            lambda: checkpoint.restore(path, like=like),
            lambda: checkpoint.read_state_dict(path / DATA),
        )
        for _ in range(count):
            mutant(path, manifest, file, dice)
            began = time.process_time()
            try:
                dice.choice(readers)()
                found["loaded"] += 1
            except checkpoint.CheckpointError as error:
                found["refused" if printable(error) else "other"] += 1
            except Exception as error:
                found["other"] += 1
                print(repr(error)[:500])
                shutil.copytree(
                    path, f"/tmp/ftrain-fuzz-{seed}-{found['other']}", dirs_exist_ok=True
                )
            found["slow"] += time.process_time() - began > 1
            (path / DATA).write_bytes(file)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    counts = (found[key] for key in ("loaded", "refused", "other", "slow"))
    return Result(count, *counts, grown, time.monotonic() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = campaign(options.count, options.seed)
    print(result)
    sys.exit(bool(result.other or result.slow or result.megabytes > 200))
