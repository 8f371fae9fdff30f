"""Tasks: losses, a multilayer perceptron, and predictions as columns of a table.

    cross_entropy  binary_cross_entropy  mse    of a batch `{"x": ..., "y": ...}`, with a metric
    next_token                                  of windows of tokens
    mlp(inputs, outputs)                        a multilayer perceptron
    predictions(outputs, target)                class names and probabilities, or numbers in their units

A loss returns a `Mean`, so that means over any batches merge exactly; it goes into `make_steps`.
Configurations name them: `loss: mse`. Start reading at `losses.py`.
"""

from ftrain.tasks.losses import binary_cross_entropy, cross_entropy, mse, next_token
from ftrain.tasks.models import mlp
from ftrain.tasks.predictions import predictions

__all__ = ["binary_cross_entropy", "cross_entropy", "mlp", "mse", "next_token", "predictions"]
