"""Saving of one checkpoint by several ranks, all or nothing.

    1. the ranks compare their states; rank 0 plans the pieces, and creates a hidden directory
    2. each rank writes its pieces there, hashes all pieces that it holds, and syncs
    3. rank 0 compares the hashes, writes the manifest, then SHA256SUMS, and syncs
    4. rank 0 renames the directory; only then `save` returns, on every rank

If a rank fails or ends before step 4, nothing is published, and every rank raises. Read next:
`_checkpoint_pieces.py`, the plan; `_peers.py`, how ranks agree; `ftrain/checkpoint/save.py`, the
save of one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint import _files, _safetensors, _tensors
from ftrain.checkpoint._directories import make_directories, workplace
from ftrain.checkpoint._draft import MOST_IN_A_FILE, Collected, collect
from ftrain.checkpoint.errors import CheckpointRankError
from ftrain.checkpoint.manifest import (
    MANIFEST,
    MOST_MANIFEST,
    SUMS,
    FileRecord,
    LeafRecord,
    Manifest,
    PieceRecord,
)
from ftrain.checkpoint.save import appear, refusals, write_file
from ftrain.checkpoint.shard import Layout
from ftrain.distributed import _checkpoint_pieces
from ftrain.distributed._checkpoint_pieces import LocalLeaf, Piece
from ftrain.distributed._mesh_peers import peers_of
from ftrain.distributed._peers import Peers
from ftrain.distributed.sharding import Sharding

__all__ = ["save"]


def save(
    path: str | os.PathLike[str],
    state: Any,
    mesh: DeviceMesh,
    *,
    layout: Layout | Sharding | None = None,
    metadata: Any = None,
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    timeout: float = 600.0,
) -> Manifest:
    """Write the state of all ranks to one new directory, atomically and durably.

    Each rank writes its own rows. Leaves that every rank holds whole are written once, divided
    among the ranks. Any number of processes can load the result; `checkpoint.load` of one
    process loads all of it. Every rank of the mesh must call this, with the same arguments except
    `state` and `layout`; the directory must be on a file system that all ranks share.

    Args:
        path: the directory to create, as for `checkpoint.save`.
        state: this rank's tree of tensors.
        mesh: the ranks.
        layout: the rows that this rank holds of each leaf that it does not hold whole, by its path; or
            `sharding_of(steps)`, if the state is that of sharded steps.
        metadata: JSON of the caller.
        step: the number of the step that produced this state.
        metrics: numbers, by which a store ranks checkpoints.
        fingerprint: as for `checkpoint.save`; that of rank 0 is recorded.
        timeout: seconds that each phase (comparing, writing, publishing) may take on the slowest rank; a
            longer one ends the save on every rank.

    Returns:
        The manifest, the same on every rank.

    Raises:
        CheckpointRankError: another rank failed, ended or did not answer in time; or the ranks hold
            different bytes of a leaf that they share.
        CheckpointMismatchError: the states or arguments of the ranks differ, or the shards are not all
            rows of a leaf, each once.
        CheckpointWriteError: a system call failed on this rank.
        CheckpointExistsError: `path` exists, with other content.
        TypeError, ValueError: as `checkpoint.save`, or the layout does not fit the state.

    Example:
        >>> import os, tempfile, torch.distributed as dist
        >>> from torch.distributed.device_mesh import DeviceMesh
        >>> from ftrain import checkpoint
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> path = tempfile.mkdtemp() + "/first"
        >>> manifest = save(path, {"w": torch.arange(3.0)}, DeviceMesh("cpu", [0]))
        >>> checkpoint.load(path, like={"w": torch.zeros(3)})[0]
        {'w': tensor([0., 1., 2.])}
        >>> dist.destroy_process_group()
    """
    peers = peers_of(mesh, timeout)

    def content() -> Collected:
        return collect(state, metadata, step, metrics, fingerprint).on_host()

    return publish(content, {} if layout is None else layout, os.fspath(path), peers)


def publish(content: Any, layout: Layout | Sharding, path: str, peers: Peers) -> Manifest:
    """Write the checkpoint of all ranks to a hidden directory, then rename that to `path`.

    Args:
        content: a function that returns the `Collected` state of this rank; its errors reach all ranks.
        layout: the rows that this rank holds.
        path: the directory to create.
        peers: the ranks.
    """
    path = os.path.abspath(path)
    parent, action = os.path.dirname(path), f"save the checkpoint {path}"
    own: list[tuple[Collected, list[LocalLeaf]]] = []

    def prepare() -> None:
        with refusals(action):
            collected: Collected = content()
            own.append((collected, _checkpoint_pieces.local_leaves(collected, layout)))

    reference = peers.agree(action, prepare, lambda _: _checkpoint_pieces.describe(*own[0]))
    collected, leaves = own[0]

    def compare() -> Any:
        _checkpoint_pieces.check_same(_checkpoint_pieces.describe(collected, leaves), reference)
        return _checkpoint_pieces.votes(leaves)

    with contextlib.ExitStack() as stack:

        def begin(ballots: Sequence[Any]) -> Any:
            merged = _checkpoint_pieces.merge(leaves, ballots)
            pieces = _checkpoint_pieces.plan(leaves, [alias for _, alias in merged], ballots)
            with refusals(action):
                make_directories(parent)
                temporary = stack.enter_context(workplace(parent))
            return {"draft": os.path.basename(temporary), "leaves": merged, "pieces": pieces}

        started = peers.agree(action, compare, begin)
        pieces = [Piece(*each) for each in started["pieces"]]
        merged = [(tuple(strides), alias) for strides, alias in started["leaves"]]
        draft = os.path.join(parent, started["draft"])

        def work() -> Any:
            with refusals(action):
                return write_pieces(leaves, pieces, peers.rank, draft)

        def end(written: Sequence[Any]) -> str:
            _check_copies(leaves, pieces, written, action, peers)
            manifest = assemble(collected, leaves, merged, pieces, written)
            with refusals(action):
                return _finish(manifest, draft, path)

        rendered = peers.agree(action, work, end)
    return Manifest.parse(rendered.encode(), os.path.join(path, MANIFEST))


def write_pieces(
    leaves: Sequence[LocalLeaf], pieces: Sequence[Piece], rank: int, directory: str
) -> dict[str, Any]:
    """Write this rank's pieces of the state to disk; hash its copies of pieces that others write.

    Returns:
        The records of `files`; for each written piece its index in `pieces`, file, first byte and
        sha256; for each other piece its index and sha256.
    """
    mine: list[tuple[int, str, torch.Tensor]] = []
    copies: list[tuple[int, str]] = []
    for index, piece in enumerate(pieces):
        part = leaves[piece.leaf].part(piece)
        if piece.writer == rank:
            assert part is not None
            mine.append((index, _name(leaves[piece.leaf], piece), part))
        elif part is not None:
            copies.append((index, hashlib.sha256(_tensors.row_major(part)).hexdigest()))
    files, written = [], []
    # Wide elements come first, so that every tensor in a file is aligned to its element size.
    for number, group in enumerate(_spread(sorted(mine, key=lambda each: -each[2].element_size()))):
        name = f"rank-{rank:05d}-{number:05d}.safetensors"
        header = _safetensors.header([(key, part.dtype, part.shape) for _, key, part in group])
        hashes: list[str] = []
        record = write_file(directory, name, _parts(header, group, hashes))
        begin = len(header)
        for (index, _, part), sha256 in zip(group, hashes, strict=True):
            written.append((index, name, begin, sha256))
            begin += part.numel() * part.element_size()
        files.append(record)
    _files.system.sync_directory(directory)
    return {"files": files, "written": written, "copies": copies}


def _name(leaf: LocalLeaf, piece: Piece) -> str:
    record = LeafRecord(leaf.path, leaf.dtype, leaf.shape, (), "")
    return record.piece_name(PieceRecord("", 0, piece.start, piece.rows, ""))


def _parts(
    header: bytes, group: Sequence[tuple[int, str, torch.Tensor]], hashes: list[str]
) -> Iterator[memoryview]:
    """Yield the bytes of a file; append the sha256 of each of its tensors to `hashes`."""
    yield memoryview(header)
    with ThreadPoolExecutor(1, "ftrain-sha256") as pool:
        pending: Future[str] | None = None
        for _, _, part in group:
            memory = _tensors.row_major(part)
            if pending is not None:
                hashes.append(pending.result())
            pending = pool.submit(_sha256, memory)
            yield memory
        if pending is not None:
            hashes.append(pending.result())


def _sha256(memory: memoryview) -> str:
    return hashlib.sha256(memory).hexdigest()


def _spread(
    mine: Sequence[tuple[int, str, torch.Tensor]],
) -> list[list[tuple[int, str, torch.Tensor]]]:
    """Group the pieces that this rank writes into files of up to a few gigabytes."""
    groups: list[list[tuple[int, str, torch.Tensor]]] = []
    filled = 0
    for each in mine:
        size = each[2].numel() * each[2].element_size()
        if not groups or filled + size > MOST_IN_A_FILE:
            groups.append([])
            filled = 0
        groups[-1].append(each)
        filled += size
    return groups


def _check_copies(
    leaves: Sequence[LocalLeaf],
    pieces: Sequence[Piece],
    written: Sequence[Any],
    action: str,
    peers: Peers,
) -> None:
    """Raise unless all ranks that hold the same rows of a leaf have the same bytes."""
    hashes = {index: sha256 for each in written for index, _, _, sha256 in each["written"]}
    for rank, each in enumerate(written):
        for index, sha256 in each["copies"]:
            if hashes[index] != sha256:
                piece = pieces[index]
                last = piece.start + piece.rows - 1
                raise CheckpointRankError(
                    action,
                    rank,
                    peers.host(rank),
                    f"the leaf at {leaves[piece.leaf].path or 'the root'}: expected the bytes of rank "
                    f"{piece.writer} in rows {piece.start} to {last}, which both ranks hold, got others",
                )


def assemble(
    content: Collected,
    leaves: Sequence[LocalLeaf],
    merged: Sequence[tuple[tuple[int, ...], int | None]],
    pieces: Sequence[Piece],
    written: Sequence[Any],
) -> Manifest:
    """Return the manifest of a checkpoint, from the ranks' records of the files that they wrote.

    Raises:
        ValueError: the manifest is larger than readers accept.
    """
    where = {index: rest for each in written for index, *rest in each["written"]}
    records: list[list[PieceRecord]] = [[] for _ in leaves]
    for index, piece in enumerate(pieces):
        file, begin, sha256 = where[index]
        records[piece.leaf].append(PieceRecord(file, begin, piece.start, piece.rows, sha256))
    described: list[LeafRecord] = []
    for leaf, (strides, alias), parts in zip(leaves, merged, records, strict=True):
        of = None if alias is None else described[alias]
        file = parts[0].file if of is None else of.file
        described.append(
            LeafRecord(
                leaf.path, leaf.dtype, leaf.shape, strides, file, of and of.path, tuple(parts)
            )
        )
    return Manifest(
        leaves=tuple(described),
        files=tuple(FileRecord(*record) for each in written for record in each["files"]),
        structure=_checkpoint_pieces.describe(content, leaves)["structure"],
        **content.rest,
    )


def _finish(manifest: Manifest, draft: str, path: str) -> str:
    """Write manifest and SHA256SUMS, publish the directory, and return the text of the manifest."""
    rendered = manifest.render()
    if len(rendered) > MOST_MANIFEST:
        raise ValueError(
            f"metadata: expected a manifest of at most {MOST_MANIFEST} bytes, got {len(rendered)}. Put "
            "large data in the state, as tensors."
        )
    record = write_file(draft, MANIFEST, [memoryview(rendered)])
    write_file(draft, SUMS, [memoryview(manifest.sums(rendered))])
    _files.system.sync_directory(draft)
    if not appear(draft, path, dataclasses.replace(manifest, digest=record.sha256)):
        _files.system.sync_directory(os.path.dirname(path))
    return rendered.decode()
