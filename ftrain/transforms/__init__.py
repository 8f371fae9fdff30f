"""Transformations of training: functions from pure steps to pure steps.

    sweep(steps, over={...})         many runs in one graph, over seeds and hyper-parameters
    scan(train_step, k)              k steps in one call
    stoppable(steps)                 members that diverge or are pruned stay as they are
    grid  stack                      combinations of values; trees with a leading axis
    member  select  best             one, several, or the best member of a stacked state
    successive_halving  deactivate   prune the members of a sweep
    ensemble(predict)                mean prediction and disagreement of the members

A training step is a function, so it composes like one: `scan(sweep(stoppable(steps), 8).train_step, 4)`.
Compile last. This package imports `core` and `optim` only. Start reading at `sweep.py`.
"""

from ftrain.transforms.ensemble import EnsemblePrediction, ensemble
from ftrain.transforms.grid import grid
from ftrain.transforms.members import best, member, select, stack
from ftrain.transforms.scan import scan
from ftrain.transforms.stoppable import deactivate, stoppable
from ftrain.transforms.successive_halving import successive_halving
from ftrain.transforms.sweep import sweep

__all__ = [
    "EnsemblePrediction",
    "best",
    "deactivate",
    "ensemble",
    "grid",
    "member",
    "scan",
    "select",
    "stack",
    "stoppable",
    "successive_halving",
    "sweep",
]
