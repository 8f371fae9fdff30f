"""Losses for language models, for preferences between texts, and for unaligned sequences (CTC).

Read next: `images.py`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ftrain.core._words import a_or_an
from ftrain.core.metrics import Mean
from ftrain.core.padded import unpadded
from ftrain.tasks import functional, metrics
from ftrain.tasks._numpy_dtypes import as_classes
from ftrain.tasks._weighted import classes_in_range, places_in, weighted
from ftrain.tasks.adapters import Prediction, call_model, find_output
from ftrain.tasks.losses._batches import (
    Loss,
    entry,
    prediction,
    prediction_of_classes,
    row_weights,
    without_padding,
)

__all__ = ["causal_lm", "ctc", "dpo", "masked_lm", "next_token"]


def next_token(model: nn.Module, batch: Any, *, ignore: int = -100) -> Mean:
    """Return the next-token cross-entropy, in nats, over all tokens of a window but the first.

    Args:
        model: `(n, length) -> logits (n, length, vocabulary)`.
        batch: windows, int64 `(n, length + 1)`.
        ignore: tokens that are not predicted, such as padding.
    """
    weights, batch = row_weights(batch), unpadded(batch)
    if not isinstance(batch, Tensor) or batch.ndim != 2:
        got = tuple(batch.shape) if isinstance(batch, Tensor) else a_or_an(type(batch).__name__)
        raise TypeError(
            f"next_token: expected windows of tokens, int64 (n, length + 1), as the batch, got {got}. "
            "Return tensors from the data function, or write `loss: causal_lm` for named entries."
        )
    logits = find_output(model(batch[:, :-1]))
    targets = without_padding(as_classes(batch)[:, 1:], weights, ignore)
    with places_in(batch, ignore), classes_in_range(targets, logits.shape[-1], ignore):
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=ignore, reduction="sum"
        )
    return Mean(total, (targets != ignore).sum())


def causal_lm(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """Return the cross-entropy of each token given those before it, in nats, and the perplexity.

    Args:
        model: gives logits `(n, length, vocabulary)`, or a Hugging Face `ModelOutput` with them.
        batch: entries named as the model's arguments, and labels, int64 `(n, length)`, not shifted; or a
            tensor of tokens, which are the labels as well. A `weight` `(n,)` of rows is taken into
            account.
        input: the entry that the model takes as its only argument; null: chosen by `call_model`.
        target: the name of the labels; null: found by `find_labels`.
        ignore_index: labels that are ignored, such as padding.
        label_smoothing: the share of each label that is spread over the vocabulary.
        z_loss: the factor of the squared logarithm of the sum of the exponentials of the logits.
    """
    logits, labels = _tokens(model, batch, input, target)
    loss = functional.causal_lm(
        logits,
        labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        row_weights=row_weights(batch),
    )
    plain = loss
    if label_smoothing or z_loss:
        plain = functional.causal_lm(
            logits.detach(), labels, ignore_index=ignore_index, row_weights=row_weights(batch)
        )
    return loss, {"perplexity": metrics.perplexity(plain)}


def masked_lm(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    ignore_index: int = -100,
) -> Loss:
    """Return the cross-entropy of the tokens that were masked, in nats, and their accuracy.

    Args:
        model: gives logits `(n, length, vocabulary)`, or a Hugging Face `ModelOutput` with them.
        batch: entries named as the model's arguments, and labels, int64 `(n, length)`: the token at each
            masked place, and `ignore_index` elsewhere. A `weight` `(n,)` of rows is taken into account.
        input: the entry that the model takes as its only argument; null: chosen by `call_model`.
        target: the name of the labels; null: found by `find_labels`.
        ignore_index: labels that are ignored.
    """
    logits, labels, _ = prediction_of_classes(model, batch, input, target)
    weights = row_weights(batch)
    loss = functional.masked_lm(logits, labels, ignore_index=ignore_index, row_weights=weights)
    accuracy = metrics.accuracy(logits, labels, ignore_index=ignore_index, row_weights=weights)
    return loss, {"accuracy": accuracy}


def dpo(
    model: nn.Module,
    batch: Any,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Loss:
    """Return the DPO loss of pairs of texts, and the share of pairs whose chosen text is preferred.

    Args:
        model: `(n, length) -> logits (n, length, vocabulary)`; causal, so that padding on the right has
            no effect.
        batch: `chosen` and `rejected`, int64 `(n, length)`; `chosen_labels` and `rejected_labels`, which
            are the same except for `ignore_index` at prompt and padding; `reference_chosen` and
            `reference_rejected`, `(n,)`, the log-probabilities under the reference model
            (`functional.sequence_log_probs`). A `weight` `(n,)` of rows is taken into account.
        beta: the strength of the pull towards the reference model.
        label_smoothing: the assumed share of wrong preferences.
        ignore_index: labels that are ignored.
    """

    def log_probs(name: str) -> Tensor:
        logits = find_output(model(entry(batch, name)))
        labels = as_classes(entry(batch, f"{name}_labels"))
        return functional.sequence_log_probs(logits, labels, ignore_index=ignore_index)

    chosen, rejected = log_probs("chosen"), log_probs("rejected")
    references = [entry(batch, name) for name in ("reference_chosen", "reference_rejected")]
    weights = row_weights(batch)
    loss = functional.dpo(
        chosen,
        rejected,
        *references,
        beta=beta,
        label_smoothing=label_smoothing,
        row_weights=weights,
    )
    margins = (chosen - rejected).detach() - (references[0] - references[1])
    found = {
        "accuracy": weighted(margins > 0, weights),
        "margin": weighted(beta * margins, weights),
    }
    return loss, found


def ctc(
    model: nn.Module,
    batch: Any,
    *,
    input: str | int = "x",
    target: str | int = "y",
    input_lengths: str | int = "input_lengths",
    label_lengths: str | int = "label_lengths",
    blank: int = 0,
    zero_infinity: bool = False,
) -> Mean:
    """Return the connectionist temporal classification loss of sequences, in nats.

    Args:
        model: gives logits `(n, time, classes)`.
        batch: named entries; the targets are int64 `(n, length)`. A `weight` `(n,)` of rows is taken
            into account.
        input: the name of the model's input in the batch.
        target: the name of the labels.
        input_lengths: the name of the entry with the number of places in each row of logits, int64
            `(n,)`.
        label_lengths: the name of the entry with the number of labels of each row, int64 `(n,)`.
        blank: the class of the blank.
        zero_infinity: True to replace the infinite loss of sequences with more labels than places by 0.
    """
    logits, labels, _ = prediction(model, batch, input, target)
    return functional.ctc(
        logits,
        labels,
        entry(batch, input_lengths, "input_lengths"),
        entry(batch, label_lengths, "label_lengths"),
        blank=blank,
        zero_infinity=zero_infinity,
        row_weights=row_weights(batch),
    )


def _tokens(
    model: nn.Module, batch: Any, input: str | int | None, target: str | int | None
) -> tuple[Tensor, Tensor]:
    """Return logits and labels; if the batch is one tensor of tokens, it is also the labels."""
    batch = unpadded(batch)
    if isinstance(batch, Tensor):
        return find_output(call_model(model, batch)), as_classes(batch)
    found: Prediction = prediction_of_classes(model, batch, input, target)
    return found.output, found.labels
