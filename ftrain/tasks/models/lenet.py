"""LeNet-5, a small convolutional network.

Read next: `resnet.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling instead of tanh and average pooling.

    `forward` takes images `(n, channels, 32, 32)`, floating point, and returns logits `(n, classes)`.

    Args:
        channels: number of channels of the images.
        classes: number of classes.
        dropout: probability of dropout after each hidden linear layer.

    Example:
        >>> import torch
        >>> LeNet5()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, channels: int = 1, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(120, 84), nn.ReLU(), nn.Dropout(dropout), nn.Linear(84, classes),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each image."""
        if image.ndim != 4 or image.shape[2:] != (32, 32):
            raise ValueError(
                f"image: expected (n, channels, 32, 32), got {tuple(image.shape)}. Resize the images "
                "with torch.nn.functional.interpolate."
            )
        logits: Tensor = self.classifier(self.features(image))
        return logits
