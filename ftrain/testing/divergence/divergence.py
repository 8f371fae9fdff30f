"""Value that describes the first difference between two runs.

Read next: `compare.py`, which finds it in two traces; `lockstep.py`, which finds it in two steps.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["Divergence", "Kind"]

Kind = Literal["initial state", "batch", "operator", "state", "metrics"]


@dataclasses.dataclass(frozen=True)
class Divergence:
    """First difference between two runs, A and B.

    Attributes:
        step: number of the step, counted from 1; for the initial state, the number of the step before
            the first one that both runs have.
        kind: what differs first: the initial state, the batch, the result of an operator, the new state
            although no operator differs, or the metrics.
        where: path of the leaf, or name of the operator.
        cause: the reason, as far as the records show it.
        a: the value in A.
        b: the value in B.
        place: module and source line of an operator; "" for a leaf.
        ulps: distance of the first differing elements in units in the last place; `None` if it is
            unknown, as for traces, or undefined.
        follows: further differences that result from the first one, one line each.
        notes: other differences of the two runs, such as library versions and operators without a
            counterpart.

    Example:
        >>> from ftrain.testing import first_divergence
        >>> import torch
        >>> def step(state, batch):
        ...     return state - 0.1 * batch, {"loss": batch.sum()}
        >>> def other(state, batch):
        ...     return state - 0.2 * batch, {"loss": batch.sum()}
        >>> found = first_divergence(step, other, torch.zeros(2), [torch.ones(2)])
        >>> found.step, found.kind, found.where, found.cause
        (1, 'operator', 'aten.mul.Tensor', 'its arguments differ: (_, 0.1) in A, (_, 0.2) in B')
    """

    step: int
    kind: Kind
    where: str
    cause: str
    a: str
    b: str
    place: str = ""
    ulps: int | None = None
    follows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        when = f"step {self.step}"
        if self.kind == "initial state":
            when = f"before step {self.step + 1}"
        lines = [f"first difference: {when}, {self.kind} {self.where}".rstrip()]
        lines += [f"  {self.place}"] if self.place else []
        lines += [f"  A: {self.a}", f"  B: {self.b}"]
        lines += [f"  {self.ulps} ulps apart"] if self.ulps is not None else []
        lines += [f"  cause: {self.cause}"] if self.cause else []
        lines += [f"  then: {line}" for line in self.follows]
        lines += [f"  note: {line}" for line in self.notes]
        return "\n".join(lines)
