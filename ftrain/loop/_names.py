"""The names of an evaluation's metrics before there is one: its step, run on its first batch."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core.compile import Compiled
from ftrain.data import Loader
from ftrain.loop._columns import check_names, row_names
from ftrain.loop._data import Batches, Listed
from ftrain.loop._members import members_of

__all__ = ["eval_metrics"]


def eval_metrics(
    eval_step: Callable[..., Any] | None, state: Any, data: Batches | None
) -> tuple[str, ...] | None:
    """Return the columns of an evaluation; `None` where they cannot be known before the first one.

    They can be where the first batch can be looked at without a trace: of a loader or a list, which give
    the same batches again. A compiled step is run on tensors without values, as its first call does
    anyway. One that is not is run as it is, one batch long: of a tensor without value it might keep
    something (a mask in a cache) that a later step would find.

    Raises:
        ValueError: a metric has a name that the log needs for itself.
    """
    if eval_step is None or not isinstance(data, (Loader, Listed)):
        return None
    if isinstance(data, Loader):
        data = dataclasses.replace(data, workers=0)
    found, names = None, None
    # What fails here fails in the first evaluation too, or had its reasons: that one tells.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch, _ = next(iter(data.batches(data.start(), epochs=1)))
        run = _without_values if isinstance(eval_step, Compiled) else _unnoticed
        found = run(eval_step, state, batch)
        names = tuple(row_names(found, members_of(state)))
    if isinstance(found, Mapping):
        # A metric's own `value` may read its tensors, which have none here: the evaluation checks it.
        with contextlib.suppress(RuntimeError):
            check_names(found, members_of(state))
    return names


def _without_values(eval_step: Callable[..., Any], state: Any, batch: Any) -> Any:
    mode = _torch.fake_mode()

    def fake(leaf: Any) -> Any:
        return mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

    state, batch = tree.map(fake, (state, batch))
    with mode:
        return eval_step.__wrapped__(state, batch)  # type: ignore[attr-defined]  # functools'


def _unnoticed(eval_step: Callable[..., Any], state: Any, batch: Any) -> Any:
    """A step of one's own may draw from torch's generators, which training goes on with."""
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    with torch.random.fork_rng([each for each in devices if each.type == "cuda"]):
        return eval_step(state, batch)
