"""Manifest of a checkpoint: its content, and the SHA-256 of every file of tensors.

    run/step-000000000100/
        tensors-00000.safetensors     the leaves, named by their paths
        manifest.json                 the content of this class, as JSON
        SHA256SUMS                    hashes of the other files; for `sha256sum --check SHA256SUMS`

A checkpoint of several ranks has files of each rank, `rank-00001-00000.safetensors`, and lists the
pieces of each leaf. Its manifest requires the feature "pieces", without which readers refuse it.

Read next: `save.py`, which writes a checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from typing import Any, NamedTuple, TypeVar

from ftrain.checkpoint import _json, _tensors
from ftrain.checkpoint._determinism import PRNG
from ftrain.checkpoint.errors import RESTORE, CheckpointCorruptError, CheckpointVersionError

__all__ = ["FileRecord", "LeafRecord", "Manifest", "PieceRecord"]

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
MOST_MANIFEST = 512 << 20  # bytes, so that an untrusted manifest cannot fill the memory
FORMAT = "ftrain checkpoint"
VERSION = (1, 0)
PIECES = "pieces"
FEATURES = frozenset({PIECES})  # supported values of `required_features`

T = TypeVar("T")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileRecord(NamedTuple):
    """Record of one file of tensors.

    Attributes:
        name: the name of the file, without a directory.
        size: the number of bytes.
        sha256: the SHA-256 of all bytes, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


class PieceRecord(NamedTuple):
    """Record of consecutive rows of a leaf, in a checkpoint of several ranks.

    Attributes:
        file: the name of the file that holds the piece.
        begin: the position of the first byte of the piece in the file.
        start: the index of the first row of the piece in the leaf.
        rows: the number of rows; a scalar has one row.
        sha256: the SHA-256 of the bytes of the piece, with which it can be verified alone.
    """

    file: str
    begin: int
    start: int
    rows: int
    sha256: str


class LeafRecord(NamedTuple):
    """Record of one tensor of the state.

    Attributes:
        path: the path in the state, `.params['weight']`, which is the name in the file, too.
        dtype: the name of the dtype, such as `"float32"`.
        shape: the shape of the tensor.
        strides: the strides in memory, in elements; in the file, the order is row-major.
        file: the name of the file that holds the tensor or its first piece.
        alias: the path of an earlier leaf that is the same tensor and that `file` holds instead.
        pieces: the pieces of the tensor, in order of rows; empty in a checkpoint of one process, and
            for an alias.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    file: str
    alias: str | None = None
    pieces: tuple[PieceRecord, ...] = ()

    def piece_name(self, piece: PieceRecord) -> str:
        """Return the name of a piece in its file: the leaf's path, and the slice of its rows if partial.

        Example:
            >>> piece = PieceRecord("rank-00000-00000.safetensors", 128, 2, 2, "0" * 64)
            >>> LeafRecord("['w']", "float32", (6,), (1,), piece.file).piece_name(piece)
            "['w'][2:4]"
        """
        if piece.rows == (self.shape[0] if self.shape else 1):
            return self.path
        return f"{self.path}[{piece.start}:{piece.start + piece.rows}]"

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON, for the list `leaves` of a manifest."""
        entry = self._asdict()
        entry["pieces"] = [piece._asdict() for piece in self.pieces]
        return entry


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of a checkpoint: records of its tensors and files, metadata, metrics and settings.

    Attributes:
        leaves: records of the tensors, in the order of `tree.leaves`.
        files: records of the files that hold the tensors.
        structure: the containers around the tensors.
        metadata: JSON of the caller, such as data cursor, epoch and configuration.
        step: the number of the step that produced the state; `None` if not given.
        metrics: numbers by which a store ranks checkpoints.
        determinism: settings of the process on which the bits of the run depend.
        versions: versions of the libraries that wrote the checkpoint.
        prng: the name of the algorithm that draws random numbers from the state's keys.
        version: the version of the format, major and minor.
        digest: the SHA-256 of the manifest; two checkpoints with one digest are equal.
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

    @property
    def in_pieces(self) -> bool:
        """True for a checkpoint of several ranks, which stores each leaf in pieces of some rows."""
        return any(leaf.pieces for leaf in self.leaves)

    def render(self) -> bytes:
        """Return the manifest as the bytes of the file `manifest.json`."""
        leaves = [leaf.to_json() for leaf in self.leaves]
        if not self.in_pieces:  # as in checkpoints of earlier versions
            for entry in leaves:
                del entry["pieces"]
        return _json.render(
            {
                "format": FORMAT,
                "version": list(self.version),
                "required_features": [PIECES] if self.in_pieces else [],
                "step": self.step,
                "metrics": _json.encode_user(self.metrics, "metrics"),
                "metadata": _json.encode_user(self.metadata, "metadata"),
                "prng": self.prng,
                "determinism": self.determinism,
                "versions": self.versions,
                "structure": self.structure,
                "files": [record._asdict() for record in self.files],
                "leaves": leaves,
            }
        )

    def sums(self, rendered: bytes) -> bytes:
        """Return the bytes of the file `SHA256SUMS`, in the form that `sha256sum --check` reads."""
        hashes = [(record.sha256, record.name) for record in self.files]
        hashes.append((hashlib.sha256(rendered).hexdigest(), MANIFEST))
        return "".join(f"{sha256}  {name}\n" for sha256, name in hashes).encode()

    @staticmethod
    def parse(data: bytes, path: str) -> Manifest:
        """Return the manifest that the bytes of a file `manifest.json` contain.

        Raises:
            CheckpointVersionError: a newer version of ftrain is needed to read it.
            CheckpointCorruptError: the bytes are not a manifest, or a field is missing or invalid.
        """
        content = _json.parse(data, path)
        _check_version(content, path)
        try:
            return Manifest(
                leaves=_leaves(
                    content["leaves"], content["files"], PIECES in content["required_features"]
                ),
                files=tuple(_file(entry) for entry in content["files"]),
                structure=content["structure"],
                metadata=_json.decode_floats(content["metadata"]),
                step=None if content["step"] is None else _count(content["step"], "`step`"),
                metrics=_numbers(_json.decode_floats(content["metrics"])),
                determinism=_of(dict, content["determinism"], "`determinism`"),
                versions=_of(dict, content["versions"], "`versions`"),
                prng=_of(str, content["prng"], "`prng`"),
                version=tuple(content["version"]),
                digest=hashlib.sha256(data).hexdigest(),
            )
        except KeyError as error:
            raise CheckpointCorruptError(
                f"{path}: the field {error} is missing. {RESTORE}"
            ) from None
        except (_MalformedError, RecursionError) as error:
            raise CheckpointCorruptError(f"{path}: {error}. {RESTORE}") from None


