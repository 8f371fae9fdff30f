"""Initial weights that depend on each parameter's path, not on the order of construction.

While a constructor runs, its modules do not have paths yet. A model is therefore built twice: `observe`
records which parameter each random draw initializes, and `construct` derives the key of each draw from
the path of that parameter. Adding a layer does not change the initial weights of other layers.

A draw whose numbers reach a parameter through arithmetic (`nn.Parameter(torch.randn(n) * 0.02)`) has no
path; its key is derived from the classes of the modules whose constructors run at that moment.

Read next: `_key_stream.py`, the keys of all other draws.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ftrain.core import _torch
from ftrain.core._short_traceback import shortened
from ftrain.core.random import _generators
from ftrain.core.random._find_draw import find_draws
from ftrain.core.random._key_stream import KeyStream, Running
from ftrain.core.random._keyed_operators import here
from ftrain.core.random._own_generators import reachable
from ftrain.core.random._refusal import unkeyed_draw
from ftrain.core.random._watch import failed, require_line
from ftrain.core.random.keyed import keyed_by
from ftrain.core.random.keys import fold_in, key

__all__ = ["InitializerPlan", "construct", "observe"]

T = TypeVar("T")

_INITIALIZERS = nn.init.uniform_.__code__.co_filename
_SEEDS = (0x5EED,)  # folded into the key before the index of a global generator
_seeding = threading.RLock()  # held while the global generators, shared by all threads, are seeded


@dataclasses.dataclass
class InitializerPlan:
    """Record of the random draws of a function that builds a model.

    `observe` calls the function and returns the record; `construct` uses it to give each draw a key.

    Attributes:
        sites: for each initialisation in the order of construction, the path of the tensor that it
            filled, or "".
        by_operator: True if only `KeyedOperators` sees some of the draws.
        seeded: for each global generator whose draws cannot get a key (NumPy's, or torch's in a thread),
            the line that draws. The generator is seeded from the key while the function runs.
        own: the program's own generators that the function can reach.
    """

    sites: Sequence[str] = ()
    by_operator: bool = False
    seeded: dict[str, str] = dataclasses.field(default_factory=dict)
    own: tuple[Any, ...] = ()


def observe(build: Callable[[], nn.Module]) -> tuple[nn.Module, InitializerPlan]:
    """Build a model with arbitrary weights; return it and the plan for `construct`.

    >>> model, plan = observe(lambda: nn.Linear(2, 1))
    >>> plan.sites
    ['weight', 'bias']
    """
    plan = InitializerPlan(own=reachable(build))

    def observed() -> tuple[nn.Module, _Observed, bool]:
        keyed, stream = here.keyed, _Observed(key(0))
        return _built(build, stream, plan), stream, here.keyed > keyed

    module, stream, by_operator = _watched(observed, plan)
    plan.sites, plan.by_operator = stream.sites(module), by_operator
    return module, plan


def construct(build: Callable[[], T], key: Tensor, plan: InitializerPlan) -> T:
    """Build a model whose initial weights are a function of `key` and of the weights' paths.

    Args:
        build: the function that `observe` received; it builds the same layers each time.
        key: int32, shape (2,).
        plan: from `observe`.

    Raises:
        UnkeyedRandomError: a draw of `build` cannot get a key, and the global generators cannot be
            seeded from the key, because it has no value during a trace.
    """
    return _watched(lambda: _built(build, _Planned(key, plan.sites), plan), plan)


def _built(build: Callable[[], T], stream: _Initial, plan: InitializerPlan) -> T:
    before = here.watching, here.operators
    here.watching = here.operators = True
    try:
        with _seeded(stream, plan), keyed_by(stream):
            return build()
    finally:
        here.watching, here.operators = before
        stream.forget_frames()


def _watched(run: Callable[[], T], plan: InitializerPlan) -> T:
    """Call `run()` until `plan` seeds every generator that the call advances; return the last result.

    A generator that a call advances is added to `plan.seeded` before the next call.
    """
    while True:
        before = _generators.read(_generators.accelerator(), plan.own)
        try:
            out = run()
        except Exception as error:
            raise shortened(failed(error, before)) from error.__cause__
        names = _generators.moved(before)
        if not names:
            return out
        # Each generator with the first line that draws from it.
        lines = {
            name: draw.line for draw in reversed(find_draws(run, before)) for name in draw.names
        }
        new = lines.keys() - plan.seeded.keys() - {"own"}
        if not new:
            require_line(run, before, names)
            return out  # the draws are those of another thread
        _generators.restore(before, names)
        plan.seeded.update({name: lines[name] for name in new})


@contextlib.contextmanager
def _seeded(stream: KeyStream, plan: InitializerPlan) -> Iterator[None]:
    """Seed the global generators in `plan.seeded` from the stream's key; restore them at the end."""
    if not plan.seeded:
        yield
        return
    key = stream.key
    if isinstance(key, _torch.FakeTensor) or _torch.is_wrapped(key):
        raise unkeyed_draw(tuple(plan.seeded), f"here:\n\n{next(iter(plan.seeded.values()))}")
    with _seeding:
        before = _generators.read(_generators.accelerator())
        for index, name in enumerate(sorted(plan.seeded)):
            words = fold_in(key, index, folds=_SEEDS).tolist()
            _generators.seed(name, (words[0] % 2**32, words[1] % 2**32))
        try:
            yield
        finally:
            _generators.restore(before, tuple(plan.seeded))


