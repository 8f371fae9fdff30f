"""Small U-Net, for segmentation: one class per pixel.

Read next: `gpt.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["UNet"]


class UNet(nn.Module):
    """U-Net (arXiv 1505.04597) with BatchNorm, and zero padding, so that outputs have the inputs' size.

    `forward` takes images `(n, channels, height, width)` whose height and width are multiples of
    `2 ** depth`, and returns logits `(n, classes, height, width)`.

    Args:
        channels: number of channels of the images.
        classes: number of classes of a pixel.
        width: number of channels at full size, doubled at each halving of the size.
        depth: number of halvings.

    Example:
        >>> UNet(classes=3, width=4)(torch.zeros(2, 1, 8, 12)).shape
        torch.Size([2, 3, 8, 12])
    """

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 16, depth: int = 2
    ) -> None:
        super().__init__()
        self.depth = depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise((channels, *widths)))
        self.pool = nn.MaxPool2d(2)
        upward = list(pairwise(reversed(widths)))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in upward)
        self.up = nn.ModuleList(_double(2 * b, b) for _, b in upward)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of each pixel."""
        step = 2**self.depth
        if image.ndim != 4 or image.shape[2] % step or image.shape[3] % step:
            raise ValueError(
                f"image: expected (n, channels, height, width) with multiples of {step} as height and "
                f"width, got {tuple(image.shape)}. Pad or crop the images, or choose a smaller depth."
            )
        skipped, x = [], image
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skipped.append(x)
        skipped.pop()  # the last one is `x` itself
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([skipped.pop(), grow(x)], 1))
        logits: Tensor = self.head(x)
        return logits


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip
