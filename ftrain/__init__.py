"""ftrain: a functional, stateless training core for PyTorch.

Training is three pure functions over one immutable state:

    init_state(seed) -> state
    train_step(state, batch) -> (state, metrics)
    eval_step(state, batch) -> metrics

Start at `make_steps`; the pieces under it are in `ftrain.core`, the optimizers in `ftrain.optim`.
"""

from ftrain.core import errors, random, tree
from ftrain.core.accumulate import MicroBatches
from ftrain.core.compile import compile
from ftrain.core.functional import bind, value_and_grad
from ftrain.core.gradients import GradientFn, Gradients, gradients
from ftrain.core.metrics import Last, Max, Mean, Metrics, Min, Sum
from ftrain.core.precision import LossScale, Policy
from ftrain.core.scan import scan
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, commit, make_steps, update

__all__ = [
    "GradientFn",
    "Gradients",
    "Last",
    "LossScale",
    "Max",
    "Mean",
    "Metrics",
    "MicroBatches",
    "Min",
    "Policy",
    "Steps",
    "Sum",
    "TrainState",
    "bind",
    "commit",
    "compile",
    "errors",
    "gradients",
    "make_steps",
    "random",
    "scan",
    "tree",
    "update",
    "value_and_grad",
]
