"""Names of the metrics of an evaluation, from one call of the evaluation step before the run."""

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
from ftrain.loop._batches import Batches, Listed
from ftrain.loop._ensemble_members import members_of
from ftrain.loop._metric_columns import check_names, row_names

__all__ = ["eval_columns"]


def eval_columns(
    eval_step: Callable[..., Any] | None, state: Any, data: Batches | None
) -> tuple[str, ...] | None:
    """Return the names of an evaluation's metrics, from a trial on one batch; `None` if that fails.

    The step is called on the first batch, if reading that batch has no side effects: a loader or a list
    returns the same batches again. A compiled step is run on fake tensors, as in its own first call.
    An eager step is run on the real batch, because it might cache a value computed from a fake tensor
    (such as a mask) and use it in a later step.

    Raises:
        ValueError: a metric has a reserved name.
    """
    if eval_step is None or not isinstance(data, (Loader, Listed)):
        return None
    if isinstance(data, Loader):
        data = dataclasses.replace(data, workers=0)
    found, names = None, None
    # Ignore errors: the first evaluation raises those that are not specific to this trial.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch, _ = next(iter(data.batches(data.start(), epochs=1)))
        run = _on_fake_tensors if isinstance(eval_step, Compiled) else _keeping_generators
        found = run(eval_step, state, batch)
        names = tuple(row_names(found, members_of(state)))
    if isinstance(found, Mapping):
        # The property `value` of a custom metric may read a fake tensor, which raises RuntimeError;
        # the evaluation checks such metrics.
        with contextlib.suppress(RuntimeError):
            check_names(found, members_of(state))
    return names


#: Torch's logger of errors in operators on fake tensors (torch 2.0 and later).
_LOG = "torch._subclasses.fake_tensor"


def _on_fake_tensors(eval_step: Callable[..., Any], state: Any, batch: Any) -> Any:
    """Run the function of a compiled evaluation step on fake tensors, and return its metrics."""
    mode = _torch.fake_mode()

    def fake(leaf: Any) -> Any:
        return mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

    state, batch = tree.map(fake, (state, batch))
    with mode, _torch.silent(_LOG):  # torch logs the traceback of an error, which is ignored here
        return eval_step.__wrapped__(state, batch)  # type: ignore[attr-defined]  # functools'


def _keeping_generators(eval_step: Callable[..., Any], state: Any, batch: Any) -> Any:
    """Run an eager evaluation step, then restore the state of torch's global random generators."""
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    with torch.random.fork_rng([each for each in devices if each.type == "cuda"]):
        return eval_step(state, batch)
