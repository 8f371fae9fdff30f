"""Context in which the results of a step keep their autograd graph.

`ftrain.transforms.differentiable` enters it for one call. In this context, the functions of a step do
not change grad mode, accept states and batches that require gradients, and detach nothing.

Read next: `_skip_nonfinite.py`, which stops gradients at skipped steps.
"""

from __future__ import annotations

import threading

import torch

__all__ = ["keeping_graph", "keeps_graph", "kept", "may_keep_graph"]


class _Request(threading.local):
    is_made = False


_request = _Request()


class keeping_graph:
    """Context manager in which the results of this thread's steps keep their autograd graph."""

    def __enter__(self) -> None:
        self._outer, _request.is_made = _request.is_made, True

    def __exit__(self, *_: object) -> None:
        _request.is_made = self._outer


def may_keep_graph() -> bool:
    """Return True if a step may be differentiated: in `keeping_graph`, not in inference mode."""
    return _request.is_made and not torch.is_inference_mode_enabled()


def keeps_graph() -> bool:
    """Return True if results keep their autograd graph: inside of `keeping_graph`, with grad mode on."""
    return may_keep_graph() and torch.is_grad_enabled()


def kept(value: torch.Tensor) -> torch.Tensor:
    """Detach a tensor from its autograd graph; inside of `keeping_graph`, return it unchanged."""
    return value if keeps_graph() else value.detach()
