"""Advice for a step that failed because a size of the model differs from that of the data."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from ftrain.config.build import Parts

__all__ = ["size_advice"]

#: For each fact about the data, the arguments of models that must equal it.
_ARGUMENTS = {
    "features": ("inputs", "in_features", "input_size", "input_dim", "n_inputs"),
    "classes": ("outputs", "classes", "num_classes", "n_classes", "out_features", "output_size"),
    "vocabulary": ("vocabulary", "vocab_size", "vocab"),
    "channels": ("channels", "in_channels", "in_chans"),
    "context": ("context", "block_size", "max_length"),
}

#: Words by which torch's operators and ftrain's losses report sizes that do not fit each other.
_SIGNS = re.compile(r"shape|size|channels|\bdim|out of (range|bounds)|one class per row", re.I)


def size_advice(parts: Parts, error: BaseException) -> str | None:
    """Return a text on the model arguments whose sizes differ from the data's; `None` without any."""
    if not isinstance(error, (RuntimeError, ValueError, IndexError)):
        return None
    if not _SIGNS.search(str(error)):
        return None
    found = [
        f"model.{name} is {size}{place}, but data.{fact} is {known}: write {known}, or "
        f"${{data.{fact}}}"
        for name, size, place, fact, known in _differences(parts)
    ]
    return "; ".join(found) or None


def _differences(parts: Parts) -> Iterator[tuple[str, int, str, str, int]]:
    """Yield each model argument whose size differs from the data's, with its location and both sizes."""
    target = parts.resolved.model
    parameters = inspect.signature(target.function).parameters
    for fact, names in _ARGUMENTS.items():
        known = parts.facts.get(fact)
        for name in names:
            written = target.arguments.get(name)
            default = parameters[name].default if name in parameters else None
            size = default if written is None else written
            if type(known) is not int or type(size) is not int or size == known:
                continue
            if (fact, known, size) == ("classes", 2, 1):  # one logit for two classes
                continue
            if fact == "context" and size > known:  # shorter texts fit
                continue
            place = "" if written is None else f" ({parts.config.places.of((*target.path, name))})"
            yield name, size, place, fact, known
