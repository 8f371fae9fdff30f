"""Learning rates that a step reports as metrics, from the optimizer's state."""

from __future__ import annotations

from typing import Any

from ftrain.core import tree
from ftrain.core.metrics import Last

__all__ = ["learning_rates"]


def learning_rates(opt_state: Any) -> dict[str, Last]:
    """Return the values of all `learning_rate` fields in an optimizer's state, as metrics."""
    rates = {
        path: rate
        for path, rate in tree.find(opt_state, "learning_rate").items()
        if path.endswith(".learning_rate")  # a field, and not a parameter of this name
    }
    several = len(rates) > 1
    return {
        f"learning_rate{path if several else ''}": Last(rate.clone())
        for path, rate in rates.items()
    }