class _MalformedError(Exception):
    """Error for a field of a manifest whose type or value the format does not allow."""


def _check_version(content: dict[str, Any], path: str) -> None:
    version = content.get("version")
    if (
        content.get("format") != FORMAT
        or not isinstance(version, list)
        or [type(number) for number in version] != [int, int]
    ):
        raise CheckpointCorruptError(
            f"{path} is not the manifest of an ftrain checkpoint. {RESTORE}"
        )
    features = content.get("required_features")
    if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
        raise CheckpointCorruptError(
            f"{path}: `required_features`: expected a list of names, got another value. {RESTORE}"
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
            f"{path}: expected a format version of at least 1.0, got {version}. {RESTORE}"
        )


def _written_by(content: dict[str, Any]) -> str:
    writers = content.get("versions")
    writer = writers.get("ftrain") if isinstance(writers, dict) else None
    return f" (it was {writer!a})." if isinstance(writer, str) else "."


def _leaves(entries: Any, files: Any, in_pieces: bool) -> tuple[LeafRecord, ...]:
    records = [_file(entry) for entry in _of(list, files, "`files`")]
    room = {record.name: record.size for record in records}
    if len(room) != len(records):
        raise _MalformedError("`files`: expected each file once, got one twice")
    found: dict[str, LeafRecord] = {}
    for entry in _of(list, entries, "`leaves`"):
        leaf = _leaf(entry, in_pieces)
        if leaf.path in found:
            raise _MalformedError(f"the leaf {leaf.path!a} appears twice")
        if leaf.file not in room:
            raise _MalformedError(
                f"the leaf {leaf.path!a}: expected a file that the checkpoint lists, got {leaf.file!a}"
            )
        dtype = _tensors.by_name(leaf.dtype)
        if dtype is None or not _fits(leaf, dtype.itemsize, room):
            raise _MalformedError(
                f"the leaf {leaf.path!a}: expected a known dtype and a size that fits in its file, got "
                f"{leaf.dtype!a}{list(leaf.shape)[:8]}"
            )
        if leaf.alias is not None:
            first = found.get(leaf.alias)
            original = leaf._replace(path=leaf.alias, alias=None)
            if first is None or first._replace(pieces=()) != original:
                raise _MalformedError(
                    f"the leaf {leaf.path!a}: expected an alias of an earlier leaf with the same "
                    "dtype, shape, strides and file, got another leaf"
                )
        found[leaf.path] = leaf
    return tuple(found.values())


def _fits(leaf: LeafRecord, itemsize: int, room: dict[str, int]) -> bool:
    """Return True if a leaf fits in the unused bytes of its files (`room`), and subtract its size there.

    Otherwise a small checkpoint could list the same bytes many times, as leaves that fill the memory.
    """
    if leaf.alias is not None and not leaf.pieces:
        return True
    if not leaf.pieces:
        room[leaf.file] -= math.prod(leaf.shape) * itemsize
        return room[leaf.file] >= 0
    row = math.prod(leaf.shape[1:]) * itemsize
    for piece in leaf.pieces:
        left = room.get(piece.file)
        if left is None or piece.rows * row > left:
            return False
        room[piece.file] = left - piece.rows * row
    return leaf.file == leaf.pieces[0].file


