"""Learning rates as pure functions of the number of updates done so far.

A schedule takes the count of updates (int64, 0-d) and returns a 0-d tensor on its device, in float64
(`torch.optim.lr_scheduler` computes the same in Python floats). It has no state that must be saved or
advanced. A run that accumulates, skips a step or runs on many devices follows the same curve, because
the count is that of applied updates. Any such function is a schedule:

Example:
    >>> import torch
    >>> def inverse_root(count):
    ...     return 0.1 / (1.0 + count.double()).sqrt()
    >>> inverse_root(torch.tensor(3))
    tensor(0.0500, dtype=torch.float64)

    Read next: `decay.py`, which has the simple curves; `join.py`, which concatenates schedules;
    `plot.py`, which plots them.
"""

from ftrain.optim.schedules.cosine import cosine, cosine_restarts, one_cycle
from ftrain.optim.schedules.decay import constant, exponential, linear, polynomial
from ftrain.optim.schedules.join import join
from ftrain.optim.schedules.plot import plot_schedule
from ftrain.optim.schedules.steps import piecewise_constant, step
from ftrain.optim.schedules.warmup import (
    inverse_sqrt,
    linear_warmup,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "linear_warmup",
    "one_cycle",
    "piecewise_constant",
    "plot_schedule",
    "polynomial",
    "step",
    "warmup_cosine",
    "warmup_linear",
    "warmup_stable_decay",
]
