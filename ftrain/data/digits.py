"""Handwritten digits from scikit-learn, without a download.

Read next: `splits.py`, which holds out a part of a dataset.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

__all__ = ["digits"]


def digits() -> dict[str, Tensor]:
    """Return the 1,797 scans of handwritten digits that scikit-learn includes.

    Returns:
        `image`, float32 `(1797, 1, 8, 8)` from 0 to 1, and `label`, int64 `(1797,)` from 0 to 9.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> from ftrain import data
        >>> rest, held_out = data.split(data.digits(), 360)
        >>> rest["image"].shape
        torch.Size([1437, 1, 8, 8])

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise ImportError(
            "data.digits reads a data set of scikit-learn, which is not installed. Run "
            "`pip install 'ftrain[examples]'`, or `pip install scikit-learn`."
        ) from None
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return {"image": images, "label": torch.tensor(labels, dtype=torch.int64)}
