"""Benchmarks of any training step: time, throughput, FLOP/s, kernels, memory, compile latency.

    print(ftrain.benchmark(train_step, state, batch))

`ftrain.benchmark` measures one step. `sweep` measures the steps that a function builds for several
values of its arguments. The other names are pieces for benchmarks of your own.

Read next: `benchmark.py`, then `turns.py` (the clock) and `noise.py` (what counts as a difference).
"""

from ftrain.bench.benchmark import sweep
from ftrain.bench.fresh import Finished, run_fresh
from ftrain.bench.machine import machine, versions
from ftrain.bench.measurement import Measurement
from ftrain.bench.memory import Allocated, allocated
from ftrain.bench.noise import Difference, compare_runs, compare_turns
from ftrain.bench.report import BenchmarkFileError, Change, Comparison
from ftrain.bench.turns import Turns, take_turns

__all__ = [
    "Allocated",
    "BenchmarkFileError",
    "Change",
    "Comparison",
    "Difference",
    "Finished",
    "Measurement",
    "Turns",
    "allocated",
    "compare_runs",
    "compare_turns",
    "machine",
    "run_fresh",
    "sweep",
    "take_turns",
    "versions",
]
