"""Operator that lets a graph raise an error for non-finite gradients (`nonfinite="raise"`)."""

from __future__ import annotations

import json

import torch

from ftrain.core.errors import NonFiniteError


@torch.library.custom_op(
    "ftrain::require_finite", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def require_finite(
    finite: torch.Tensor, weight: torch.Tensor, loss: torch.Tensor, step: torch.Tensor, names: str
) -> torch.Tensor:
    """Return True if all of `finite` (one bool per leaf) is True and the weight positive; else raise.

    Args:
        finite: `(leaves,)`.
        weight: 0-d, the total weight of the loss.
        loss: 0-d.
        step: 0-d.
        names: the leaves' names as a JSON list, because inductor writes the text into comments of its
            code, where it must not contain a line break.

    A step must select all its outputs by the result, so that no write precedes the check. This waits for
    the device.
    """
    if not bool(finite.all()):
        named = zip(json.loads(names), finite.tolist(), strict=True)
        bad = [name for name, ok in named if not ok]
        raise NonFiniteError(
            f"non-finite gradient at step {step.item()}: loss {loss.item():.6g}, "
            f"{len(bad)} of {finite.numel()} parameters, first {bad[0]!r}. The state is unchanged. "
            "Lower the learning rate, clip, or look in this batch for NaN, log(0) or a division by "
            "zero; or skip such steps with nonfinite='skip'."
        )
    if not weight > 0:
        raise NonFiniteError(
            f"the loss at step {step.item()} has total weight {weight.item():.6g}, so its mean is "
            "undefined. The state is unchanged. In Mean(total, weight) the weight is a number of "
            "samples or tokens: expected one above 0. Leave out batches that have none, or skip them "
            "with nonfinite='skip'."
        )
    return finite.all()


@require_finite.register_fake
def _(
    finite: torch.Tensor, weight: torch.Tensor, loss: torch.Tensor, step: torch.Tensor, names: str
) -> torch.Tensor:
    return finite.new_empty(())


@require_finite.register_vmap
def _(
    info: object,
    in_dims: tuple[int | None, ...],
    finite: torch.Tensor,
    weight: torch.Tensor,
    loss: torch.Tensor,
    step: torch.Tensor,
    names: str,
) -> tuple[torch.Tensor, int]:
    size = info.batch_size  # type: ignore[attr-defined]
    rows = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((finite, weight, loss, step), in_dims, strict=False)
    ]
    checked = [require_finite(*row, names) for row in zip(*rows, strict=True)]
    return torch.stack(checked), 0
