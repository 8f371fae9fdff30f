"""The training state: everything that influences a run's trajectory, and nothing else.

Read next: `step.py`, which turns one state into the next.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ftrain.core import tree


@tree.register_dataclass
class TrainState:
    """An immutable tree of tensors; a step returns a new one.

    Attributes:
        step: int64, 0-d. Updates applied so far (a skipped step does not count).
        params: `{name: tensor}`, what the optimizer moves.
        buffers: `{name: tensor}`, all else that the module holds: statistics, frozen parameters.
        opt_state: the optimizer's own tree.
        scaler: the loss scaler's tree; `()` where the precision needs none.
        rng: int32, shape (2,). The key from which every random draw of the run descends.
        extras: a dict of trees that research code carries along: averaged weights, target networks.

    >>> state = TrainState(torch.tensor(0), {"w": torch.zeros(2)}, {}, (), (), torch.zeros(2), {})
    >>> state.replace(step=state.step + 1).step
    tensor(1)
    """

    step: torch.Tensor
    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    opt_state: Any
    scaler: Any
    rng: torch.Tensor
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> TrainState:
        """A copy with these fields changed; the original stays as it was."""
        return dataclasses.replace(self, **changes)
