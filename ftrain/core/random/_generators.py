"""States of the global generators of torch, NumPy and Python: reading, comparing, restoring.

A draw without a key changes one of these states. `read` takes 1.5 µs, so it can run at every eager step:
the words of NumPy's and of Python's Mersenne Twister are read directly from memory (0.25 µs each), since
`numpy.random.get_state` takes 33 µs and `random.getstate` 8 µs. If the memory layout, which is verified
at import, is not the expected one, those two functions are used.

Read next: `_watch.py`, which compares the generators before and after a call.
"""

from __future__ import annotations

import ctypes
import pickle
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ftrain.core.random._own_generators import set_state, state_of

__all__ = ["NAMES", "Marks", "accelerator", "moved", "read", "read_again", "restore", "seed"]

NAMES = ("torch", "device", "numpy", "python", "own")

_WORDS = struct.Struct("=624I")
_MT19937_BYTES = _WORDS.size + 4  # the words, and the index of the next word, an int


class Marks(NamedTuple):
    """Snapshot of the states of the global generators.

    Attributes:
        torch: the state of torch's CPU generator.
        device: the state of the generator of an accelerator, with the device; `None` without one.
        numpy: the state of NumPy's global generator.
        python: the state of the generator of Python's `random` functions.
        own: the program's own generators that a function can reach, with their states.
    """

    torch: torch.Tensor
    device: tuple[torch.device, torch.Tensor] | None
    numpy: Any
    python: Any
    own: tuple[tuple[Any, bytes], ...]


