"""Tasks of texts: language modeling, and classification with one class per text.

Read next: `embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from ftrain.core.metrics import Mean
from ftrain.core.padded import unpadded
from ftrain.tasks import functional, losses, metrics
from ftrain.tasks._numpy_dtypes import as_classes
from ftrain.tasks.adapters import call_model, find_output
from ftrain.tasks.losses._batches import Loss, prediction_of_classes, row_weights, without_padding
from ftrain.tasks.recipes._classes import classified
from ftrain.tasks.recipes.task import Task

__all__ = ["language_modeling", "text_classification"]


def language_modeling(
    *,
    objective: Literal["causal", "masked"] = "causal",
    input: str | int | None = None,
    target: str | int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Task:
    """Return the task of language modeling: predicting the next tokens, or masked ones.

    The loss is `functional.causal_lm` or `functional.masked_lm`. Evaluation leaves out smoothing and the
    z-loss.

    A batch has named entries and labels, int64 `(n, length)`, which are not shifted, as for Hugging
    Face's models. Or it is a tensor of windows, int64 `(n, length + 1)`, as `data: text` returns them:
    the model gets all tokens except the last, and predicts all except the first.

    Args:
        objective: "causal": predict each token given those before it; "masked": predict the tokens at
            places whose label is not `ignore_index`.
        input: the entry of a batch that the model takes as its only argument; `None`: chosen by
            `call_model`.
        target: the entry with the labels; `None`: found by `find_labels`.
        ignore_index: labels that are ignored, such as padding.
        label_smoothing: the share of each label that is spread over the vocabulary.
        z_loss: the factor of the squared logarithm of the sum of the exponentials of the logits.

    Returns:
        A `Task` with the metrics `perplexity` and `accuracy`.

    Raises:
        ValueError: the objective is unknown.

    Example:
        >>> language_modeling(z_loss=1e-4).metrics
        ('perplexity', 'accuracy')
    """
    if objective not in ("causal", "masked"):
        raise ValueError(
            f"objective: expected 'causal' or 'masked', got {objective!r}. Write 'causal'."
        )

    def predicted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits, the labels at the same positions, and the weights of rows or labels."""
        weights, batch = row_weights(batch), unpadded(batch)
        if isinstance(batch, Tensor) and objective == "causal":
            return find_output(call_model(model, batch[:, :-1])), as_classes(batch)[:, 1:], weights
        logits, labels, _ = prediction_of_classes(model, batch, input, target)
        if objective == "masked":
            return logits, labels, weights
        if weights is not None and weights.ndim > 1:
            weights = weights[:, 1:]
        return logits[:, :-1], labels[:, 1:], weights

    def loss_of(logits: Tensor, labels: Tensor, weights: Tensor | None, **options: float) -> Mean:
        return functional.masked_lm(
            logits, labels, ignore_index=ignore_index, row_weights=weights, **options
        )

    def loss_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, weights = predicted(model, batch)
        loss = plain = loss_of(
            logits, labels, weights, label_smoothing=label_smoothing, z_loss=z_loss
        )
        if label_smoothing or z_loss:
            plain = loss_of(logits.detach(), labels, weights)
        return loss, {"perplexity": metrics.perplexity(plain)}

    def eval_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, weights = predicted(model, batch)
        loss = loss_of(logits, labels, weights)
        accuracy = metrics.accuracy(logits, labels, ignore_index=ignore_index, row_weights=weights)
        return loss, {"perplexity": metrics.perplexity(loss), "accuracy": accuracy}

    return Task(loss_fn, eval_fn, ("perplexity", "accuracy"))


def text_classification(
    *,
    input: str | int | None = None,
    target: str | int | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Task:
    """Return the task of text classification, with one class per text.

    The loss is `losses.cross_entropy`. Evaluation leaves out class weights and smoothing.

    Args:
        input: the entry of a batch that the model takes as its only argument; `None`: entries with the
            names of the model's arguments, such as `input_ids` and `attention_mask` (see `call_model`).
        target: the entry with the classes, int64 `(n,)`; `None`: found by `find_labels`.
        class_weights: the weight of each class in the mean.
        label_smoothing: the share of each label that is spread over all classes.
        ignore_index: a class that is ignored.

    Returns:
        A `Task` with the metrics `accuracy` and `f1` (the mean over classes).

    Example:
        >>> text_classification().metrics
        ('accuracy', 'f1')
    """

    def loss_fn(model: nn.Module, batch: Any) -> Loss:
        return losses.cross_entropy(
            model,
            batch,
            input=input,
            target=target,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )

    def eval_fn(model: nn.Module, batch: Any) -> Loss:
        logits, labels, loss, accuracy = classified(model, batch, input, target, ignore_index)
        counted = without_padding(labels, row_weights(batch), ignore_index)
        f1 = metrics.f1(logits, counted, ignore_index=ignore_index)
        return loss, {"accuracy": accuracy, "f1": f1}

    return Task(loss_fn, eval_fn, ("accuracy", "f1"))
