"""Description of every key of the schema, with name, type, default and purpose.

Errors of unknown keys: `_key_errors.py`.
"""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ftrain.config.schema import Checkpoint, Config, Data, Distributed, EarlyStopping, Optimizer

__all__ = ["SECTIONS", "described", "keys"]

#: The sections with keys of their own.
SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "optimizer": Optimizer,
    "distributed": Distributed,
    "checkpoint": Checkpoint,
    "early_stopping": EarlyStopping,
}


def keys() -> Iterator[tuple[str, FieldInfo]]:
    """Yield each dotted key with its pydantic field, in the order of the schema."""
    for name, field in Config.model_fields.items():
        yield name, field
        if name in SECTIONS:
            yield from ((f"{name}.{key}", one) for key, one in SECTIONS[name].model_fields.items())


def described() -> str:
    """Return a text that lists every key with its default and its purpose.

    Example:
        >>> print(described().partition("optimizer.name")[2][:57])
        : adamw
            One of `ftrain.optim`, such as `adamw`, or an
    """
    lines = []
    for key, field in keys():
        default = _default(field)
        lines.append(f"{key}: {default}" if default else f"{key}:")
        choices = typing.get_args(field.annotation)
        listed = typing.get_origin(field.annotation) is typing.Literal
        says = [field.description or "", f"One of {', '.join(choices)}." if listed else ""]
        lines += textwrap.wrap(
            " ".join(says).strip(), width=96, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    value = field.get_default()
    if isinstance(value, BaseModel):
        return getattr(value, "name", "")  # of a component; a section has keys of its own
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == () else str(value)
