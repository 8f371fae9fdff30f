"""Public names of the package `ftrain`; imported when any of them is first accessed."""

from ftrain.bench.benchmark import benchmark
from ftrain.bench.report import BenchmarkReport
from ftrain.core import debug, errors, random, tree
from ftrain.core.accumulate import MicroBatches
from ftrain.core.commit import commit
from ftrain.core.compile import Executable, compile, load_executable
from ftrain.core.cond import cond
from ftrain.core.cost import Cost, CostRow
from ftrain.core.export import export, load_weights
from ftrain.core.functional import bind, value_and_grad
from ftrain.core.gradients import GradientFn, GradientResult, gradients
from ftrain.core.metrics import Last, Max, Mean, Metrics, Min, PerExample, Sum
from ftrain.core.precision import LossScale, Policy
from ftrain.core.remat import remat
from ftrain.core.scan import scan
from ftrain.core.state import TrainState
from ftrain.core.step import Steps, TrainStep, make_steps, update
from ftrain.core.switch import switch
from ftrain.core.while_loop import while_loop

__all__ = [
    "BenchmarkReport",
    "Cost",
    "CostRow",
    "Executable",
    "GradientFn",
    "GradientResult",
    "Last",
    "LossScale",
    "Max",
    "Mean",
    "Metrics",
    "MicroBatches",
    "Min",
    "PerExample",
    "Policy",
    "Steps",
    "Sum",
    "TrainState",
    "TrainStep",
    "benchmark",
    "bind",
    "commit",
    "compile",
    "cond",
    "debug",
    "errors",
    "export",
    "gradients",
    "load_executable",
    "load_weights",
    "make_steps",
    "random",
    "remat",
    "scan",
    "switch",
    "tree",
    "update",
    "value_and_grad",
    "while_loop",
]
