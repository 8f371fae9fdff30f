"""Wording of messages: articles, kinds of values, suggestions of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ftrain.core import _torch
from ftrain.core._nearest import nearest

__all__ = ["a_or_an", "brief", "did_you_mean", "dtype_and_shape", "kind", "one_line"]


def a_or_an(noun: str) -> str:
    """Return a noun with its article.

    >>> a_or_an("int"), a_or_an("uint8"), a_or_an("ndarray"), a_or_an("dict of 3 entries")
    ('an int', 'a uint8', 'an ndarray', 'a dict of 3 entries')
    """
    vowel = noun[:1] in tuple("aeioAEIO") or noun.startswith("nd")
    return f"{'an' if vowel else 'a'} {noun}"


def dtype_and_shape(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Format dtype and shape for a message: `float32[8, 3]`."""
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def kind(value: object) -> str:
    """Return the dtype and shape of a tensor; the class name of anything else.

    >>> kind(torch.zeros(8, 3)), kind(0.5)
    ('float32[8, 3]', 'float')
    """
    if isinstance(value, torch.Tensor):
        return dtype_and_shape(value.dtype, value.shape)
    return type(value).__name__


def brief(value: torch.Tensor) -> str:
    """Return a 0-d tensor's number (waits for the device), or the dtype and shape of any other tensor.

    >>> brief(torch.tensor(0.25)), brief(torch.zeros(2, 3))
    ('0.25', 'float32[2, 3]')
    """
    shown = type(value) is torch.Tensor and not (
        value.ndim or value.is_meta or _torch.is_wrapped(value)
    )
    if shown:
        return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())
    return kind(value)


def one_line(error: object) -> str:
    r"""Return the text of an error in one printable line of up to 200 characters; its type if empty.

    >>> one_line(ValueError("bad\n\x1b[1mbyte")), one_line(EOFError())
    ('bad [1mbyte', 'EOFError')
    """
    printable = "".join(c if c.isprintable() else " " for c in str(error))
    text = " ".join(printable.split())
    return (text if len(text) <= 200 else text[:197] + "...") or type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known name; empty if no name is similar.

    It is empty too if `name` is not a string.

    >>> did_you_mean("parms", ["step", "params"])
    " Did you mean 'params'?"
    >>> did_you_mean("loss", ["step", "params"])
    ''
    """
    near = nearest(name, known) if isinstance(name, str) else None
    return f" Did you mean {near!r}?" if near else ""
