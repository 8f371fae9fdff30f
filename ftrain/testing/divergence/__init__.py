"""Search for the first difference between two runs: in lockstep, or from recorded traces.

Read next: `record.py` and `compare.py`, then `lockstep.py`.
"""

from ftrain.testing.divergence.compare import compare_traces
from ftrain.testing.divergence.divergence import Divergence
from ftrain.testing.divergence.lockstep import first_divergence
from ftrain.testing.divergence.operator_locations import Place
from ftrain.testing.divergence.record import record
from ftrain.testing.divergence.trace import OperatorRecord, StepRecord, TensorRecord, Trace

__all__ = [
    "Divergence",
    "OperatorRecord",
    "Place",
    "StepRecord",
    "TensorRecord",
    "Trace",
    "compare_traces",
    "first_divergence",
    "record",
]
