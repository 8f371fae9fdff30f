"""Cost of a call: FLOPs, bytes, time and least possible time of its operators and kernels.

Read next: `cost.py` (the result), `_flops.py` (the traced graph), `_kernels.py` (a timed run),
`rates.py` (the speed of the machine).
"""

from ftrain.core.cost.cost import Cost, CostRow, call_cost

__all__ = ["Cost", "CostRow", "call_cost"]
