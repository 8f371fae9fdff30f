"""Errors for calls that change a model in a way that a state cannot store.

Read next: `_skeleton.py`, which finds the changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ftrain.core import _torch
from ftrain.core._object_contents import Change
from ftrain.core._tensor_slots import Slot
from ftrain.core.errors import ImpureFunctionError

__all__ = [
    "PARAMETER_REMEDY", "STRAY_REMEDY", "check_names", "check_shapes", "not_a_tensor",
    "refuse_changes", "refuse_parting", "replacement",
]  # fmt: skip

PARAMETER_REMEDY = (
    "A step must leave its inputs as they are: compute with a changed copy instead, or change the "
    "parameters between steps with state.replace(params=...). If the model initializes parameters from "
    "its first batch, run one batch through it before passing it on"
)
STRAY_REMEDY = (
    "It is not part of the state, so the next step would not be a function of its inputs. "
    "Register it: self.register_buffer(name, tensor)"
)


def check_names(kind: str, given: Any, names: Sequence[str], owner: str) -> None:
    """Raise unless tensors have the names of those of a module.

    Args:
        kind: the name of the argument in the message.
        given: the argument.
        names: the expected names, sorted.
        owner: the class of the module.
    """
    if isinstance(given, dict) and list(given) == names:
        return
    if not isinstance(given, dict) or given.keys() != set(names):
        have = set(given) if isinstance(given, dict) else set()
        missing, extra = sorted(set(names) - have), sorted(have - set(names))
        raise ValueError(
            f"{kind} do not fit {owner}: "
            + (f"missing {missing[:5]} " if missing else "")
            + (f"unexpected {extra[:5]} " if extra else "")
            + f"(expected {len(names)} names). Take them from init_state, or from bind(model).init()."
        )


def check_shapes(
    tensors: Mapping[str, torch.Tensor], shapes: Sequence[tuple[str, torch.Size]], owner: str
) -> None:
    """Raise unless tensors have the shapes of those of a module of the class `owner`."""
    with _torch.unwatched():
        for name, expected in shapes:
            if tensors[name].shape != expected:
                raise ValueError(
                    f"{name!r}: expected shape {tuple(expected)}, as in {owner}, got "
                    f"{tuple(tensors[name].shape)}: the state belongs to another model. Make one with "
                    "the init_state of this model."
                )


def not_a_tensor(name: str, value: Any) -> ImpureFunctionError:
    """Return the error for an object that a model assigned to the name of a buffer."""
    return ImpureFunctionError(
        f"the buffer {name!r}: expected a tensor after a forward pass, got {value!r}, which the model "
        "assigned. Assign a tensor of the buffer's shape, such as torch.zeros_like(...)."
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
                    "the buffer its shape in __init__, or run one batch through the model before "
                    "passing it on."
                )
    for refusal in refusals:
        raise ImpureFunctionError(f"{refusal}.")
