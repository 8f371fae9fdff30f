"""Losses as functions of tensors: predictions and labels in, `Mean(total, weight)` out.

    from ftrain.tasks import functional

    def loss_fn(model, batch):
        return functional.cross_entropy(model(batch["x"]), batch["y"], label_smoothing=0.1)

A `Mean` stores its total and its weight: merged over micro-batches and batches of different sizes, it is
the mean over all rows. Rows of weight 0 and ignored labels add nothing. If a batch has only such rows,
total and weight of the loss are 0, and its gradient is not NaN.

Start reading at `classification.py`. Losses that call the model themselves, for configurations, are in
`ftrain/tasks/losses.py`.
"""

from ftrain.tasks.functional.alignment import ctc
from ftrain.tasks.functional.classification import cross_entropy, cutmix, mixup, multi_label
from ftrain.tasks.functional.contrastive import info_nce, supervised_contrastive, triplet
from ftrain.tasks.functional.distillation import (
    byol,
    dino,
    distillation,
    feature_matching,
    soft_targets,
)
from ftrain.tasks.functional.language import causal_lm, chunked_causal_lm, masked_lm
from ftrain.tasks.functional.preference import dpo, sequence_log_probs
from ftrain.tasks.functional.regression import gaussian_nll, huber, mae, mse
from ftrain.tasks.functional.segmentation import dice, focal, lovasz, tversky

__all__ = [
    "byol",
    "causal_lm",
    "chunked_causal_lm",
    "cross_entropy",
    "ctc",
    "cutmix",
    "dice",
    "dino",
    "distillation",
    "dpo",
    "feature_matching",
    "focal",
    "gaussian_nll",
    "huber",
    "info_nce",
    "lovasz",
    "mae",
    "masked_lm",
    "mixup",
    "mse",
    "multi_label",
    "sequence_log_probs",
    "soft_targets",
    "supervised_contrastive",
    "triplet",
    "tversky",
]
