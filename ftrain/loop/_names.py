"""The names of an evaluation's metrics before there is one: its step, run on tensors without values."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core.compile import Compiled
from ftrain.core.metrics import Metrics
from ftrain.data import Loader
from ftrain.loop._data import Batches, Listed

__all__ = ["eval_metrics"]


def eval_metrics(
    eval_step: Callable[..., Any] | None, state: Any, data: Batches | None
) -> tuple[str, ...] | None:
    """Names, in order; `None` where they cannot be known before the first evaluation.

    They are where the step is compiled (then it is run on such tensors anyway) and the first batch can
    be looked at without a trace: of a loader or a list, which give the same batches again.
    """
    if not isinstance(eval_step, Compiled) or not isinstance(data, (Loader, Listed)):
        return None
    if isinstance(data, Loader):
        data = dataclasses.replace(data, workers=0)
    # What a step of one's own does with such tensors nobody knows: then the first evaluation tells.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch, _ = next(iter(data.batches(data.start(), epochs=1)))
        mode = _torch.fake_mode()

        def without_values(leaf: Any) -> Any:
            return mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

        state, batch = tree.map(without_values, (state, batch))
        with mode:
            found = eval_step.__wrapped__(state, batch)  # type: ignore[attr-defined]  # functools'
        entries = found.entries if isinstance(found, Metrics) else found
        if isinstance(entries, Mapping):
            return tuple(map(str, entries))
    return None
