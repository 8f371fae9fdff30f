"""Convolution of images with one channel, in the memory layout that is fast on a CPU.

Inductor gives convolutions on a CPU channels-last inputs. For one channel, this layout has the strides
of a contiguous tensor, so that torch chooses the slow kernel, with a contiguous output. 8 images of 32 x
32 with 96 filters of 5 x 5 (the first layer of 16 LeNet-5) take 2.6 ms then, and 0.36 ms with strides
that show channels last (Zen 4, one thread).

Read next: `_pooling.py`, whose loops are vectorized over channels.
"""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["convolve_channels_last"]

aten = torch.ops.aten


@torch.library.custom_op("ftrain::convolution_of_one_channel", mutates_args=())
def convolution_of_one_channel(
    image: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """Return `torch.convolution` of `(n, 1, h, w)` images as a tensor in the channels-last layout."""
    out = torch.convolution(
        _shown(image), _shown(weight), None, stride, padding, dilation, False, [0, 0], 1
    )
    return out.contiguous(memory_format=torch.channels_last)


@convolution_of_one_channel.register_fake
def _(
    image: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    out = torch.convolution(image, weight, None, stride, padding, dilation, False, [0, 0], 1)
    return torch.empty_like(out, memory_format=torch.channels_last)


def convolve_channels_last(graph: fx.Graph) -> None:
    """Replace one-channel convolutions with 16 or more filters by `convolution_of_one_channel`."""
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        image, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
        x, w = image.meta["val"], weight.meta["val"]
        if (
            x.device.type == "cpu"
            and x.dtype == w.dtype == torch.float32
            and x.ndim == 4
            and x.shape[1] == 1
            and w.shape[0] >= 16
            and bias is None
            and not transposed
            and groups == 1
            and all(isinstance(size, int) for size in (*x.shape, *w.shape))
        ):
            node.target = torch.ops.ftrain.convolution_of_one_channel.default
            node.args = (image, weight, stride, padding, dilation)
            node.meta["val"] = node.meta["val"].contiguous(memory_format=torch.channels_last)


def _shown(x: torch.Tensor) -> torch.Tensor:
    """Return a one-channel tensor with the strides that make torch treat it as channels-last."""
    x = x.contiguous()
    _, _, height, width = x.shape
    return x.as_strided(x.shape, (height * width, 1, width, 1))
