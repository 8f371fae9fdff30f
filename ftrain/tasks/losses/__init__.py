"""Losses `loss_fn(model, batch, **arguments)`, for `make_steps` and, by name, for configurations.

Each loss calls the model and returns a `Mean`, in most cases with metrics, so that means over any
batches merge exactly. A batch has named entries, `x` and `y` by default, or is a tuple `(x, y)`. The
entry `weight` `(n,)` holds weights of rows; a row of weight 0, such as padding, adds nothing.

Start reading at `rows.py`. The losses as functions of tensors are in `ftrain.tasks.functional`.
"""

from ftrain.tasks.losses.embeddings import (
    cached_info_nce,
    info_nce,
    supervised_contrastive,
    triplet,
)
from ftrain.tasks.losses.images import dice, focal, lovasz, tversky
from ftrain.tasks.losses.rows import (
    binary_cross_entropy,
    cross_entropy,
    gaussian_nll,
    huber,
    mae,
    mse,
    multi_label,
)
from ftrain.tasks.losses.text import causal_lm, ctc, dpo, masked_lm, next_token

__all__ = [
    "binary_cross_entropy",
    "cached_info_nce",
    "causal_lm",
    "cross_entropy",
    "ctc",
    "dice",
    "dpo",
    "focal",
    "gaussian_nll",
    "huber",
    "info_nce",
    "lovasz",
    "mae",
    "masked_lm",
    "mse",
    "multi_label",
    "next_token",
    "supervised_contrastive",
    "triplet",
    "tversky",
]
