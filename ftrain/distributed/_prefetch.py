"""Gathering of the parameters of a unit (a sharded module) while the unit before it runs.

The next unit of the forward pass is the one that the model defines next; the backward pass recomputes
units in the opposite order of their calls. A unit waits for its own parameters, and starts to gather
those of the next unit before it computes anything.

Read next: `_units.py`, whose units these are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ftrain.core import _torch
from ftrain.core._recomputation import start_recomputation
from ftrain.core._torch_collectives import Group, waited
from ftrain.distributed._gather import Gathering, start_gather

__all__ = ["Prefetch", "Shards"]


class Shards(NamedTuple):
    """This rank's rows of the parameters of a unit (a module that is gathered as one).

    Attributes:
        names: the names of the parameters.
        tensors: this rank's rows of each.
        rows: the number of rows of each whole parameter.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    rows: tuple[int, ...]


class Prefetch:
    """Parameters that are being gathered before the units (modules) that need them run.

    Args:
        group: the ranks.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._following: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._started: dict[tuple[str, ...], Gathering] = {}
        self._params: Mapping[str, torch.Tensor] = {}
        self._rows: Mapping[str, int | None] = {}
        self._latest: Shards | None = None

    def set_order(self, units: Sequence[Sequence[str]]) -> None:
        """Set the names of the parameters of each unit, in the order in which the units run."""
        names = [tuple(unit) for unit in units]
        self._following = dict(itertools.pairwise(names))

    def begin(self, params: Mapping[str, torch.Tensor], rows: Mapping[str, int | None]) -> None:
        """Begin a call of the model, given this rank's rows of its parameters."""
        self.end()
        self._params, self._rows = params, rows

    def end(self) -> None:
        """End a call of the model, and wait for gathered parameters that no unit has used."""
        for whole in [x for found in self._started.values() for x in found]:
            if whole is not None and not isinstance(whole, _torch.FakeTensor):
                waited(whole)
        self._started, self._params, self._latest = {}, {}, None

    def enter(self, unit: Shards) -> Shards | None:
        """Record the call of a unit in the forward pass; return the unit that was called before it."""
        before, self._latest = self._latest, unit
        return before

    def take(self, unit: Shards) -> Gathering:
        """Return the parameters of a unit when it starts; their collective may still be running."""
        found = self._started.pop(unit.names, None)
        return start_gather(unit.tensors, unit.rows, self._group) if found is None else found

    def start_following(self, unit: Shards) -> None:
        """Start to gather the parameters of the unit that follows `unit` in the forward pass."""
        names = self._following.get(unit.names)
        if names is not None and all(name in self._params for name in names):
            tensors = tuple(self._params[name] for name in names)
            self.start(Shards(names, tensors, tuple(self._rows[name] or 0 for name in names)))

    def start(self, unit: Shards | None, again: bool = False) -> None:
        """Start to gather the parameters of a unit.

        Args:
            unit: the unit; `None`: there is none.
            again: True in the backward pass. A compiler that merges equal expressions would keep the
                parameters of the forward pass instead.
        """
        if unit is None or unit.names in self._started:
            return
        tensors = unit.tensors
        if again and any(isinstance(x, _torch.FakeTensor) for x in tensors):
            tensors = tuple(start_recomputation(x.detach(), []) for x in tensors)
        self._started[unit.names] = start_gather(tensors, unit.rows, self._group)
