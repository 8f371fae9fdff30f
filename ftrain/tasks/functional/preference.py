"""Preference loss (DPO), for pairs of a chosen and a rejected text.

Read next: `language.py`, for the loss of one text.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.tasks._weighted import classes_in_range, weighted

__all__ = ["dpo", "sequence_log_probs"]


def sequence_log_probs(logits: Tensor, labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Return the log-probability of each text: the sum over its tokens, in nats.

    Args:
        logits: `(n, length, vocabulary)`.
        labels: int64 `(n, length)`, not shifted; the logits at a place are compared with the next label.
        ignore_index: labels that are ignored, such as those of the prompt and of padding.

    Returns:
        `(n,)`.

    Example:
        >>> import torch
        >>> sequence_log_probs(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        tensor([-2.7726])
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits: expected (n, length, vocabulary) for labels (n, length), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}. Reshape the one that differs."
        )
    with classes_in_range(labels[:, 1:], logits.shape[-1], ignore_index):
        values = F.cross_entropy(
            logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            reduction="none",
            ignore_index=ignore_index,
        )
    return -values.reshape(len(labels), -1).sum(1)


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    row_weights: Tensor | None = None,
) -> Mean:
    r"""Return the mean DPO (direct preference optimization) loss of pairs (arXiv 2305.18290).

    $$-(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h), \quad h = \log
    \frac{\pi(y_w)}{\pi_0(y_w)} - \log \frac{\pi(y_l)}{\pi_0(y_l)}$$

    Args:
        chosen: `(n,)`: log-probabilities of the preferred texts, from `sequence_log_probs`.
        rejected: `(n,)`: log-probabilities of the rejected texts.
        reference_chosen: `(n,)`: log-probabilities of the preferred texts under the reference model; not
            differentiated.
        reference_rejected: `(n,)`: log-probabilities of the rejected texts under the reference model.
        beta: the strength of the pull towards the reference model.
        label_smoothing: the assumed share $\epsilon$ of wrong preferences.
        row_weights: `(n,)`.

    Example:
        >>> import torch
        >>> x = torch.zeros(2)
        >>> dpo(x, x, x, x).value
        tensor(0.6931)
    """
    shapes = {tuple(x.shape) for x in (chosen, rejected, reference_chosen, reference_rejected)}
    if len(shapes) != 1 or chosen.ndim != 1:
        raise ValueError(
            "chosen, rejected and the references: expected four tensors of one shape (n,), got shapes "
            f"{sorted(shapes)}. Sum the log-probabilities of each text: sequence_log_probs(logits, "
            "labels)."
        )
    margins = chosen - rejected - (reference_chosen - reference_rejected).detach()
    values = -(
        (1 - label_smoothing) * F.logsigmoid(beta * margins)
        + label_smoothing * F.logsigmoid(-beta * margins)
    )
    return weighted(values, row_weights)
