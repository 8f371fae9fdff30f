"""Initial weights that depend on where a parameter stands, not on what was built before it.

While a constructor runs, no module knows its path yet. So a model is built twice: `observe` notes which
parameter each random draw went to, and `construct` gives these draws, one by one, the key of the path
that the parameter ended up at. Adding a layer leaves the initial weights of the others as they were.

A draw whose numbers reach a parameter through arithmetic (`nn.Parameter(torch.randn(n) * 0.02)`) stands
at no path; its key descends from the classes under construction around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ftrain.core.random._keyed_sites import Running, Stream
from ftrain.core.random.keyed import keyed_by
from ftrain.core.random.keys import key

__all__ = ["construct", "observe"]

_INITIALIZERS = nn.init.uniform_.__code__.co_filename

#: For each initialisation in the order of construction, the path of the tensor that it filled, or "".
Sites = Sequence[str]


def observe(build: Callable[[], nn.Module]) -> tuple[nn.Module, Sites]:
    """The model that `build` builds, with some weights, and the sites for `construct`.

    >>> model, sites = observe(lambda: nn.Linear(2, 1))
    >>> sites
    ['weight', 'bias']
    """
    stream = _Observed(key(0))
    with keyed_by(stream):
        module = build()
    return module, stream.sites(module)


def construct(build: Callable[[], nn.Module], key: Tensor, sites: Sites) -> nn.Module:
    """The model that `build` builds, its initial weights a function of `key` and of their paths.

    Args:
        build: what `observe` was given; it builds the same layers each time.
        key: int32, shape (2,).
        sites: from `observe`.
    """
    with keyed_by(_Planned(key, sites)):
        return build()


class _Initial(Stream):
    """Counts initialisations: calls of `torch.nn.init`, however often they draw, and bare draws."""

    def __init__(self, key: Tensor) -> None:
        super().__init__(key)
        self._initializer: FrameType | None = None
        self._index = -1

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
        if not self._pending:  # a covered function that has drawn nothing
            return
        self._pending = False
        if self._initializer is not None:
            result = self._initializer.f_locals.get("tensor")
        if isinstance(result, Tensor):
            # The weak reference keeps the storage's address from being used again, not its memory.
            self._filled[self._index] = _storage(result), int(result.storage_offset())

    def sites(self, module: nn.Module) -> Sites:
        self._initializer = None
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
    def __init__(self, key: Tensor, sites: Sites) -> None:
        super().__init__(key)
        self._sites = sites

    def _path(self, chain: list[Running]) -> str:
        nameless = super()._path(chain)
        name = self._sites[self._index] if self._index < len(self._sites) else ""
        # No module can be called so: a parameter's initial draws are apart from all draws of a forward.
        return f"{name}=" if name else nameless


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch's


def _initializer(frame: FrameType | None) -> FrameType | None:
    """The outermost running function of `torch.nn.init`."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename == _INITIALIZERS:
            found = frame
        frame = frame.f_back
    return found
