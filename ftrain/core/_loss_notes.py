"""Notes on an error inside of a model or a loss: a description of the batch, and the likely remedy.

They are made after an exception only, so that they take no time in a step.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ftrain.core._torch import is_wrapped
from ftrain.core._words import a_or_an, kind

__all__ = ["add_notes", "dtype_note", "not_tensors", "note_arguments", "refuse_torch_loss"]

_MOST = 8  # largest number of entries listed in a note
_NAMES = {  # names in torch's messages of dtypes that few models and losses accept
    torch.float64: r"\b(Double|double|float64)\b",
    torch.int32: r"\b(Int|int|int32)\b",
    torch.int16: r"\b(Short|short|int16)\b",
    torch.int8: r"\b(Char|char|int8)\b",
    torch.uint8: r"\b(Byte|unsigned char|uint8)\b",
    torch.bool: r"\b(Bool|bool)\b",
}
_INT64 = {torch.int64: r"\b(Long|long|int64)\b"}  # for inputs only: losses expect int64 labels
_OF_INPUTS = re.compile(r"same dtype, but got|Input type \(")
_DTYPE = re.compile(rf"dtype|scalar type|data type|not implemented for '|{_OF_INPUTS.pattern}")
_OUT_OF_RANGE = re.compile(
    r"Target -?\d+ is out of bounds|out of range in self|index .*out of bounds"
)


def add_notes(
    error: Exception, where: str, batch: Any, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Add notes to an exception of a loss function.

    Args:
        error: the exception.
        where: name of the loss function.
        batch: its batch.
        tensors: the tensors of the batch, by path.
    """
    shapes = [f"{name}: {kind(t)}" for name, t in tensors.items()]
    others: list[tuple[str, str]] = []
    with contextlib.suppress(Exception):  # a note must not replace the error
        others += not_tensors("batch", batch)
    shapes += [f"{name}: {what}" for name, what in others]
    more = ", ..." if len(shapes) > 4 * _MOST else ""
    error.add_note(f"while computing {where} on {', '.join(shapes[: 4 * _MOST])}{more}")
    with contextlib.suppress(Exception):
        for note in (
            dtype_note(error, tensors),
            _ranges(error, tensors),
            _conversion(error, others),
        ):
            if note:
                error.add_note(note)


def note_arguments(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Add a note to an exception of a model that was called with lists or arrays, not tensors."""
    with contextlib.suppress(Exception):
        given = [(f"args[{i}]", value) for i, value in enumerate(args)] + list(kwargs.items())
        note = _conversion(error, [x for name, value in given for x in not_tensors(name, value)])
        if note is not None:
            error.add_note(note)


def _conversion(error: Exception, others: Sequence[tuple[str, str]]) -> str | None:
    """Return a note on values that are not tensors, if they may cause this error; else `None`."""
    if not others or not isinstance(error, (TypeError, AttributeError, ValueError)):
        return None
    if "expected a tensor" in str(error):  # this error has its own remedy
        return None
    listed = ", ".join(f"{name} is {what}" for name, what in others[:_MOST])
    words = any(what == "a str" or "of str" in what for _, what in others)
    number = (
        " Words need numbers: np.unique(words, return_inverse=True)[1] numbers them from 0."
        if words
        else ""
    )
    return (
        f"{listed}: not a tensor. If the model or the loss computes with it, convert it in the data: "
        f"np.asarray(x, 'float32') for numbers, 'int64' for classes, or torch.as_tensor(x).{number}"
    )


def not_tensors(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield path and description of the lists, strings and arrays in a tree; a list counts as one value.

    >>> list(not_tensors("batch", {"x": torch.ones(2), "y": ["cat", "dog"], "n": [[1.5]]}))
    [("batch['y']", 'a list of str'), ("batch['n']", 'a list of lists')]
    """
    if isinstance(value, torch.Tensor):
        return
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from not_tensors(f"{name}[{key!r}]", one)
        return
    is_list = isinstance(value, (list, tuple))
    if not is_list and not isinstance(value, str) and not hasattr(value, "__array__"):
        return
    if is_list and any(isinstance(x, (torch.Tensor, Mapping)) for x in value):
        for i, one in enumerate(value):
            yield from not_tensors(f"{name}[{i}]", one)
        return
    kinds = list(dict.fromkeys(type(x).__name__ for x in value)) if is_list else []
    inside = {"list": "lists", "tuple": "tuples"}.get(kinds[0], kinds[0]) if kinds else "no entries"
    yield name, a_or_an(type(value).__name__) + (f" of {inside}" if is_list else "")


def dtype_note(error: Exception, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return a note that lists the tensors of the dtype in torch's error; `None` if no tensor has it."""
    text = str(error)
    if isinstance(error, AttributeError) or not _DTYPE.search(text):
        return None
    names = {**_NAMES, **_INT64} if _OF_INPUTS.search(text) else _NAMES
    named = {
        name: t.dtype
        for name, t in tensors.items()
        if t.dtype in names and re.search(names[t.dtype], text)
    }
    if not named:
        return None
    listed = ", ".join(
        f"{name} is {str(dtype).removeprefix('torch.')}"
        for name, dtype in list(named.items())[:_MOST]
    )
    default = ", NumPy's default" if torch.float64 in named.values() else ""
    pixels = "x.astype('float32') / 255 for pixels, " if torch.uint8 in named.values() else ""
    return (
        f"{listed}{default}; models of torch expect float32 numbers, and losses int64 classes. Convert "
        f"the data, {pixels}x.astype('float32') or y.astype('int64'), or the batch in the loss, "
        "x.float() or y.long()"
    )


def _ranges(error: Exception, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return a note with the ranges of integer tensors, if an error is about an index; else `None`."""
    if not _OUT_OF_RANGE.search(str(error)):
        return None
    listed = ", ".join(
        f"{name} has values from {int(t.min())} to {int(t.max())}"
        for name, t in tensors.items()
        if not (t.is_floating_point() or t.is_complex() or is_wrapped(t) or t.is_meta) and t.numel()
    )
    if not listed:
        return None
    return (
        f"{listed}. Labels must be from 0 to the number of outputs less one, and indices less than the "
        "size of what they index. Give the model more outputs or rows, or correct the values"
    )


def refuse_torch_loss(argument: str, fn: Callable[..., Any] | Any) -> None:
    """Raise for a loss function that cannot take `(model, batch)`, such as a loss of torch.

    Raises:
        TypeError: the argument is a name, another object that is not callable, or a loss of torch.
    """
    if not callable(fn):
        remedy = (
            "Names stand for losses in configurations; in Python pass the function itself, such as "
            "ftrain.tasks.cross_entropy"
            if isinstance(fn, str)
            else "Pass a function, such as ftrain.tasks.cross_entropy"
        )
        raise TypeError(
            f"{argument}: expected a function (model, batch) -> loss, got {fn!r}. {remedy}."
        )
    kind_of = fn if isinstance(fn, type) else type(fn)
    of_torch = kind_of.__module__ == "torch.nn.modules.loss"
    if of_torch or getattr(fn, "__module__", None) == "torch.nn.functional":
        name = kind_of.__name__ if of_torch else getattr(fn, "__name__", "loss")
        made = f"nn.{name}()" if of_torch else f"F.{name}"
        raise TypeError(
            f"{argument}: expected a function (model, batch) -> loss, got torch's {name}, which takes "
            "an output and labels. Write "
            f"lambda model, batch: {made}(model(batch['x']), batch['y'])."
        )
