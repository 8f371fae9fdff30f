"""Read mutated data files: `python -m tests.data.campaign_files --count 50000`.

A reader may return consistent content. Otherwise it must raise an error that names the file, quickly and
without much memory. Readers of formats with checksums must return the original values or raise.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from ftrain import checkpoint, data
from ftrain.config import ConfigError, _data_json, load
from ftrain.config._loading import load_data
from ftrain.config.resolve import resolve
from ftrain.core import tree
from ftrain.core.errors import DataError
from ftrain.data import fitted, sources
from tests.checkpoint.campaign_fuzz import mutate_bytes

#: Bytes of address space that reading one of these small files may take, beside what is there.
MEMORY = 1 << 30
#: Seconds of processor time that it may take.
SLOW = 2.0

ARRAYS = {
    "x": np.arange(60, dtype=np.float32).reshape(10, 6),
    "y": np.arange(10) % 3,
    "z": np.zeros((200, 50), np.float16),
}
TABLE = "a,b,kind,y\n" + "".join(f'{i}.5,{i % 7},"{"xyz"[i % 3]}, w",{i * 3}\n' for i in range(40))
EXTREMES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\1",
    b"(",
    b"0",
    b"9",
    b"_",
    b'"',
    b"\n",
    b"{",
    b",",
]


class Kind(NamedTuple):
    """Format of a file: its content, how it is read, and the values that a checksum guards."""

    name: str
    content: bytes
    read: Callable[[Path], Any]
    guarded: bool = False


class Result(NamedTuple):
    """Counts: `other` (errors that do not name the file), `wrong` and `slow` must be zero."""

    mutants: int
    read: int
    refused: int
    other: int
    wrong: int
    slow: int
    megabytes: int
    seconds: float


def kinds(folder: Path) -> list[Kind]:
    """Return every kind of file, with a small example of it."""
    found = [
        Kind("a.npz", _written(lambda file: np.savez(file, **ARRAYS)), data.npz, True),
        Kind("c.npz", _written(lambda file: np.savez_compressed(file, **ARRAYS)), data.npz, True),
        Kind("run.npz", _written(lambda file: np.savez(file, **ARRAYS)), _source_of_arrays),
        Kind("a.npy", _written(lambda file: np.save(file, ARRAYS["x"])), data.npy),
        Kind("mapped.npy", _written(lambda file: np.save(file, ARRAYS["x"])), _mapped),
        Kind("tokens.npy", _written(lambda file: np.save(file, ARRAYS["y"])), data.tokens),
        Kind("a.safetensors", save({"x": torch.arange(9.0), "y": torch.ones(2, 3)}), _safetensors),
        Kind("a-idx2-ubyte", _idx(), data.idx),
        Kind("a-idx2-ubyte.gz", gzip.compress(_idx(), mtime=0), data.idx, True),
        Kind("model.pt", _written(lambda file: torch.save(_weights(), file)), _state_dict),
        Kind("old.pt", _written(_save_old), _state_dict),
        Kind("a.csv", TABLE.encode(), lambda path: data.csv(path, columns=["a", "b"])),
        Kind("run.csv", TABLE.encode(), lambda path: sources.csv(path, "y", held_out=5)),
        Kind("words.csv", TABLE.encode(), lambda path: sources.csv(path, "kind", held_out=0)),
        Kind("a.txt", ("Zeichen für Zeichen.\n" * 20).encode(), lambda path: data.text(path)),
        Kind("run.txt", ("To be, or not\n" * 40).encode(), _source_of_text),
        Kind("data.json", _preprocessing(folder), _fitted(folder)),
        Kind("outputs", _outputs(folder / "outputs"), _read_outputs, True),
    ]
    return [*found, *(Kind(f"1.{suffix}", _image(suffix), _read_image) for suffix in _IMAGES)]


_IMAGES = {
    "png": {},
    "jpg": {},
    "gif": {},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "tiff": {"compression": "jpeg"},
    "webp": {},
    "ppm": {},
}


def mutant(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """Return the content with changes: of bytes, of numbers in headers, of its length."""
    kind = dice.random()
    if kind < 0.4 or not content:
        return mutate_bytes(content, dice)
    changed = bytearray(content)
    at = dice.choice([dice.randrange(len(content)), dice.randrange(min(len(content), 200))])
    if kind < 0.7:
        for _ in range(dice.choice([1, 1, 2])):
            width = dice.choice([1, 2, 4, 8, 30])
            place = dice.choice([at, dice.randrange(len(content))])
            changed[place : place + width] = dice.choice(EXTREMES) * width
    elif kind < 0.8:
        del changed[at:]
    elif kind < 0.9:
        changed[at:] = other[dice.randrange(len(other)) :]
    else:
        changed[at : at + 8] = dice.randbytes(8)
    return bytes(changed)


def campaign(
    count: int, seed: int = 0, keep: Path | None = None, only: str | None = None
) -> Result:
    """Read `count` mutants, the same number of each kind; copy those that fail to `keep`."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of numpy and Pillow, for odd headers
    dice, found = random.Random(seed), Counter[str]()
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base, prefix="ftrain-data-") as name:
        files = [kind for kind in kinds(Path(name)) if only is None or only in kind.name]
        for kind in files:
            _write(Path(name), kind, kind.content)
            kind.read(Path(name) / kind.name)  # the original; and imports come before the limit
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, highest = time.monotonic(), before // 1024
        with _limited():
            for i in range(count):
                kind = files[i % len(files)]
                content = mutant(kind.content, dice.choice(files).content, dice)
                outcome = _outcome(Path(name), kind, content)
                now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                if now > highest + 50:
                    print(
                        f"{i} {kind.name}: {' '.join(outcome)}, {now - highest} MiB more",
                        flush=True,
                    )
                    if keep is not None:
                        shutil.copy(Path(name) / kind.name, keep / f"{seed}-{i}-large-{kind.name}")
                highest = max(highest, now)
                for each in outcome:
                    found[each] += 1
                if {*outcome} & {"other", "wrong", "slow"}:
                    print(f"{i} {kind.name}: {' '.join(outcome)}", flush=True)
                    if keep is not None:
                        shutil.copy(Path(name) / kind.name, keep / f"{seed}-{i}-{kind.name}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    counts = (found[key] for key in ("read", "refused", "other", "wrong", "slow"))
    return Result(count, *counts, grown, time.monotonic() - start)


def _outcome(folder: Path, kind: Kind, content: bytes) -> list[str]:
    """Return what came of reading a mutant: `read` or `refused`; or `other`, `wrong`, `slow`."""
    path = _write(folder, kind, content)
    began = time.process_time()
    outcome = []
    try:
        result = kind.read(path)
        outcome.append("read")
        if kind.guarded and not _among(result, kind, folder):
            outcome.append("wrong")
    except (DataError, ConfigError, checkpoint.CheckpointError) as error:
        says = str(error)
        is_good = str(path) in says and len(says) < 5000 and says.replace("\n", "").isprintable()
        outcome.append("refused" if is_good else "other")
        if not is_good:
            print(repr(error)[:500])
    except Exception as error:
        outcome.append("other")
        print(type(error).__name__, repr(error)[:500])
    if time.process_time() - began > SLOW:
        outcome.append("slow")
    return outcome


def _among(result: Any, kind: Kind, folder: Path) -> bool:
    """Return True if all tensors that were read are tensors of the original."""
    path = _write(folder, kind, kind.content)
    originals = {tree.digest(leaf) for leaf in tree.leaves(kind.read(path))}
    return all(tree.digest(leaf) in originals for leaf in tree.leaves(result))


class _limited:
    """Limit of the address space during a `with` block: an allocation above it raises MemoryError."""

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def _write(folder: Path, kind: Kind, content: bytes) -> Path:
    path = folder / kind.name
    path.write_bytes(content)
    return path


def _written(write: Callable[[Any], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _idx() -> bytes:
    return bytes([0, 0, 8, 2, 0, 0, 0, 9, 0, 0, 0, 30]) + bytes(range(27)) * 10


def _weights() -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.zeros(3)}


def _save_old(file: Any) -> None:
    torch.save(_weights(), file, _use_new_zipfile_serialization=False)


def _state_dict(path: Path) -> Any:
    return checkpoint.read_state_dict(path, format="torch")


def _safetensors(path: Path) -> Any:
    return data.safetensors(path)


def _mapped(path: Path) -> Any:
    return data.npy(path, mmap=True).clone()


def _source_of_arrays(path: Path) -> Any:
    return sources.arrays(path, held_out=path)


def _source_of_text(path: Path) -> Any:
    try:
        return sources.text(path, context=8, held_out=0)
    except ValueError as error:  # too short a text
        if not isinstance(error, DataError) and "characters or more" in str(error):
            raise DataError(str(error)) from None
        raise


def _preprocessing(folder: Path) -> bytes:
    (folder / "whole.csv").write_text(TABLE)
    found = sources.csv(folder / "whole.csv", "y", held_out=5)
    assert found.fitted is not None
    return fitted.to_json(fitted.Stored("csv", found.fitted, found.facts)).encode()


def _fitted(folder: Path) -> Callable[[Path], Any]:
    """Return a reader of `data.json`, which also prepares data by what it read, as a run does."""
    config = load(
        {
            "model": {"name": "mlp", "inputs": 1, "outputs": 1},
            "data": {"name": "csv", "path": str(folder / "whole.csv"), "target": "y"},
            "epochs": 1,
        }
    )

    def read(path: Path) -> Any:
        found = _data_json.stored(config, folder)
        try:
            return load_data(resolve(config), found.fitted, evaluation=True)
        except ConfigError as error:  # such as another column: the file is that of another table
            raise DataError(f"{path}: {error}") from None

    return read


def _outputs(path: Path) -> bytes:
    path.unlink(missing_ok=True)
    _read_outputs(path)
    return path.read_bytes()


def _read_outputs(path: Path) -> Any:
    batch = {"x": torch.arange(20.0).reshape(10, 2)}
    weight = torch.ones(2)
    return data.with_outputs(batch, lambda b: b["x"] * weight, path, source=weight)


def _image(suffix: str) -> bytes:
    numbers = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(numbers)
    form = Image.registered_extensions()[f".{suffix}"]
    image.save(file, format=form, **_IMAGES[suffix])
    return file.getvalue()


def _read_image(path: Path) -> Any:
    """Read one image, as its class's only one, scaled as in a run."""
    folder = path.parent / "photos"
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for old in (folder / "a").iterdir():
        old.unlink()
    link = folder / "a" / path.name
    link.hardlink_to(path)
    try:
        return data.images(folder, size=16)[0]["image"]
    except DataError as error:
        raise DataError(str(error).replace(str(link), str(path))) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the kinds of file whose names contain this")
    parser.add_argument("--keep", type=Path, help="an existing folder for the files that fail")
    options = parser.parse_args()
    result = campaign(options.count, options.seed, options.keep, options.only)
    print(result)
    sys.exit(bool(result.other or result.wrong or result.slow or result.megabytes > 1024))
