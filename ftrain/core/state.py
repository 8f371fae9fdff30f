"""Training state: all tensors that influence a run's trajectory.

Read next: `step.py`, which turns one state into the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._words import brief, did_you_mean


@tree.register_dataclass
class TrainState:
    """State of a training run, an immutable tree of tensors; each step returns a new state.

    Attributes:
        step: int64, 0-d. The number of applied updates, without skipped steps.
        params: `{name: tensor}`, the tensors that the optimizer updates.
        buffers: `{name: tensor}`, the module's other tensors: statistics, frozen parameters.
        opt_state: the optimizer's own tree.
        scaler: the loss scaler's tree; `()` if the precision needs none.
        rng: int32, shape (2,). The key from which every random draw of the run is derived.
        extras: a dict of additional trees, such as averaged weights or target networks.

    >>> state = TrainState(torch.tensor(0), {"w": torch.zeros(2)}, {}, (), (), torch.zeros(2), {})
    >>> state.replace(step=state.step + 1)
    TrainState(step=1, params=1 tensor of 2 float32, buffers=(), opt_state=(), scaler=(), extras=(),
        cpu, 24 bytes)
    """

    step: torch.Tensor
    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    opt_state: Any
    scaler: Any
    rng: torch.Tensor
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> TrainState:
        """Return a copy with these fields changed; the original is unchanged.

        An integer `step` is converted to a tensor like the old one. A mapping of another class, such as
        `module.state_dict()`, is converted to a dict if the old value is a dict, since the optimizer
        state has that structure.

        Raises:
            TypeError: a field is unknown; the message lists the known fields.
        """
        for name in changes.keys() - self.__dataclass_fields__.keys():
            fields = list(self.__dataclass_fields__)
            raise TypeError(
                f"a {type(self).__name__} has no field {name!r}.{did_you_mean(name, fields)} It has "
                f"{', '.join(fields)}. Put additional values into `extras`, a dict."
            )
        for name, new in changes.items():
            if type(getattr(self, name)) is dict and isinstance(new, Mapping):
                changes[name] = dict(new)
        if type(changes.get("step")) is int and isinstance(self.step, torch.Tensor):
            changes["step"] = torch.full_like(self.step, changes["step"])
        own = vars(self)
        if type(self) is TrainState and own.keys() == self.__dataclass_fields__.keys():
            return TrainState(**{**own, **changes})  # in half the time of `dataclasses.replace`
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        """Return the step, and the kinds and sizes of the other fields; reads only the step's value."""
        if not all(
            isinstance(x, torch.Tensor) for x in tree.leaves(self)
        ):  # as `in_dims` of a vmap
            fields = (f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
            return f"{type(self).__name__}({', '.join(fields)})"
        parts = [
            f"step={brief(self.step)}",
            f"params={amount(self.params)}",
            f"buffers={amount(self.buffers)}",
            f"opt_state={_kinds(self.opt_state)}",
            f"scaler={_kinds(self.scaler)}",
            f"extras={amount(self.extras)}",
        ]
        tensors = tree.leaves(self)
        parts += dict.fromkeys(str(x.device) for x in tensors)
        size = sum(x.numel() * x.element_size() for x in tensors)
        unit, name = next((u, n) for u, n in _UNITS if size >= u or u == 1)
        parts.append(f"{size / unit:,.4g} {name}")
        return f"{type(self).__name__}({', '.join(parts)})"


_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def amount(values: Any) -> str:
    """Describe a tree by its number of tensors and its number of elements of each dtype."""
    tensors = tree.leaves(values)
    if not tensors:
        return "()"
    numbers = dict.fromkeys((x.dtype for x in tensors), 0)
    for x in tensors:
        numbers[x.dtype] += x.numel()
    of = " and ".join(f"{n:,} {str(dtype).removeprefix('torch.')}" for dtype, n in numbers.items())
    return f"{len(tensors)} tensor{'s' if len(tensors) > 1 else ''} of {of}"


def _kinds(state: Any) -> str:
    """Return the class name of a state; for a tuple or dict, the class names of its parts."""
    if type(state) is tuple:
        return f"({', '.join(map(_kinds, state))})"
    if type(state) is dict:
        return f"{{{', '.join(f'{key}: {_kinds(part)}' for key, part in state.items())}}}"
    return type(state).__name__
