"""BatchNorm's running statistics, computed from parts of a batch as if one process had run them all.

A part with `k` updates turns a statistic `r` into `d * r + z`, where `d = (1 - momentum)**k` does not
depend on the data. Each part starts from the same `r` and gives its own `z`, and these maps are composed
in order. With `momentum=None` the statistic is the mean over all updates so far, to whose sum each part
adds its own updates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ftrain.core._torch_tensors import BatchNorm
from ftrain.core._words import a_or_an

__all__ = ["BufferChoice", "RunningStatistics"]

BufferChoice = Literal["mean", "own"]
_COUNT = "num_batches_tracked"
_CHOICES = ("mean", "own")


@dataclass(frozen=True)
class _Norm:
    """Momentum of a BatchNorm layer, and the name of the buffer that counts its updates."""

    momentum: float | None
    count: str


class RunningStatistics:
    """Rule that computes a model's buffers after a batch from its buffers after each part of it.

    Args:
        module: the model.
        choices: for buffers other than BatchNorm's, by name: `"mean"` or `"own"`.

    Raises:
        ValueError: the model has a SyncBatchNorm; a choice is unknown, or of an unknown buffer.
    """

    def __init__(self, module: nn.Module, choices: Mapping[str, BufferChoice]) -> None:
        self._choices = dict(choices)
        self._norms: dict[str, _Norm] = {}
        for path, each in module.named_modules():
            if isinstance(each, nn.SyncBatchNorm):
                raise ValueError(
                    f"model: expected layers that compute statistics of one micro-batch, got the "
                    f"SyncBatchNorm {path!r}, which sends tensors outside of the graph. Use BatchNorm: "
                    "its running statistics are combined over ranks."
                )
            is_stock = isinstance(each, BatchNorm) and type(each).forward is BatchNorm.forward
            if is_stock and each.num_batches_tracked is not None:
                prefix = f"{path}." if path else ""
                norm = _Norm(each.momentum, f"{prefix}{_COUNT}")
                for name in ("running_mean", "running_var"):
                    self._norms[f"{prefix}{name}"] = norm
        counts = {norm.count for norm in self._norms.values()}
        names = {name for name, _ in module.named_buffers()}
        for name, choice in self._choices.items():
            if name not in names - counts - self._norms.keys():
                raise ValueError(
                    "buffers: expected names of the model's buffers other than BatchNorm's, got "
                    f"{name!r}. Remove it."
                )
            if choice not in _CHOICES:
                raise ValueError(
                    f"buffers[{name!r}]: expected one of {_CHOICES}, got {choice!r}. Pass one of them."
                )
        self._counts = counts
        self._kinds = {
            f"{path}.{name}" if path else name: type(each).__name__
            for path, each in module.named_modules()
            for name, _ in each.named_buffers(recurse=False)
        }

    def sent(self, written: Collection[str]) -> list[str]:
        """Return the names of the buffers that each rank must send, so that they can be combined.

        Args:
            written: the buffers that the model writes to.

        Raises:
            ValueError: the model writes to a buffer that no rule covers; the message names it.
        """
        own = {name for name, choice in self._choices.items() if choice == "own"}
        known = self._norms.keys() | self._counts | self._choices.keys()
        for name in sorted(written):
            if name not in known:
                raise ValueError(
                    f"buffers: expected a rule for the buffer {name!r} of {a_or_an(self._kinds[name])}, "
                    "because the model writes to it in training and its values may differ between "
                    f"ranks, got none. Write buffers={{{name!r}: 'mean'}} for the mean over ranks, or "
                    "'own' to keep the value of each rank, which must not depend on the batch."
                )
        return sorted(set(written) - own)

    def combined(
        self, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], parts: int
    ) -> dict[str, torch.Tensor]:
        """Compute the buffers after the whole batch from the buffers after each part of it.

        Args:
            before: the buffers before each part.
            after: the buffers named by `sent` after each part, stacked along a leading axis in order.
            parts: the number of parts.
        """
        found: dict[str, torch.Tensor] = {}
        for name, stacked in after.items():
            old = before[name]
            if name in self._counts:
                found[name] = old + (stacked - old).sum(0, dtype=old.dtype)
            elif name in self._norms:
                norm = self._norms[name]
                counts = (before[norm.count], after[norm.count])
                combine = _average if norm.momentum is None else _decayed
                found[name] = combine(old, stacked, counts, norm.momentum, parts)
            else:
                found[name] = stacked.to(torch.promote_types(old.dtype, torch.float32)).mean(0)
                found[name] = found[name].to(old.dtype)
        return found


def _decayed(
    old: torch.Tensor,
    stacked: torch.Tensor,
    counts: tuple[torch.Tensor, torch.Tensor],
    momentum: float | None,
    parts: int,
) -> torch.Tensor:
    """Return a running statistic `r` after one update `r = d * r + z` for each part, in order."""
    assert momentum is not None
    wide = torch.promote_types(old.dtype, torch.float32)
    updates = (counts[1] - counts[0]).to(wide)
    decay = torch.full((), 1 - momentum, dtype=wide, device=old.device) ** updates
    start = old.to(wide)
    now = stacked[0].to(wide)  # the first part started from the value before the batch
    for i in range(1, parts):
        now = decay[i] * (now - start) + stacked[i].to(wide)
    return now.to(old.dtype)


def _average(
    old: torch.Tensor,
    stacked: torch.Tensor,
    counts: tuple[torch.Tensor, torch.Tensor],
    momentum: float | None,
    parts: int,
) -> torch.Tensor:
    """Return a statistic that is the mean over all updates, given its value after each part."""
    wide = torch.promote_types(old.dtype, torch.float32)
    before, after = (count.to(wide) for count in counts)
    start, total = old.to(wide) * before, old.to(wide) * before
    for i in range(parts):
        total = total + (stacked[i].to(wide) * after[i] - start)
    updates = before + (after - before).sum()
    return torch.where(updates > 0, total / updates, old.to(wide)).to(old.dtype)
