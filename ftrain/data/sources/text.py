"""Text file as training data: windows of characters.

Read next: `ftrain/data/text.py`, which turns characters into numbers.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import torch

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.data.sources._data import Data, Fitted, Inputs, sha256

__all__ = ["text", "text_inputs"]


def text(
    path: pathlib.Path | None = None,
    context: int = 64,
    held_out: float | pathlib.Path = 0.1,
    fitted: Fitted = None,
) -> Data:
    """Return windows of `context + 1` characters as int64 tokens, for the loss `next_token`.

    Args:
        path: a file in UTF-8; null: the sources of Python's standard library.
        context: the number of characters in the model's context.
        held_out: the share at the end of the text to evaluate on, or a file; each character is predicted
            once. 0: no evaluation data.
        fitted: the alphabet that a run fitted.
    """
    alphabet = fitted["alphabet"] if fitted else None
    whole = _read(path, alphabet)
    rest: data.Text | None
    if isinstance(held_out, pathlib.Path):
        train, rest = whole, whole if held_out == path else _read(held_out, whole.alphabet)
        _check(path, train, context + 1, context)
        _check(held_out, rest, context + 1, context)
    elif held_out == 0:
        train, rest = whole, None
        _check(path, train, context + 1, context)
    elif 0 < held_out < 1:
        _check(path, whole, int((context + 1) / min(held_out, 1 - held_out)) + 1, context, held_out)
        train, rest = whole.split(held_out)
    else:
        raise ValueError(
            f"held_out: expected a share of the text, from 0 to below 1, got {held_out:g}. Write 0.1."
        )
    facts = {"vocabulary": whole.vocabulary, "context": context, "alphabet": whole.alphabet}
    held = None if rest is None else rest.windows(context + 1, stride=context)
    refitted = {
        "characters": len(train),
        "sha256": sha256(train.tokens),
        "alphabet": whole.alphabet,
    }
    return Data(train.windows(context + 1), held, facts, predicted, refitted)


def text_inputs(
    path: pathlib.Path,
    context: int = 64,
    held_out: float | pathlib.Path = 0.1,
    fitted: Fitted = None,
) -> Inputs:
    """Return windows of a text, in which each character except the first is predicted once.

    The arguments are those of `text`; `fitted` must be the preprocessing of a run, and `held_out` is not
    used.
    """
    if not fitted:
        raise ValueError(
            "text_inputs: expected as `fitted` the alphabet that the run stored in data.json, got none. "
            "Train the run again, which stores it."
        )
    whole = data.text(path, alphabet=fitted["alphabet"])
    tokens = whole.tokens.to(torch.int64)
    if len(tokens) < 2:
        raise DataError(
            f"{path}: expected a text of two characters or more, got one character. Use more text."
        )

    def batches(size: int) -> Iterator[torch.Tensor]:
        seen = tokens[:-1]
        full = len(seen) // context * context
        yield from torch.split(seen[:full].reshape(-1, context), size) if full else ()
        if full < len(seen):
            yield seen[None, full:]

    characters = whole.decode(tokens[1:])
    target = {"name": "predicted", "alphabet": fitted["alphabet"]}
    return Inputs(batches, target, {"character": list(characters)})


def predicted(windows: torch.Tensor) -> tuple[int, int]:
    """Return the number of windows, and of predicted tokens (all except the first of each window)."""
    samples, length = windows.shape
    return samples, samples * (length - 1)


def _read(path: pathlib.Path | None, alphabet: str | None) -> data.Text:
    if path is not None:
        return data.text(path, alphabet=alphabet)
    found = data.standard_library()
    if alphabet in (None, found.alphabet):
        return found
    return data.Text.of(found.decode(found.tokens), alphabet)  # from another version of Python


def _check(
    path: pathlib.Path | None, found: data.Text, needed: int, context: int, share: float = 0
) -> None:
    if len(found) < needed:
        name = "the standard library" if path is None else path
        held_out = f" with held_out {share}" if share else ""
        raise ValueError(
            f"{name}: expected {needed:,} characters or more, for a context of {context}{held_out}, got "
            f"{len(found):,}. Use more text, or a smaller context."
        )
