"""The callbacks that every run has: progress, logs, curves, early stopping.

Read next: `ftrain/loop/callbacks/`.
"""

from __future__ import annotations

import pathlib
from typing import Any

from ftrain.config.build import Parts

__all__ = ["watchers"]


def watchers(parts: Parts, folder: pathlib.Path) -> list[Any]:
    """In the order in which they look; the configuration's own are last."""
    return [*parts.callbacks]
