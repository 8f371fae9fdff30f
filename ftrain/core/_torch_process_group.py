"""Private torch APIs of process groups, used by `ftrain.distributed`.

Tested with torch 2.13. `_get_default_store` exists since torch 1.7; torchrun's agent and torch's own
`monitored_barrier` use it.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

__all__ = ["default_store"]


def default_store() -> Any:
    """Return the key-value store with which the default process group was formed.

    Raises:
        ValueError: no process group was formed.
    """
    return dist.distributed_c10d._get_default_store()
