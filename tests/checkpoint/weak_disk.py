"""Enumerate the states that a weak file system may have after a loss of power.

The model: a file's bytes are on disk once the file was synced; until then the disk has none of them,
half of them, zeros, or all of them. A change of a name (created, renamed, removed) is on disk once its
directory was synced; until then each change may be on disk or not, independently of the others, as long
as the file that it changes exists. This allows more states than ext4, xfs or btrfs do; the model proves
nothing about any of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.checkpoint.faults import Event

_MOST_PENDING = 7  # up to 128 subsets; of more changes, all prefixes, all but one, and a sample


@dataclasses.dataclass
class Node:
    """A file or a directory, independent of its current name."""

    content: bytes = b""
    synced: bytes | None = None  # a file's bytes as of its last sync
    directory: bool = False


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a directory's names: `node` is named `name`, or `name` is removed."""

    parent: int
    name: str
    node: int | None
    source: str | None = None  # a rename within the directory


class Disk:
    """Simulated disk that replays file operations and enumerates the states that a crash may leave."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.nodes: list[Node] = []
        self.names: dict[str, int] = {}  # current names, as running programs see them
        self.durable: dict[tuple[int, str], int] = {}
        self.pending: list[Change] = []
        self._adopt(self.root)

    def _adopt(self, path: str) -> int:
        """Record the existing files below a path as stored on disk."""
        index = self._node(Node(directory=os.path.isdir(path)))
        self.names[path] = index
        if not self.nodes[index].directory:
            self.nodes[index].content = self.nodes[index].synced = Path(path).read_bytes()
            return index
        for name in sorted(os.listdir(path)):
            self.durable[index, name] = self._adopt(os.path.join(path, name))
        return index

    def _node(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def do(self, event: Event) -> None:
        """Apply one more file operation to the simulated disk."""
        parent_path, name = os.path.split(event.path)
        parent = self.names.get(parent_path, -1)
        if event.operation == "mkdir":
            self.names[event.path] = self._node(Node(directory=True))
            self.pending.append(Change(parent, name, self.names[event.path]))
        elif event.operation == "open" and event.path not in self.names:
            self.names[event.path] = self._node(Node())
            self.pending.append(Change(parent, name, self.names[event.path]))
        elif event.operation == "write":
            self.nodes[self.names[event.path]].content += event.data
        elif event.operation == "fsync":
            node = self.nodes[self.names[event.path]]
            node.synced = node.content
        elif event.operation == "fsync directory":
            self._settle(self.names[event.path])
        elif event.operation == "rename":
            for path in [
                p for p in self.names if p == event.source or p.startswith(event.source + "/")
            ]:
                self.names[event.path + path[len(event.source) :]] = self.names.pop(path)
            source = os.path.basename(event.source)
            self.pending.append(Change(parent, name, self.names[event.path], source))
        elif event.operation in ("unlink", "rmdir"):
            del self.names[event.path]
            self.pending.append(Change(parent, name, None))

    def _settle(self, directory: int) -> None:
        for change in self.pending:
            if change.parent == directory:
                assert _apply(self.durable, change)
        self.pending = [change for change in self.pending if change.parent != directory]

    def states(self) -> Iterator[dict[str, bytes | None]]:
        """Yield the possible states after a crash now, as `{path: bytes}`; `None`: a directory."""
        for chosen in _subsets(self.pending):
            entries = dict(self.durable)
            if not all(_apply(entries, change) for change in chosen):
                continue
            unsynced = [
                index
                for index in set(entries.values())
                if not self.nodes[index].directory
                and self.nodes[index].synced != self.nodes[index].content
            ]
            for damage in range(4 if unsynced else 1):
                found: dict[str, bytes | None] = {}
                self._lay_out(entries, 0, "", damage, found)
                yield found

    def _lay_out(
        self,
        entries: dict[tuple[int, str], int],
        directory: int,
        path: str,
        damage: int,
        found: dict[str, bytes | None],
    ) -> None:
        for (parent, name), index in entries.items():
            if parent != directory:
                continue
            node, here = self.nodes[index], f"{path}/{name}"
            if node.directory:
                found[here] = None
                self._lay_out(entries, index, here, damage, found)
            elif node.synced == node.content:
                found[here] = node.content
            else:
                whole = node.content
                found[here] = (whole, b"", whole[: len(whole) // 2], bytes(len(whole)))[damage]


def materialise(state: dict[str, bytes | None], root: Path) -> None:
    """Create the files and directories of a state of the simulated disk."""
    root.mkdir(parents=True)
    for path, content in state.items():
        if content is None:
            (root / path[1:]).mkdir(parents=True, exist_ok=True)
        else:
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (root / path[1:]).write_bytes(content)


def _apply(entries: dict[tuple[int, str], int], change: Change) -> bool:
    """Apply a change to `entries` and return True if it was possible."""
    if change.source is not None:
        if (change.parent, change.source) not in entries:
            return False
        entries[change.parent, change.name] = entries.pop((change.parent, change.source))
    elif change.node is not None:
        entries[change.parent, change.name] = change.node
    elif entries.pop((change.parent, change.name), None) is None:
        return False
    return True


def _subsets(pending: Sequence[Change]) -> Iterator[Sequence[Change]]:
    n = len(pending)
    if n <= _MOST_PENDING:
        for chosen in itertools.product((False, True), repeat=n):
            yield [change for change, there in zip(pending, chosen, strict=True) if there]
        return
    for i in range(n + 1):
        yield pending[:i]
        yield [*pending[:i], *pending[i + 1 :]]
    dice = random.Random(0)
    for _ in range(64):
        yield [change for change in pending if dice.random() < 0.5]