def _leaf(entry: Any, in_pieces: bool) -> LeafRecord:
    fields = LeafRecord._fields if in_pieces else LeafRecord._fields[:-1]
    if not isinstance(entry, dict) or not entry.keys() >= set(fields):
        got = ascii(entry)[:80]
        raise _MalformedError(f"`leaves`: expected entries with the fields {fields}, got {got}")
    path = _of(str, entry["path"], "the path of a leaf")
    dtype, alias = _of(str, entry["dtype"], "the dtype of a leaf"), entry["alias"]
    shape = _counts(entry["shape"], "the shape of a leaf")
    strides = _counts(entry["strides"], "the strides of a leaf")
    if len(shape) != len(strides) or len(shape) > 64:
        raise _MalformedError(
            f"the leaf {path!a}: expected as many strides as sizes, at most 64, got {len(strides)} and "
            f"{len(shape)}"
        )
    if alias is not None:
        _of(str, alias, "the alias of a leaf")
    file = _of(str, entry["file"], "the file of a leaf")
    leaf = LeafRecord(path, dtype, shape, strides, file, alias)
    return leaf._replace(pieces=_pieces(leaf, entry["pieces"])) if in_pieces else leaf


def _pieces(leaf: LeafRecord, entries: Any) -> tuple[PieceRecord, ...]:
    """Return the pieces of a leaf; raise unless they cover all rows of the leaf, in order."""
    pieces = [_piece(entry) for entry in _of(list, entries, "the pieces of a leaf")]
    if leaf.alias is not None and not pieces:
        return ()
    end, rows = 0, leaf.shape[0] if leaf.shape else 1
    for piece in pieces:
        if piece.start != end or (piece.rows == 0 and rows):
            break
        end += piece.rows
    else:
        if end == rows and pieces and leaf.alias is None and (rows or len(pieces) == 1):
            return tuple(pieces)
    raise _MalformedError(
        f"the leaf {leaf.path!a}: expected pieces that cover all its {rows} rows in order, or no "
        "pieces for a leaf that is an alias, got others"
    )


def _piece(entry: Any) -> PieceRecord:
    if not isinstance(entry, dict) or not entry.keys() >= set(PieceRecord._fields):
        raise _MalformedError(
            f"`pieces`: expected entries with the fields {PieceRecord._fields}, got "
            f"{ascii(entry)[:80]}"
        )
    sha256 = _of(str, entry["sha256"], "the sha256 of a piece")
    if not _SHA256.fullmatch(sha256):
        raise _MalformedError(
            f"the sha256 of a piece: expected 64 hexadecimal digits, got {sha256[:80]!a}"
        )
    begin, start, rows = (
        _count(entry[name], f"the {name} of a piece") for name in ("begin", "start", "rows")
    )
    file = _of(str, entry["file"], "the file of a piece")
    return PieceRecord(file, begin, start, rows, sha256)


def _file(entry: Any) -> FileRecord:
    if not isinstance(entry, dict) or not entry.keys() >= set(FileRecord._fields):
        raise _MalformedError(
            f"`files`: expected entries with the fields {FileRecord._fields}, got {ascii(entry)[:80]}"
        )
    name = _of(str, entry["name"], "the name of a file")
    sha256 = _of(str, entry["sha256"], "the sha256 of a file")
    if not _FILE_NAME.fullmatch(name) or name in (MANIFEST, SUMS):
        raise _MalformedError(f"`files`: expected the name of a file of tensors, got {name!a}")
    if not _SHA256.fullmatch(sha256):
        raise _MalformedError(
            f"the sha256 of {name}: expected 64 hexadecimal digits, got {sha256[:80]!a}"
        )
    return FileRecord(name, _count(entry["size"], "the size of a file"), sha256)


def _numbers(value: Any) -> dict[str, float]:
    if not all(type(number) in (int, float) for number in _of(dict, value, "`metrics`").values()):
        raise _MalformedError("`metrics`: expected numbers only, got another type")
    return {name: float(number) for name, number in value.items()}


def _counts(value: Any, what: str) -> tuple[int, ...]:
    return tuple(_count(number, what) for number in _of(list, value, what))


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _MalformedError(f"{what}: expected an integer >= 0, got {ascii(value)[:80]}")
    return value


def _of(kind: type[T], value: Any, what: str) -> T:
    if not isinstance(value, kind):
        got = ascii(value)[:80]
        raise _MalformedError(f"{what}: expected a value of type {kind.__name__}, got {got}")
    return value
