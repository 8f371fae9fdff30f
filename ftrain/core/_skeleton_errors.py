"""Errors for calls that change a model in a way that a state cannot store.

Read next: `_skeleton.py`, which finds the changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain.core._object_contents import Change
from ftrain.core._tensor_slots import Slot
from ftrain.core.errors import ImpureFunctionError

__all__ = ["PARAMETER_REMEDY", "STRAY_REMEDY", "refuse_changes", "refuse_parting", "replacement"]

PARAMETER_REMEDY = (
    "A step must leave its inputs as they are: compute with a changed copy instead, or change the "
    "parameters between steps with state.replace(params=...)"
)
STRAY_REMEDY = (
    "It is not part of the state, so the next step would not be a function of its inputs. "
    "Register it: self.register_buffer(name, tensor)"
)


def replacement(name: str) -> ImpureFunctionError:
    """Return the error for a parameter that a call replaced by another tensor."""
    return ImpureFunctionError(
        f"the parameter {name!r}: expected the same tensor after a forward pass as before it, got "
        f"another one, which the model assigned. {PARAMETER_REMEDY}."
    )


def refuse_parting(slot: Slot, registries: Mapping[int, str]) -> None:
    """Raise if modules that shared a buffer now have different tensors registered for it.

    Args:
        slot: a place of the buffer that no longer holds the tensor of the first place.
        registries: the path of the module of each dict of parameters or buffers, by the dict's `id`.
    """
    prefix = registries.get(id(slot.holder))
    if prefix is not None:
        other = f"{prefix}.{slot.key}".lstrip(".")
        raise ImpureFunctionError(
            f"the buffers {slot.name!r} and {other!r}: expected one shared tensor after a forward "
            "pass, as before it, got two, because the model assigned one of them. Write into the "
            "tensor in place, or give each module a buffer of its own."
        )


def refuse_changes(
    changes: list[Change], refusals: list[str], registries: Mapping[int, str]
) -> None:
    """Raise if a call added or removed tensors, filled a `None` buffer, or cannot be undone.

    Args:
        changes: the changes that were undone after the call.
        refusals: a sentence for each change that could not be undone.
        registries: the path of the module of each dict of parameters or buffers, by the dict's `id`.

    Raises:
        ImpureFunctionError: a parameter or buffer was registered, removed, or set in place of None;
            or a change could not be undone.
    """
    for node, keys, values, _ in changes:
        prefix = registries.get(id(node))
        if prefix is None or keys is None:
            continue
        for name in set(keys) ^ set(node):
            raise ImpureFunctionError(
                f"the model registered or removed `{f'{prefix}.{name}'.lstrip('.')}` during a "
                "forward or backward pass: expected the same tensors before and after. "
                "Register and remove tensors in __init__ only."
            )
        for name, value in zip(keys, values, strict=True):
            if node[name] is None and value is not None:
                raise ImpureFunctionError(
                    f"the model filled its buffer {name!r}, which was None, during a "
                    "forward or backward pass: expected the same buffers before and after. Give "
                    "the buffer its shape in __init__."
                )
    for refusal in refusals:
        raise ImpureFunctionError(f"{refusal}.")
