"""Keys of draws under `keyed`, derived from the path of the module that draws and a count.

A draw's key is the context's key folded with a hash of the *site* (the path of the module that draws)
and with the number of earlier draws at that site. Two draws at one site never have the same key, and
draws at one site do not affect those at another: adding a layer does not change the masks of other
layers.

The path is read off the Python stack at the moment of the draw, from the modules that are being called,
so a module that draws nothing costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ftrain.core import _torch
from ftrain.core._torch_dispatch import backward_pass, is_batched_tensor, running_jvps
from ftrain.core._torch_levels import moved
from ftrain.core._torch_tensors import MODULE_CALL
from ftrain.core.errors import UnkeyedRandomError
from ftrain.core.random import keys, sample
from ftrain.core.random._refusal import in_function

__all__ = ["KeyStream", "Scope"]

_APPLY = nn.Module.apply.__code__

_ENTER_INSIDE = (
    "a random draw {where} cannot use the key of a `keyed` that was entered outside of it: {why}.\n"
    "  you probably wrote:  with keyed(key): {wrong}\n"
    "  write instead:       def keyed_body(x, key):\n"
    "                           with keyed(key): return body(x)\n"
    "                       {right}"
)
_BACKWARD = {
    "where": "in a backward pass",
    "why": "autograd decides how often and in which order backward functions run",
    "wrong": "loss.backward()  # with a backward or a hook that draws",
    "right": "a backward that calls keyed_body with a key that its forward saved",
}
_LOOP = {
    "where": "in the body of a higher-order operator of torch (cond, map, scan, while_loop)",
    "why": "a trace runs the body once, so every iteration would draw the same numbers",
    "wrong": "torch._higher_order_ops.map(body, xs)",
    "right": "ftrain.scan, ftrain.cond, ftrain.switch or ftrain.while_loop, whose bodies may draw",
}

Running = tuple[nn.Module, bool]
Refusal = Callable[[], UnkeyedRandomError]


@dataclasses.dataclass
class _Counts:
    """Number of draws so far at each call site, and the names given to modules without a path.

    Attributes:
        draws: the number of draws at each path.
        nameless: the names given to modules outside of the root's tree, by id. A reference to the module
            prevents the reuse of its id.
        kinds: the number of names given to each class of such modules.
    """

    draws: Counter[str] = dataclasses.field(default_factory=Counter)
    nameless: dict[int, tuple[nn.Module, str]] = dataclasses.field(default_factory=dict)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)

    def copy(self) -> _Counts:
        return _Counts(self.draws.copy(), self.nameless.copy(), self.kinds.copy())


Scope = Callable[[int | Tensor], contextlib.AbstractContextManager[None]]


class KeyStream:
    """State of one `keyed` context: its key, and the number of draws at each site.

    Args:
        key: int32 tensor of shape (2,).
        root: the module whose tree names the sites; default: the outermost module that is being called.

    Attributes:
        enter: the context in which torch draws from a stream; set by `keyed_by`.
    """

    enter: Callable[[KeyStream], contextlib.AbstractContextManager[Any]]

    def __init__(self, key: Tensor, root: nn.Module | None = None) -> None:
        self._keys = {key.device: key}
        self._key = key
        self.batched = is_batched_tensor(key)
        self._root = root
        # Modules that were already running when the context was entered are not part of its paths, so
        # that draws depend only on the key and on the code inside.
        self._outside = len(_running(sys._getframe(1)))
        self._around: list[Running] = []
        self._backward = backward_pass()
        self._jvps = len(running_jvps()) if _torch.is_forward_mode() else 0
        self._refusal: Refusal | None = None
        self._suffix = ""
        self._counts = _Counts()
        self._hashes: dict[str, tuple[int, int]] = {}
        # The names of a module's descendants by id. A reference to the module prevents the reuse of its
        # id.
        self._names: dict[int, tuple[nn.Module, dict[int, str]]] = {}

    @property
    def key(self) -> Tensor:
        """Key from which the draws inside the context are derived."""
        return self._key

    def folds(self) -> tuple[int, int, int]:
        """Return three integers; folded into the context's key, they give the key of the next draw."""
        if self._refusal is not None:
            raise self._refusal()
        if backward_pass() != self._backward:
            raise UnkeyedRandomError(_ENTER_INSIDE.format(**_BACKWARD))
        if _torch.is_forward_mode() and (functions := running_jvps()[self._jvps :]):
            raise in_function(functions[-1], "jvp")
        return self._next_at(sys._getframe(1), self._suffix)

    def next_key(self) -> Tensor:
        """Return the key of the next draw, for the caller to draw from."""
        folds = self.folds()
        return keys.fold_in(self._key, folds[2], folds=folds[:2])

    def key_of(self, name: str) -> Tensor:
        """Return a key for a name, independent of the keys of all draws."""
        # No module's path has this ending, so the site is never that of a draw.
        high, low = self._hash(f"{name}=")
        return keys.fold_in(self._key, low, folds=(high,))

    def _next_at(self, frame: FrameType | None, suffix: str = "") -> tuple[int, int, int]:
        """Return the hash of the call site at a stack frame, and the number of earlier draws there."""
        path = self._path(self._chain(frame)) + suffix
        count = self._counts.draws[path]
        self._counts.draws[path] = count + 1
        return (*self._hash(path), count)

    def drew(self, result: object) -> None:
        """Receive the result of each keyed call (a hook for subclasses; does nothing here)."""

    @contextlib.contextmanager
    def below_functions(self) -> Iterator[None]:
        """Count draws in the context at sites of their own, so that they change no other draw's key."""
        self._suffix = "!"
        try:
            yield
        finally:
            self._suffix = ""

    def inside_operator(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that refuses draws, for bodies of torch's loops and branches, traced once."""
        return self.refusing(lambda: UnkeyedRandomError(_ENTER_INSIDE.format(**_LOOP)))

    @contextlib.contextmanager
    def refusing(self, refusal: Refusal) -> Iterator[None]:
        """Make draws raise the error that `refusal` returns; the outermost of these contexts decides."""
        outer = self._refusal
        self._refusal = outer or refusal
        try:
            yield
        finally:
            self._refusal = outer

    @contextlib.contextmanager
    def moved(self, vmaps: Sequence[int], refusal: Refusal) -> Iterator[None]:
        """In the context, draw from the key as wrapped for the vmaps that are active when it begins.

        Args:
            vmaps: the levels of the vmaps around the key.
            refusal: returns the error for draws if some of these vmaps map over the key, and not all of
                them run in the context.
        """
        outer = self._key, self._keys, self.batched
        key = moved(self._key, vmaps)
        with self.refusing(refusal) if key is None else contextlib.nullcontext():
            if key is not None:
                self._key, self._keys, self.batched = key, {key.device: key}, is_batched_tensor(key)
            try:
                yield
            finally:
                self._key, self._keys, self.batched = outer

    @contextlib.contextmanager
    def scope(self, kind: str) -> Iterator[Scope]:
        """Give the iterations of a loop, or the branches of a conditional, separate draws.

        The yielded function takes the number of the iteration, an integer or a 0-d tensor, and returns a
        context. Inside it, the key is fold_in(fold_in(key, site of the loop), number), and counts of
        sites begin at 0. Draws therefore do not depend on how often Python runs the body: a trace runs
        it once, and a backward pass may run it again. Draws outside are not affected by the loop.

        Args:
            kind: the kind of loop, such as "scan" or "cond"; part of the loop's site.
        """
        frame = sys._getframe(1)
        folds, around = self._next_at(frame, f"={kind}"), self._chain(frame)
        outer = self._key, self._keys, self._counts

        @contextlib.contextmanager
        def numbered(number: int | Tensor) -> Iterator[None]:
            if isinstance(number, Tensor):
                number = number.to(outer[0].device)
            key = keys.fold_in(outer[0], number, folds=folds)
            if backward_pass() != self._backward:
                with self.enter(self._like(key, around, _Counts())):
                    yield
                return
            self._key = key
            self._keys, self._counts = {self._key.device: self._key}, _Counts()
            try:
                yield
            finally:
                self._key, self._keys, self._counts = outer

        yield numbered

    def again(self) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        """Return a function that makes contexts in which the draws after this call are repeated.

        A backward pass enters one to recompute a checkpointed region, once or several times.
        """
        key, counts, around = self._key, self._counts.copy(), self._chain(sys._getframe(1))

        return lambda: self.enter(self._like(key, around, counts.copy()))

    def _like(self, key: Tensor, around: list[Running], counts: _Counts) -> KeyStream:
        """Return a stream that repeats the draws of part of a forward pass.

        Args:
            key: the key from which its draws are derived.
            around: the modules that called this part, innermost first; they determine the sites of its
                draws.
            counts: how often each site had drawn before the part.
        """
        stream = KeyStream(key, self._root)
        stream._around, stream._counts = around, counts
        stream._names, stream._hashes = self._names, self._hashes
        return stream

    def _chain(self, frame: FrameType | None) -> list[Running]:
        """Return the modules whose calls are in progress at a stack frame, the innermost first."""
        return _running(frame)[: -self._outside or None] + self._around

    def _path(self, chain: list[Running]) -> str:
        """Return the path of the module that is drawing; "" outside of all modules."""
        if not chain:
            return ""
        above, constructing = chain.pop()
        if constructing:
            names = [self._nameless_name("", above)]
        elif self._root is None or self._root is above:
            names = []
        else:
            names = [self._name_in(self._root, above) or self._nameless_name("", above)]
        while chain:
            module, constructing = chain.pop()
            if module is above:
                continue
            name = None if constructing else self._name_in(above, module)
            names.append(name or self._nameless_name(".".join(names), module))
            above = module
        return ".".join(names)

    def key_on(self, device: torch.device) -> Tensor:
        """Return the context's key on a device, to which it is copied once."""
        key = self._keys.get(device)
        if key is None:
            key = self._keys[device] = self._key.to(device)
        return key

    def uniform(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        low: float = 0.0,
        high: float = 1.0,
    ) -> Tensor:
        """Draw U[low, high) with the next key of the call site; complex dtypes draw both parts."""
        if dtype.is_complex:
            pairs = self.uniform((*shape, 2), dtype.to_real(), device, low, high)
            return torch.view_as_complex(pairs)
        folds = self.folds()
        if device.type == "meta":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        return sample.uniform(self.key_on(device), tuple(shape), dtype, low, high, folds=folds)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw N(0, 1) with the next key of the call site; complex: N(0, 1/2) in both parts."""
        if dtype.is_complex:
            pairs = self.normal((*shape, 2), dtype.to_real(), device)
            return torch.view_as_complex(pairs * math.sqrt(0.5))
        if not dtype.is_floating_point:
            raise ValueError(
                f"normal: expected a floating-point or complex dtype, got {dtype}. Write "
                "dtype=torch.float32."
            )
        folds = self.folds()
        if device.type == "meta":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        # Drawn in float32: a bfloat16 uniform has 8 bits, so normals made from it would end at 2.7
        # sigma.
        wide = torch.promote_types(dtype, torch.float32)
        return sample.normal(self.key_on(device), tuple(shape), wide, folds=folds).to(dtype)

    def bernoulli(self, p: float | Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw bools that are True with probability `p`, with the next key of the call site."""
        if not isinstance(p, Tensor) and not 0 <= p <= 1:
            raise ValueError(f"bernoulli: expected p between 0 and 1, got {p}. Pass a probability.")
        folds = self.folds()
        if device.type == "meta":
            return torch.empty(tuple(shape), dtype=torch.bool, device=device)
        return sample.bernoulli(self.key_on(device), p, tuple(shape), folds=folds)

    def randint(
        self, shape: Sequence[int], low: int, high: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Draw integers in [low, high) with the next key of the call site."""
        folds = self.folds()
        if device.type == "meta":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        return sample.randint(self.key_on(device), tuple(shape), low, high, dtype, folds=folds)

    def permutation(self, n: int, device: torch.device) -> Tensor:
        """Draw a permutation of 0 .. n-1 with the next key of the call site."""
        folds = self.folds()
        if device.type == "meta":
            return torch.empty(n, dtype=torch.int64, device=device)
        return sample.permutation(self.key_on(device), n, folds=folds)

    def _hash(self, path: str) -> tuple[int, int]:
        found = self._hashes.get(path)
        if found is None:
            digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
            # Two words of 31 bits, because folds are non-negative int32.
            high, low = (int.from_bytes(digest[i : i + 4], "big") >> 1 for i in (0, 4))
            found = self._hashes[path] = (high, low)
        return found

    def _name_in(self, above: nn.Module, module: nn.Module) -> str | None:
        _, names = self._names.get(id(above), (above, {}))
        if id(module) not in names:  # the first call, or a module registered since the last one
            names = {id(found): name for name, found in above.named_modules()}
            self._names[id(above)] = (above, names)
        return names.get(id(module))

    def _nameless_name(self, prefix: str, module: nn.Module) -> str:
        """Return a name for a module without a path: `Linear#1` for the second such Linear."""
        counts = self._counts
        _, found = counts.nameless.get(id(module), (module, ""))
        if not found:
            kind = type(module).__qualname__
            found = f"{kind}#{counts.kinds[f'{prefix}/{kind}']}"
            counts.kinds[f"{prefix}/{kind}"] += 1
            counts.nameless[id(module)] = (module, found)
        return found


def _running(frame: FrameType | None) -> list[Running]:
    """Return the modules running at a stack frame, innermost first, each with True if in `__init__`."""
    found: list[Running] = []
    while frame is not None:
        code = frame.f_code
        # Code objects are compared by identity, because `==` and hashing read their bytes.
        if code is MODULE_CALL or code is _APPLY or code.co_name == "__init__":
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                found.append((module, code.co_name == "__init__"))
        frame = frame.f_back
    return found
