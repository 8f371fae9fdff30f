"""Small residual network with BatchNorm.

Read next: `unet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """Residual network for small images (arXiv 1512.03385, section 4.2): `6 * blocks + 2` layers.

    For each width there is a stage of residual blocks; from the second stage on, the first block of a
    stage halves height and width. `forward` takes images `(n, channels, height, width)` of any size, and
    returns logits `(n, classes)`.

    Args:
        channels: number of channels of the images.
        classes: number of classes.
        widths: number of channels of each stage.
        blocks: number of residual blocks in a stage.

    Example:
        >>> import torch
        >>> ResNet(widths=(4, 8))(torch.zeros(2, 3, 9, 9)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.stem = _convolution(channels, widths[0])
        layers: list[nn.Module] = []
        for inputs, width in pairwise((widths[0], *widths)):
            stride = 2 if layers else 1
            layers.append(_Block(inputs, width, stride))
            layers += [_Block(width, width) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each image."""
        features = self.blocks(F.relu(self.stem(image)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _convolution(inputs, width, stride)
        self.second = _convolution(width, width)
        same = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same else _convolution(inputs, width, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        return F.relu(y + self.shortcut(x))


def _convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Return a convolution without bias, followed by BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
