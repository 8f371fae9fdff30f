"""Cost of a call: FLOPs, bytes, time and the least possible time of its operators and kernels.

Read next: `cost.py` (the result), `_flops.py` (the traced graph), `_kernels.py` (a timed run),
`rates.py` (how fast this machine is).
"""

from ftrain.core.cost.cost import Cost, CostRow, call_cost

__all__ = ["Cost", "CostRow", "call_cost"]
