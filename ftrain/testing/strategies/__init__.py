"""Hypothesis strategies for tensors, trees, keys, batches, modules, optimizers, schedules and states.

They shrink: the counter-example that Hypothesis prints is the smallest that still fails.

Example:
    >>> import torch
    >>> from hypothesis import find
    >>> find(tensors(shape=(2,)), lambda x: bool((x > 1.5).any()))
    tensor([2., 2.])

    Read next: `tensors.py`; `modules.py` and `optimizers.py`, whose values go into `make_steps`.
"""

# Not sorted: the check must run before the imports that need Hypothesis.
from ftrain.testing._hypothesis import require_hypothesis

require_hypothesis("ftrain.testing.strategies")

from ftrain.testing.strategies.batches import batches  # noqa: E402
from ftrain.testing.strategies.keys import keys  # noqa: E402
from ftrain.testing.strategies.modules import modules  # noqa: E402
from ftrain.testing.strategies.network import Network  # noqa: E402
from ftrain.testing.strategies.optimizers import optimizers  # noqa: E402
from ftrain.testing.strategies.schedules import schedules  # noqa: E402
from ftrain.testing.strategies.states import states  # noqa: E402
from ftrain.testing.strategies.tensors import tensors  # noqa: E402
from ftrain.testing.strategies.trees import Box, Pair, trees  # noqa: E402

__all__ = [
    "Box",
    "Network",
    "Pair",
    "batches",
    "keys",
    "modules",
    "optimizers",
    "schedules",
    "states",
    "tensors",
    "trees",
]