def accelerator() -> torch.device | None:
    """Return the current CUDA device; `None` if the program has not used CUDA."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.device("cuda", torch.cuda.current_device())
    return None


def read(device: torch.device | None = None, own: Sequence[Any] = ()) -> Marks:
    """Return the states of the global generators, with that of `device` if it is an accelerator.

    While a CUDA graph is captured, the device's generator is left out: it cannot be read.

    Args:
        device: an accelerator; a CPU means none.
        own: the program's own generators, from `_own_generators.reachable`.
    """
    other = None
    if device is not None and device.type not in ("cpu", "meta"):
        other = _read_device(device)
    states = tuple([(each, state_of(each)) for each in own]) if own else ()
    return Marks(torch.default_generator.get_state(), other, _read_numpy(), _read_python(), states)


def read_again(before: Marks) -> Marks:
    """Return the current states of the generators in `before`."""
    device = None if before.device is None else before.device[0]
    return read(device, [each for each, _ in before.own])


def moved(before: Marks) -> tuple[str, ...]:
    """Return the names of the generators whose current states differ from those in `before`."""
    if (
        _read_numpy() == before.numpy
        and _read_python() == before.python
        and before.device is None
        and not before.own
        and _same(torch.default_generator.get_state(), before.torch)
    ):
        return ()  # the common case; this shortcut saves 2 µs
    return differing(before, read_again(before))


def moved_quietly(before: Marks) -> tuple[str, ...]:
    """Return the names of the generators, except torch's, whose states differ from those in `before`.

    Reading torch's states lets other threads run, whose draws would then count as draws of this one.
    """
    names = ["numpy"] if _read_numpy() != before.numpy else []
    if _read_python() != before.python:
        names.append("python")
    if before.own and any(state_of(generator) != state for generator, state in before.own):
        names.append("own")
    return tuple(names)


def settled(marks: Marks) -> Marks:
    """Return `marks` with the current states of NumPy's and Python's generators in place of the old."""
    return marks._replace(numpy=_read_numpy(), python=_read_python())


def differing(a: Marks, b: Marks) -> tuple[str, ...]:
    """Return the names of the generators whose states differ between two snapshots."""
    names = [] if _same(a.torch, b.torch) else ["torch"]
    if a.device is not None and b.device is not None and not _same(a.device[1], b.device[1]):
        names.append("device")
    for name in ("numpy", "python", "own"):
        if getattr(a, name) != getattr(b, name):
            names.append(name)
    return tuple(names)


def restore(before: Marks, names: tuple[str, ...]) -> None:
    """Restore the generators in `names` to their states in `before`."""
    if "torch" in names:
        torch.default_generator.set_state(before.torch)
    if "device" in names and before.device is not None:
        device, state = before.device
        torch.get_device_module(device).set_rng_state(state, device)
    if "numpy" in names:
        _restore_numpy(before.numpy)
    if "python" in names:
        _restore_python(before.python)
    if "own" in names:
        for generator, own_state in before.own:
            set_state(generator, own_state)


def seed(name: str, words: tuple[int, int]) -> None:
    """Seed the global generator `name`, one of `NAMES`, with two words of 32 bits."""
    if name == "numpy":
        np.random.seed(list(words))
    elif name == "python":
        random.seed(words[0] << 32 | words[1])
    elif name == "torch":
        torch.default_generator.manual_seed(words[0] << 31 | words[1] >> 1)
    else:
        module = torch.get_device_module()
        module.manual_seed(words[0] << 31 | words[1] >> 1)


# PyDLL instead of CDLL, because CDLL releases the interpreter lock, so that other threads could draw.
_memcmp = ctypes.PyDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    # 0.7 µs; torch.equal takes 4.
    return a.nbytes == b.nbytes and not _memcmp(a.data_ptr(), b.data_ptr(), a.nbytes)


def _read_device(device: torch.device) -> tuple[torch.device, torch.Tensor] | None:
    module = torch.get_device_module(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    return device, module.get_rng_state(device)


def _view(address: int, size: int) -> Any:
    """Return a view of memory that another object owns; its `.raw` copies the bytes."""
    return (ctypes.c_char * size).from_address(address)


# Python's generator: `_random.Random` holds an int, the index of the next word, and 624 words.


def _python_memory(generator: random.Random) -> Any:
    return _view(id(generator) + object.__basicsize__, _MT19937_BYTES)


def _python_is_readable() -> bool:
    probe = random.Random(5)
    if type(probe).__basicsize__ < object.__basicsize__ + _MT19937_BYTES:
        return False
    words = probe.getstate()[1]
    return bool(
        _python_memory(probe).raw == struct.pack("=i", words[-1]) + _WORDS.pack(*words[:-1])
    )


def _python_reader() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    generator: random.Random = random._inst  # behind random.random
    if not _python_is_readable():
        return random.getstate, random.setstate
    memory = _python_memory(generator)

    def read() -> Any:
        return memory.raw, generator.gauss_next  # type: ignore[attr-defined]  # random.gauss keeps one

    def restore(state: Any) -> None:
        raw, gauss = state
        (index,), words = struct.unpack("=i", raw[:4]), _WORDS.unpack(raw[4:])
        random.setstate((3, (*words, index), gauss))

    return read, restore


# NumPy's generator: the bit generator gives the address of 624 words and an int; the legacy RandomState
# also stores the second of two normal draws.


def _numpy_memory(bits: Any) -> Any:
    return _view(bits.ctypes.state_address, _MT19937_BYTES)


def _find_gauss() -> int | None:
    """Return the byte offset of a `RandomState`'s cached normal draw, `int has_gauss; double gauss`."""
    probe = np.random.RandomState(5)
    memory = _view(id(probe), type(probe).__basicsize__)
    words = _numpy_memory(probe._bit_generator)
    seen = []
    for _ in range(3):
        state: Any = probe.get_state(legacy=False)
        key, index = state["state"]["key"], state["state"]["pos"]
        if words.raw != _WORDS.pack(*key) + struct.pack("=i", index):
            return None
        kept = struct.pack("=d", state["gauss"])
        has = struct.pack("=i", state["has_gauss"])
        raw = memory.raw
        seen.append(
            {
                i
                for i in range(0, len(raw) - 15, 8)
                if raw[i : i + 4] == has and raw[i + 8 : i + 16] == kept
            }
        )
        probe.standard_normal()
    places = set.intersection(*seen)
    return places.pop() if len(places) == 1 else None


def _numpy_reader() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    legacy: Any = np.random.mtrand._rand  # behind np.random.rand
    offset = _find_gauss()
    bits: Any = None
    words: Any = None

    def read_slowly() -> Any:
        return pickle.dumps(np.random.get_state(legacy=False))

    def restore(state: Any) -> None:
        if isinstance(state, bytes):
            np.random.set_state(pickle.loads(state))
            return
        raw, kept = state
        has, _, gauss = struct.unpack("=iid", kept)
        index = struct.unpack("=i", raw[_WORDS.size :])[0]
        key = np.frombuffer(raw[: _WORDS.size], dtype=np.uint32)
        np.random.set_state(("MT19937", key, index, has, gauss))

    if offset is None:
        return read_slowly, restore
    kept = _view(id(legacy) + offset, 16)

    def read() -> Any:
        nonlocal bits, words
        current = legacy._bit_generator
        if current is not bits:  # np.random.set_bit_generator may have replaced the bit generator
            bits = current
            words = _numpy_memory(bits) if type(bits) is np.random.MT19937 else None
        return read_slowly() if words is None else (words.raw, kept.raw)

    return read, restore


_read_python, _restore_python = _python_reader()
_read_numpy, _restore_numpy = _numpy_reader()
