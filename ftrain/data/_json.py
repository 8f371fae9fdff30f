"""JSON encoding of a loader's `state_dict`, with tuples, bytes, tensors, arrays and any dict keys."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

_TAG = "__ftrain__"


def encode(value: Any, where: str) -> Any:
    """Convert a value for `json.dumps`; values of types that JSON lacks become tagged dicts."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return _tagged("tuple", encode(list(value), where))
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        pairs = [[encode(k, where), encode(v, f"{where}[{k!r}]")] for k, v in value.items()]
        return _tagged("dict", pairs)
    if isinstance(value, bytes):
        return _tagged("bytes", base64.b64encode(value).decode())
    if isinstance(value, torch.Tensor):
        return _tagged("tensor", encode(value.detach().cpu().numpy(), where)["value"])
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        array = np.asarray(value)
        content = base64.b64encode(array.tobytes()).decode()
        return _tagged("array", [array.dtype.str, list(array.shape), content])
    raise TypeError(
        f"{where}: expected a value that can be saved as JSON, got {type(value).__name__} {value!r}. "
        "Return only numbers, strings, lists, dicts, tensors and arrays from `state_dict`."
    )


def decode(value: Any) -> Any:
    """Return the value that `encode` converted."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, content = value[_TAG], value["value"]
    if kind == "tuple":
        return tuple(decode(content))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind == "bytes":
        return base64.b64decode(content)
    dtype, shape, raw = content
    array = np.frombuffer(bytearray(base64.b64decode(raw)), dtype=np.dtype(dtype)).reshape(shape)
    return torch.from_numpy(array) if kind == "tensor" else array


def _tagged(kind: str, value: Any) -> dict[str, Any]:
    return {_TAG: kind, "value": value}