class _Initial(KeyStream):
    """Key stream that counts initializations: calls of `torch.nn.init`, and draws outside of these."""

    def __init__(self, key: Tensor) -> None:
        super().__init__(key)
        self._initializer: FrameType | None = None
        self._index = -1

    def forget_frames(self) -> None:
        """Drop the stored stack frame, which keeps the local variables of all its callers alive."""
        self._initializer = None

    def _path(self, chain: list[Running]) -> str:
        initializer = _initializer(sys._getframe(1))
        if initializer is None or initializer is not self._initializer:
            self._index += 1
        self._initializer = initializer
        return super()._path(chain)


class _Observed(_Initial):
    def __init__(self, key: Tensor) -> None:
        super().__init__(key)
        self._filled: dict[int, tuple[StorageWeakRef, int]] = {}
        self._pending = False

    def _path(self, chain: list[Running]) -> str:
        self._pending = True
        return super()._path(chain)

    def drew(self, result: Any) -> None:
        if not self._pending:  # the function is covered by `keyed`, but has drawn nothing
            return
        self._pending = False
        if self._initializer is not None:
            result = self._initializer.f_locals.get("tensor")
        if isinstance(result, Tensor):
            # The weak reference prevents the reuse of the storage's address, but does not keep its
            # memory.
            self._filled[self._index] = _storage(result), int(result.storage_offset())

    def sites(self, module: nn.Module) -> Sequence[str]:
        spans: dict[int, list[tuple[int, int, str]]] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            start = int(tensor.storage_offset())
            span = (start, start + tensor.numel(), name)
            spans.setdefault(_storage(tensor).cdata, []).append(span)
        found = [""] * (self._index + 1)
        for index, (storage, offset) in self._filled.items():
            for start, end, name in spans.get(storage.cdata, ()):
                if start <= offset < end:
                    found[index] = name
        return found


class _Planned(_Initial):
    def __init__(self, key: Tensor, sites: Sequence[str]) -> None:
        super().__init__(key)
        self._sites = sites

    def _path(self, chain: list[Running]) -> str:
        nameless = super()._path(chain)
        name = self._sites[self._index] if self._index < len(self._sites) else ""
        # No module's path can end in `=`, so initial draws and draws of a forward pass never share a
        # site.
        return f"{name}=" if name else nameless


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch's


def _initializer(frame: FrameType | None) -> FrameType | None:
    """Return the frame of the outermost running function of `torch.nn.init`; `None` if none runs."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _INITIALIZERS:
            found = frame
        frame = frame.f_back
    return found
