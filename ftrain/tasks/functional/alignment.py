"""Loss of sequences whose alignment with the input is unknown, such as speech.

Read next: `language.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import weighted

__all__ = ["ctc"]


def ctc(
    logits: Tensor,
    labels: Tensor,
    input_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    row_weights: Tensor | None = None,
) -> Mean:
    """Return the mean connectionist temporal classification loss of sequences, in nats.

    All sequences have equal weight, independently of their length; `torch.nn.functional.ctc_loss` with
    `reduction="mean"` divides the loss of each by its length. The loss can be neither compiled nor
    vmapped, because torch reads the lengths on the host.

    Args:
        logits: `(n, time, classes)`.
        labels: int64 `(n, length)`, padded with any values.
        input_lengths: int64 `(n,)`: the number of places of each row of `logits`.
        label_lengths: int64 `(n,)`: the number of labels of each row.
        blank: the class of the blank.
        zero_infinity: True to replace the loss of rows with more labels than places, which is infinite,
            by 0.
        row_weights: `(n,)`.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.long)
        >>> ctc(torch.zeros(1, 2, 4), one[None], 2 * one, one).value
        tensor(1.6740)
    """
    if (
        logits.ndim != 3
        or labels.ndim != 2
        or {tuple(x.shape) for x in (labels[:, 0], input_lengths, label_lengths)}
        != {(len(logits),)}
    ):
        raise ValueError(
            "logits: expected logits (n, time, classes), labels (n, length) and lengths (n,), got "
            f"{tuple(logits.shape)}, {tuple(labels.shape)}, {tuple(input_lengths.shape)} and "
            f"{tuple(label_lengths.shape)}. Pad labels to one length."
        )
    values = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        labels,
        input_lengths,
        label_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    return weighted(values, row_weights)
