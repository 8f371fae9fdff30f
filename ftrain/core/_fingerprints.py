"""Detection of changes in sets, arrays, scripted modules, random generators, iterators and files.

Sets, arrays and the attributes of scripted modules are restored. A random generator or an iterator that
a call advanced is an error: restoring it would silently give the same numbers at every step.
"""

from __future__ import annotations

import array
import io
import itertools
import operator
import pickle
import random
import types
from typing import Any, Protocol

import numpy as np
import torch

from ftrain.core._object_contents import Change, put_set
from ftrain.core._reachable_objects import Found
from ftrain.core._torch_scripted import attributes_of, set_attribute

__all__ = ["Fingerprint", "fingerprints_of"]


class Fingerprint(Protocol):
    """Recorded contents of an object, to compare with its present contents.

    Attributes:
        node: the object.
        refusal: the reason for which a change raises, to follow the object's path in a message; `None`
            if the object can be restored.
    """

    node: Any
    refusal: str | None

    def same(self) -> bool:
        """Return True if the present contents of the object equal the recorded contents."""

    def restore(self) -> Change | None:
        """Restore the recorded contents; return the replaced contents, or `None` if it is impossible."""


def fingerprints_of(found: Found) -> list[Fingerprint]:
    """Return a fingerprint of each set, array, generator and iterator among the objects in `found`."""
    prints: list[Fingerprint] = []
    prints += [_Set(node) for node in found.containers if isinstance(node, set) and node]
    prints += [_Buffer(node) for node in found.buffers]
    prints += [_Scripted(node) for node in found.scripted]
    prints += [_Generator(node) for node in found.generators]
    prints += [_Position(node) for node in found.iterators]
    return prints


class _Set:
    refusal: str | None = None

    def __init__(self, node: set[Any]) -> None:
        self.node, self._saved = node, set(node)

    def same(self) -> bool:
        return set.__eq__(self.node, self._saved)

    def restore(self) -> Change:
        change = Change(self.node, None, list(self.node), put_set)
        put_set(self.node, None, self._saved)
        return change


class _Buffer:
    refusal: str | None = None

    def __init__(self, node: Any) -> None:
        self.node, self._saved = node, _buffer_contents(node)

    def same(self) -> bool:
        return _buffer_contents(self.node) == self._saved

    def restore(self) -> Change:
        change = Change(self.node, None, [_buffer_contents(self.node)], self._put)
        self._put(self.node, None, [self._saved])
        return change

    @staticmethod
    def _put(node: Any, _: Any, values: Any) -> None:
        ((shape, saved),) = values
        if isinstance(node, np.ndarray):
            if node.shape != shape:
                node.shape = shape
            if node.dtype == object:
                node.flat[:] = saved
            else:
                node[...] = np.frombuffer(saved, node.dtype).reshape(shape)
        elif isinstance(node, array.array):
            del node[:]
            node.frombytes(saved)
        else:
            node[:] = saved


def _buffer_contents(node: Any) -> tuple[Any, Any]:
    if not isinstance(node, np.ndarray):
        return None, bytes(node) if isinstance(node, bytearray) else node.tobytes()
    if node.dtype == object:
        return node.shape, _Identities(node.flat)
    return node.shape, node.tobytes()


class _Identities(list[Any]):
    """List compared by the identity of its elements instead of by their values."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, list)
        return len(self) == len(other) and all(map(operator.is_, self, other))


class _Scripted:
    refusal: str | None = None

    def __init__(self, node: Any) -> None:
        self.node, self._saved = node, attributes_of(node)

    def same(self) -> bool:
        return _same(attributes_of(self.node), self._saved)

    def restore(self) -> Change:
        now = attributes_of(self.node)
        change = Change(self.node, list(now), list(now.values()), _put_attributes)
        _put_attributes(self.node, self._saved, self._saved.values())
        return change


def _put_attributes(node: Any, names: Any, values: Any) -> None:
    for name, value in zip(names, values, strict=True):
        set_attribute(node, name, value)


def _same(first: Any, second: Any) -> bool:
    """Return True if two TorchScript values are equal, with tensors compared by identity."""
    if type(first) is not type(second):
        return False
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and _same([*first.values()], [*second.values()])
    plain = isinstance(first, (bool, int, float, complex, str))  # compared as text: NaN equals NaN
    return repr(first) == repr(second) if plain else first is second


class _Generator:
    refusal: str | None = (
        "is a random generator that the model owns, and the call drew from it: the numbers do not come "
        "from the state's key. Draw with torch (torch.rand, F.dropout), whose draws come from the key"
    )

    def __init__(self, node: Any) -> None:
        self.node, self._saved = node, _state_of(node)

    def same(self) -> bool:
        return _state_of(self.node) == self._saved

    def restore(self) -> None:
        _set_state(self.node, self._saved)


def _state_of(node: Any) -> bytes:
    if isinstance(node, torch.Generator):
        return node.get_state().numpy().tobytes()
    if isinstance(node, random.Random):
        return pickle.dumps(node.getstate())
    if isinstance(node, np.random.RandomState):
        return pickle.dumps(node.get_state())
    bits = node.bit_generator if isinstance(node, np.random.Generator) else node
    return pickle.dumps(bits.state)


def _set_state(node: Any, state: bytes) -> None:
    if isinstance(node, torch.Generator):
        node.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(node, random.Random):
        node.setstate(pickle.loads(state))
    elif isinstance(node, np.random.RandomState):
        node.set_state(pickle.loads(state))
    else:
        bits = node.bit_generator if isinstance(node, np.random.Generator) else node
        bits.state = pickle.loads(state)


class _Position:
    refusal: str | None = (
        "is an iterator or an open file that the call has advanced, and cannot be moved back: the next "
        "call would start at another position. Keep the items in a list, and take the index from the "
        "batch or from a buffer"
    )

    def __init__(self, node: Any) -> None:
        self.node, self._saved = node, _position(node)

    def same(self) -> bool:
        return bool(_position(self.node) == self._saved)

    def restore(self) -> None:
        """Return `None`, because iterators and files cannot be restored (`refusal` gives the reason)."""


def _position(node: Any) -> Any:
    """Return the position of an iterator or a file; a constant if the position cannot be read."""
    if isinstance(node, io.IOBase):
        try:
            return node.tell()
        except (OSError, ValueError):  # a pipe or a closed file
            return None
    if isinstance(node, types.GeneratorType):
        frame = node.gi_frame
        return frame and (frame.f_lasti, [*map(id, frame.f_locals.values())])
    if isinstance(node, itertools.count):
        return repr(node)
    return operator.length_hint(node, -1)
