"""Detection of writes to tensors that a call must not change.

Torch counts the writes to each tensor. Reading the count takes no time, so it is checked at every call.
Writes through `.data` or a NumPy view are not counted; to detect them, bytes are compared at the first
call.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._graph_leaves import innermost
from ftrain.core._torch_levels import running_trace
from ftrain.core._torch_tensors import version
from ftrain.core._torch_wrapper import Wrapper
from ftrain.core.errors import ImpureFunctionError

__all__ = ["FirstCalls", "refuse_writes", "unchanged", "unchanged_at_first", "versions"]

_SMALL = 2**16
_CHUNK = 2**20
_GOLDEN = -7046029254386353131  # 2**64 divided by the golden ratio, as an int64
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def unchanged(
    tensors: Mapping[Any, torch.Tensor],
    kind: str,
    remedy: str,
    called: Callable[[Any], str] = str,
    *,
    compare_bytes: bool = False,
) -> contextlib.AbstractContextManager[None]:
    """Return a context that raises at its end if one of `tensors` was written to inside it.

    Args:
        tensors: the tensors, by key.
        kind: their name in a message.
        remedy: a sentence that says what to do instead.
        called: returns the name for messages of the tensor with a key.
        compare_bytes: True to detect writes that torch does not count too; reads every tensor twice.

    Raises:
        ImpureFunctionError: with the tensor's name and the remedy.
    """
    if not tensors:
        return _NOTHING
    return _Unchanged(tensors, kind, remedy, called, compare_bytes)


_NOTHING = contextlib.nullcontext()  # takes 0.2 µs, a context made from a generator 1.3 µs


class _Unchanged:
    """The context of `unchanged`, a class because a generator takes 1 µs longer."""

    def __init__(
        self,
        tensors: Mapping[Any, torch.Tensor],
        kind: str,
        remedy: str,
        called: Callable[[Any], str],
        compare_bytes: bool,
    ) -> None:
        self._tensors, self._kind, self._remedy, self._called = tensors, kind, remedy, called
        self._compare_bytes = compare_bytes

    def __enter__(self) -> None:
        tensors = self._tensors.values()
        self._before = versions(tensors)
        self._kept = [_kept(t) for t in tensors] if self._compare_bytes else []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        tensors = [*self._tensors.values()]
        refuse_writes(
            self._tensors,
            tensors,
            self._before,
            versions(tensors),
            self._kind,
            self._remedy,
            self._called,
        )
        for (name, tensor), copy in zip(self._tensors.items(), self._kept, strict=False):
            if not torch.equal(_kept(tensor), copy):
                raise ImpureFunctionError(
                    f"the {self._kind} `{self._called(name)}` was changed in place by a write that "
                    "bypasses torch's version counter (through `.data`, a NumPy view, or an operator "
                    "that does not declare its write)",
                    f"{self._remedy}.",
                    tensor,
                )


class FirstCalls:
    """Record of the kinds of calls that have left their inputs unchanged."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def is_first(self, kind: Any, tensors: Collection[torch.Tensor]) -> bool:
        """Return True if a call is the first of its kind and the bytes of `tensors` can be compared.

        Under a fake tensor mode, operators return no values, even for a captured tensor with real data.
        """
        return kind not in self._known and _can_compare(tensors)

    def passed(self, kind: Any) -> None:
        """Record that a call of this kind left its inputs unchanged."""
        self._known.add(kind)


def unchanged_at_first(
    fn: Callable[..., Any], x: Any, name: str
) -> contextlib.AbstractContextManager[None]:
    """Return a context that raises if the first call of `fn` in it changes the bytes of `x`.

    Args:
        fn: the function that the context calls; functions with the same code (a lambda in a loop) count
            as one.
        x: a tree of tensors.
        name: the name of the function, for messages.
    """
    if torch.compiler.is_dynamo_compiling():
        return _NOTHING
    code = _code_of(fn)
    return _NOTHING if id(code) in _passed else _compared(code, x, name)


@contextlib.contextmanager
def _compared(code: Any, x: Any, name: str) -> Iterator[None]:
    tensors = {place: t for place, t in enumerate(tree.leaves(x)) if isinstance(t, torch.Tensor)}
    if not _can_compare(tensors.values()):
        yield
        return
    with unchanged(
        tensors,
        f"argument of {name}",
        "Write the out-of-place form: x = x + 1, not x.data += 1",
        lambda place: f"x{tree.paths(x)[place]}",
        compare_bytes=True,
    ):
        yield
    if len(_passed) >= _MANY:
        _passed.clear()
    _passed[id(code)] = code


_NOTHING = contextlib.nullcontext()
_MANY = 4096
_passed: dict[int, Any] = {}  # code that did not change its argument, by id


def _code_of(fn: Callable[..., Any]) -> Any:
    """Return the code of a function, or of the class of a callable object."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        return inspect.unwrap(fn).__code__
    except AttributeError:
        return getattr(type(fn).__call__, "__code__", type(fn))


def refuse_writes(
    names: Iterable[Any],
    tensors: Sequence[torch.Tensor],
    before: Sequence[int],
    after: Sequence[int],
    kind: str,
    remedy: str,
    called: Callable[[Any], str] = str,
) -> None:
    """Raise for the first tensor whose write count differs between `before` and `after`.

    Raises:
        ImpureFunctionError: with the tensor's name and the remedy.
    """
    for name, tensor, was, now in zip(names, tensors, before, after, strict=True):
        if was != now:
            what = f"the {kind} `{called(name)}` was changed in place"
            raise ImpureFunctionError(what, f"{remedy}.", tensor)


def versions(tensors: Collection[torch.Tensor]) -> list[int]:
    """Return the number of writes to each tensor; 0 for an inference tensor.

    Torch does not count writes to inference tensors. A write under a transform of torch.func counts for
    the plain tensor inside.
    """
    with _torch.unwatched():
        if _torch.inside_functorch() is None:
            try:
                return [version(t) for t in tensors]
            except RuntimeError:  # an inference tensor
                pass
        plain = map(innermost, tensors)
        return [0 if t.is_inference() else version(t) for t in plain]


def _can_compare(tensors: Iterable[torch.Tensor]) -> bool:
    """Return True if the values of tensors can be read: not fake ones, nor any while torch traces."""
    readable = not _torch.is_faking() and running_trace() is None
    return readable and all(map(_has_bytes, tensors))


def _has_bytes(tensor: torch.Tensor) -> bool:
    return (
        not isinstance(tensor, _torch.FakeTensor)
        and not _torch.is_wrapped(tensor)
        and not tensor.is_meta
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
    )


@torch.no_grad()
def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor's bytes, or a hash of the bytes if the tensor is large."""
    with _torch.unwatched():
        if isinstance(tensor, Wrapper):
            tensor = tensor.memory()
        tensor = tensor.detach().resolve_neg()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        words = tensor.view(_WORDS[tensor.element_size()])
        if words.numel() <= _SMALL:
            return words.clone()
        words = words.reshape(-1)
        weights = torch.arange(1, _CHUNK + 1, device=tensor.device) * _GOLDEN | 1
        total = torch.zeros((), dtype=torch.int64, device=tensor.device)
        for chunk in torch.split(words, _CHUNK):
            total = total * _GOLDEN + (chunk * weights[: len(chunk)]).sum()
        return total
