"""Canonical JSON, read strictly so that an edited manifest is rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ftrain.checkpoint.errors import RESTORE, CheckpointCorruptError

__all__ = ["decode_floats", "encode_user", "parse", "render"]

_MOST_BITS = 4096
_DEEPEST = 100  # deeper JSON may not be read where the stack is deep already

_FLOAT = "__float__"  # {"__float__": "inf"}: JSON has no infinity and no NaN


def render(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as text: keys sorted, a line per field, and a line per object in a list."""
    fields = (f" {_line(key)}: {_value(content[key])}" for key in sorted(content))
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode()


def parse(data: bytes, path: str) -> dict[str, Any]:
    """Parse canonical JSON text; raise if the text was edited.

    Raises:
        CheckpointCorruptError: the text is not a JSON object, or differs from the text that `render`
            writes for the same content (such as by repeated keys, infinities or long numbers).
    """
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise CheckpointCorruptError(
                f"{path}: expected a JSON object, got {type(content).__name__}. {RESTORE}"
            )
        same = render(content) == data
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise CheckpointCorruptError(
            f"{path}: expected JSON, got an error: {_brief(error)}. {RESTORE}"
        ) from None
    if not same:
        raise CheckpointCorruptError(
            f"{path}: expected the exact text that ftrain writes, got an edited file. {RESTORE}"
        )
    return content


def encode_user(value: Any, where: str, depth: int = 0) -> Any:
    """Return a user's value as JSON that reads back equal (tuples come back as lists).

    Raises:
        TypeError: the value contains something that JSON cannot hold; the message gives its path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:  # Python itself reads no more than 4,300 digits
            raise TypeError(
                f"{where}: expected an integer of at most {_MOST_BITS} bits, got {value.bit_length()} "
                "bits. Write str(x)."
            )
        return int(value)
    if depth == _DEEPEST:
        raise TypeError(
            f"{where[:200]}...: expected at most {depth} nested levels, got more, or a value that "
            "contains itself. Flatten the value."
        )
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [encode_user(entry, f"{where}[{i}]", depth + 1) for i, entry in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{where}: expected string keys, as JSON has no others, got {type(key).__name__} "
                    f"{key!r}. Write {str(key)!r}."
                )
            if key == _FLOAT:
                raise TypeError(
                    f"{where}: expected keys other than {_FLOAT!r}, which is reserved, got this key. "
                    "Use another key."
                )
        return {
            key: encode_user(entry, f"{where}[{key!r}]", depth + 1) for key, entry in value.items()
        }
    raise TypeError(
        f"{where}: expected a value that JSON can hold, got {type(value).__name__}. Put tensors in the "
        "state (for example TrainState.extras), and convert others by float(x), int(x) or str(x)."
    )


def decode_floats(value: Any) -> Any:
    """Return the user's value that was encoded as this JSON content."""
    if isinstance(value, list):
        return [decode_floats(entry) for entry in value]
    if isinstance(value, dict):
        if value.keys() == {_FLOAT} and value[_FLOAT] in ("inf", "-inf", "nan"):
            return float(value[_FLOAT])
        return {key: decode_floats(entry) for key, entry in value.items()}
    return value


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return "[\n  " + ",\n  ".join(map(_line, value)) + "\n ]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(", ", ": "), allow_nan=False)


def _brief(error: Exception) -> str:
    return ascii(str(error))[1:121]
