"""Tasks: losses, adapters of batches, a multilayer perceptron, and predictions as columns of a table.

    cross_entropy  binary_cross_entropy  mse    of a batch `{"x": ..., "y": ...}`, with a metric
    next_token                                  of windows of tokens
    functional                                  losses as functions of predictions and labels
    metrics                                     F1, perplexity, recall@k, ..., exact over any batches
    mlp(inputs, outputs)                        a multilayer perceptron
    predictions(outputs, target)                class names and probabilities, or numbers in their units
    call_model  find_output  find_labels        of batches and outputs of any form

A loss returns a `Mean`, so that means over any batches merge exactly; it goes into `make_steps`.
Configurations name them: `loss: mse`. Start reading at `losses.py`.
"""

from ftrain.tasks import functional as functional
from ftrain.tasks import metrics as metrics
from ftrain.tasks.adapters import (
    Prediction,
    call_model,
    find_labels,
    find_output,
    output_and_labels,
)
from ftrain.tasks.losses import binary_cross_entropy, cross_entropy, mse, next_token
from ftrain.tasks.models import mlp
from ftrain.tasks.predictions import predictions

__all__ = [
    "Prediction",
    "binary_cross_entropy",
    "call_model",
    "cross_entropy",
    "find_labels",
    "find_output",
    "mlp",
    "mse",
    "next_token",
    "output_and_labels",
    "predictions",
]
