"""Metrics of tasks that merge exactly over micro-batches, ragged batches and ranks.

    from ftrain.tasks import metrics

    def eval_fn(model, batch):
        logits, labels = model(batch["x"]), batch["y"]
        found = {"f1": metrics.f1(logits, labels), "top5": metrics.top_k_accuracy(logits, labels, k=5)}
        return functional.cross_entropy(logits, labels), found

Each function returns counts and sums of a batch, which merge by addition. The attribute `value` is
computed from the merged counts, because the F1 score of a data set, for example, is not a mean of the
scores of its batches. None of the functions waits for the device, so eager, compiled and vmapped steps
can call them. `from_torchmetrics` makes such a function from a metric of torchmetrics.

Start reading at `rates.py`.
"""

from ftrain.tasks.metrics.calibration import CalibrationError, calibration_error
from ftrain.tasks.metrics.counts import (
    ClassF1,
    ConfusionMatrix,
    MacroF1,
    MeanIoU,
    MicroF1,
    WeightedF1,
    confusion_matrix,
    f1,
    mean_iou,
)
from ftrain.tasks.metrics.from_torchmetrics import from_torchmetrics
from ftrain.tasks.metrics.histogram import Histogram, histogram, log_edges
from ftrain.tasks.metrics.language import Perplexity, bits_per_byte, perplexity
from ftrain.tasks.metrics.rates import accuracy, mean_reciprocal_rank, recall_at_k, top_k_accuracy

__all__ = [
    "CalibrationError",
    "ClassF1",
    "ConfusionMatrix",
    "Histogram",
    "MacroF1",
    "MeanIoU",
    "MicroF1",
    "Perplexity",
    "WeightedF1",
    "accuracy",
    "bits_per_byte",
    "calibration_error",
    "confusion_matrix",
    "f1",
    "from_torchmetrics",
    "histogram",
    "log_edges",
    "mean_iou",
    "mean_reciprocal_rank",
    "perplexity",
    "recall_at_k",
    "top_k_accuracy",
]
