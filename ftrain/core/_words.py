"""Words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch

__all__ = ["a_or_an", "brief", "did_you_mean"]


def a_or_an(noun: str) -> str:
    """A noun with its article.

    >>> a_or_an("int"), a_or_an("uint8"), a_or_an("ndarray"), a_or_an("dict of 3 entries")
    ('an int', 'a uint8', 'an ndarray', 'a dict of 3 entries')
    """
    vowel = noun[:1] in tuple("aeioAEIO") or noun.startswith("nd")
    return f"{'an' if vowel else 'a'} {noun}"


def brief(value: torch.Tensor) -> str:
    """A 0-d tensor's number, which is waited for; dtype and shape of what has more or none to show.

    >>> brief(torch.tensor(0.25)), brief(torch.zeros(2, 3))
    ('0.25', 'float32[2, 3]')
    """
    shown = type(value) is torch.Tensor and not (
        value.ndim or value.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(value)
    )
    if shown:
        return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, as a question; nothing where none is like it.

    >>> did_you_mean("parms", ["step", "params"])
    " Did you mean 'params'?"
    >>> did_you_mean("loss", ["step", "params"])
    ''
    """
    near = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
