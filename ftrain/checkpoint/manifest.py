"""Manifest of a checkpoint: its content, and the SHA-256 of every file of tensors.

    run/step-000000000100/
        tensors-00000.safetensors     the leaves, named by their paths
        manifest.json                 this
        SHA256SUMS                    of all of them, written last; `sha256sum --check SHA256SUMS`

Read next: `save.py`, which writes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from typing import Any, NamedTuple, TypeVar

from ftrain.checkpoint import _json, _tensors
from ftrain.checkpoint._determinism import PRNG
from ftrain.checkpoint.errors import CheckpointCorruptError, CheckpointVersionError

__all__ = ["FileRecord", "LeafRecord", "Manifest"]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
MOST_MANIFEST = 512 << 20  # bytes: an untrusted one must not fill the memory
FORMAT = "ftrain checkpoint"
VERSION = (1, 0)
FEATURES: frozenset[str] = frozenset()  # supported values of `required_features`

T = TypeVar("T")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileRecord(NamedTuple):
    """Record of one file of tensors.

    Attributes:
        name: without a directory.
        size: in bytes.
        sha256: of all its bytes.
    """

    name: str
    size: int
    sha256: str


class LeafRecord(NamedTuple):
    """Record of one tensor of the state.

    Attributes:
        path: the Python that reaches it: `.params['weight']`. Its name in the file, too.
        dtype: `"float32"`.
        shape: its axes.
        strides: its memory layout, in elements; the file holds it in row-major order.
        file: the name of the file that holds it.
        alias: the path of an earlier leaf that is the same tensor; then `file` holds that one.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: str
    alias: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of a checkpoint.

    Attributes:
        leaves: the tensors, in the order of `tree.leaves`.
        files: the files that hold them.
        structure: the containers around them.
        metadata: the caller's own JSON: data cursor, epoch, configuration.
        step: the number of the step that produced the state; `None` if not given.
        metrics: numbers to choose the best by.
        determinism: the settings, beside the state, that the bits of the run depend on.
        versions: of the libraries that wrote it.
        prng: the generator that draws random numbers from the state's keys.
        version: of the format, major and minor.
        digest: the sha256 of the manifest; two checkpoints with one digest are equal.
    """

    leaves: tuple[LeafRecord, ...]
    files: tuple[FileRecord, ...]
    structure: Any
    metadata: Any
    step: int | None
    metrics: dict[str, float]
    determinism: dict[str, Any]
    versions: dict[str, str]
    prng: str = PRNG
    version: tuple[int, int] = VERSION
    digest: str = dataclasses.field(default="", compare=False)

    def render(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        return _json.render(
            {
                "format": FORMAT,
                "version": list(self.version),
                "required_features": [],
                "step": self.step,
                "metrics": _json.encode_user(self.metrics, "metrics"),
                "metadata": _json.encode_user(self.metadata, "metadata"),
                "prng": self.prng,
                "determinism": self.determinism,
                "versions": self.versions,
                "structure": self.structure,
                "files": [record._asdict() for record in self.files],
                "leaves": [leaf._asdict() for leaf in self.leaves],
            }
        )

    def sums(self, rendered: bytes) -> bytes:
        """Return the bytes of `SHA256SUMS`, in the form that `sha256sum --check` reads."""
        hashes = [(record.sha256, record.name) for record in self.files]
        hashes.append((hashlib.sha256(rendered).hexdigest(), MANIFEST))
        return "".join(f"{sha256}  {name}\n" for sha256, name in hashes).encode()

    @staticmethod
    def parse(data: bytes, path: str) -> Manifest:
        """Parse the bytes of `manifest.json`, as `render` returned them.

        Raises:
            CheckpointVersionError: a newer version of ftrain is needed to read it.
            CheckpointCorruptError: it is not a manifest, or has fields that no checkpoint has.
        """
        content = _json.parse(data, path)
        _check_version(content, path)
        try:
            return Manifest(
                leaves=_leaves(content["leaves"], content["files"]),
                files=tuple(_file(entry) for entry in content["files"]),
                structure=content["structure"],
                metadata=_json.decode_floats(content["metadata"]),
                step=None if content["step"] is None else _count(content["step"]),
                metrics=_numbers(_json.decode_floats(content["metrics"])),
                determinism=_of(dict, content["determinism"]),
                versions=_of(dict, content["versions"]),
                prng=_of(str, content["prng"]),
                version=tuple(content["version"]),
                digest=hashlib.sha256(data).hexdigest(),
            )
        except KeyError as error:
            raise CheckpointCorruptError(f"{path}: the field {error} is missing") from None
        except (_MalformedError, RecursionError) as error:
            raise CheckpointCorruptError(f"{path}: {error}") from None


class _MalformedError(Exception):
    """Error for a field whose type or value the format does not allow."""


def _check_version(content: dict[str, Any], path: str) -> None:
    version = content.get("version")
    if (
        content.get("format") != FORMAT
        or not isinstance(version, list)
        or [type(number) for number in version] != [int, int]
    ):
        raise CheckpointCorruptError(f"{path} is not the manifest of an ftrain checkpoint")
    features = content.get("required_features")
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise CheckpointCorruptError(
            f"{path}: `required_features`: expected a list of names, got another value"
        )
    if version[0] > VERSION[0]:
        raise CheckpointVersionError(
            f"{path} has format version {version[0]}.{version[1]}; this ftrain reads up to "
            f"{VERSION[0]}.x. Install the version of ftrain that wrote it, or a newer one"
            + _written_by(content)
        )
    unknown = sorted(set(features) - FEATURES)
    if unknown:
        raise CheckpointVersionError(
            f"{path} needs a reader that knows {', '.join(map(ascii, unknown))}; this ftrain does not. "
            f"Install the version of ftrain that wrote it, or a newer one{_written_by(content)}"
        )
    if version[0] < 1 or version[1] < 0:
        raise CheckpointCorruptError(
            f"{path}: expected a format version of at least 1.0, got {version}"
        )


def _written_by(content: dict[str, Any]) -> str:
    writers = content.get("versions")
    writer = writers.get("ftrain") if isinstance(writers, dict) else None
    return f" (it was {writer!a})." if isinstance(writer, str) else "."


def _leaves(entries: Any, files: Any) -> tuple[LeafRecord, ...]:
    records = [_file(entry) for entry in _of(list, files)]
    room = {record.name: record.size for record in records}
    if len(room) != len(records):
        raise _MalformedError("`files`: expected each file once, got one twice")
    found: dict[str, LeafRecord] = {}
    for entry in _of(list, entries):
        leaf = _leaf(entry)
        if leaf.path in found:
            raise _MalformedError(f"the leaf {leaf.path!a} appears twice")
        if leaf.file not in room:
            raise _MalformedError(
                f"the leaf {leaf.path!a}: expected a file that the checkpoint lists, got {leaf.file!a}"
            )
        dtype = _tensors.by_name(leaf.dtype)
        if dtype is None or math.prod(leaf.shape) * dtype.itemsize > room[leaf.file]:
            raise _MalformedError(
                f"the leaf {leaf.path!a}: expected a known dtype and a size that fits in its file, got "
                f"{leaf.dtype!a}{list(leaf.shape)[:8]}"
            )
        if leaf.alias is not None:
            first = found.get(leaf.alias)
            if first != leaf._replace(path=leaf.alias, alias=None):
                raise _MalformedError(
                    f"the leaf {leaf.path!a}: expected the alias to be an earlier leaf of the same "
                    "dtype, shape, strides and file, got another"
                )
        found[leaf.path] = leaf
    return tuple(found.values())


def _leaf(entry: Any) -> LeafRecord:
    if not isinstance(entry, dict) or not entry.keys() >= set(LeafRecord._fields):
        raise _MalformedError(
            f"`leaves`: expected entries with the fields {LeafRecord._fields}, got {ascii(entry)[:80]}"
        )
    shape = tuple(_count(n) for n in _of(list, entry["shape"]))
    strides = tuple(_count(n) for n in _of(list, entry["strides"]))
    path, dtype, alias = _of(str, entry["path"]), _of(str, entry["dtype"]), entry["alias"]
    if len(shape) != len(strides) or len(shape) > 64:
        raise _MalformedError(
            f"the leaf {path!a}: expected as many strides as sizes, at most 64, got {len(strides)} and "
            f"{len(shape)}"
        )
    if alias is not None:
        _of(str, alias)
    return LeafRecord(path, dtype, shape, strides, _of(str, entry["file"]), alias)


def _file(entry: Any) -> FileRecord:
    if not isinstance(entry, dict) or not entry.keys() >= set(FileRecord._fields):
        raise _MalformedError(
            f"`files`: expected entries with the fields {FileRecord._fields}, got {ascii(entry)[:80]}"
        )
    name, sha256 = _of(str, entry["name"]), _of(str, entry["sha256"])
    if not _FILE_NAME.fullmatch(name) or name in (MANIFEST, SUMS):
        raise _MalformedError(f"`files`: expected the name of a file of tensors, got {name!a}")
    if not _SHA256.fullmatch(sha256):
        raise _MalformedError(
            f"the sha256 of {name}: expected 64 hexadecimal digits, got {sha256[:80]!a}"
        )
    return FileRecord(name, _count(entry["size"]), sha256)


def _numbers(value: Any) -> dict[str, float]:
    if not all(type(number) in (int, float) for number in _of(dict, value).values()):
        raise _MalformedError("`metrics`: expected numbers only, got another type")
    return {name: float(number) for name, number in value.items()}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _MalformedError(f"expected an integer >= 0, got {ascii(value)[:80]}")
    return value


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise _MalformedError(f"expected a value of type {kind.__name__}, got {ascii(value)[:80]}")
    return value
