"""Convolution of images with one channel, in the memory layout that is fast on a CPU.

Inductor gives convolutions on a CPU channels-last inputs. For one channel, this layout has the strides
of a contiguous tensor, so that torch chooses the slow kernel, with a contiguous output. 8 images of 32 x
32 with 96 filters of 5 x 5 (the first layer of 16 LeNet-5) take 2.6 ms then, and 0.36 ms with strides
that show channels last (Zen 4, one thread). The gradient of the filters takes 1.1 ms, of which 0.7 are a
copy of the outputs' gradient to the contiguous layout, and 0.4 ms with these strides.

Read next: `_pooling.py`, whose loops are vectorized over channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


@torch.library.custom_op("ftrain::filters_of_one_channel", mutates_args=())
def filters_of_one_channel(
    grad: torch.Tensor,
    image: torch.Tensor,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """Return the gradient of the filters, of `shape`, for the gradient of the channels-last outputs."""
    filters = _shown(grad.new_empty(shape))  # only its shape and strides are read
    arguments = (stride, padding, dilation, False, [0, 0], 1, [False, True, False])
    out: torch.Tensor
    _, out, _ = aten.convolution_backward(grad, _shown(image), filters, None, *arguments)
    return out.contiguous().as_strided(shape, torch.empty(shape, device="meta").stride())


@filters_of_one_channel.register_fake
def _(
    grad: torch.Tensor,
    image: torch.Tensor,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    return grad.new_empty(shape)


def convolve_channels_last(graph: fx.Graph) -> None:
    """Replace one-channel convolutions with 16 or more filters, and the gradients of their filters."""
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        image, weight, bias, stride, padding, dilation, *rest = node.args
        if bias is None and _is_replaced(image, weight, rest):
            node.target = torch.ops.ftrain.convolution_of_one_channel.default
            node.args = (image, weight, stride, padding, dilation)
            node.meta["val"] = node.meta["val"].contiguous(memory_format=torch.channels_last)
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        grad, image, weight, _, stride, padding, dilation, *rest, mask = node.args
        is_of_filters = [bool(each) for each in mask] == [False, True, False]
        if is_of_filters and _is_replaced(image, weight, rest):
            _take_gradient(graph, node, grad, (stride, padding, dilation))


def _take_gradient(graph: fx.Graph, node: fx.Node, grad: fx.Node, arguments: Sequence[Any]) -> None:
    """Replace a gradient of filters; inductor writes that of the outputs in the channels-last layout."""
    image: Any = node.args[1]
    weight: Any = node.args[2]
    shape = [*weight.meta["val"].shape]
    with graph.inserting_before(node):
        last = graph.call_function(
            aten.clone.default, (grad,), {"memory_format": torch.channels_last}
        )
        last.meta["val"] = torch.empty_like(grad.meta["val"], memory_format=torch.channels_last)
        new = graph.call_function(
            torch.ops.ftrain.filters_of_one_channel.default, (last, image, shape, *arguments)
        )
        new.meta["val"] = weight.meta["val"].new_empty(shape)
    for part in list(node.users):
        if part.args[1] == 1:
            part.replace_all_uses_with(new)
        graph.erase_node(part)
    graph.erase_node(node)


def _is_replaced(image: fx.Node, weight: fx.Node, rest: Sequence[Any]) -> bool:
    """Return True for images of one channel and 16 or more filters in float32 on a CPU.

    Args:
        image: the node of the images.
        weight: the node of the filters.
        rest: the last arguments of a convolution: transposed, padding of the outputs, groups.
    """
    x, w = image.meta["val"], weight.meta["val"]
    transposed, _, groups = rest
    return (
        x.device.type == "cpu"
        and x.dtype == w.dtype == torch.float32
        and x.ndim == 4
        and x.shape[1] == 1
        and w.shape[0] >= 16
        and not transposed
        and groups == 1
        and all(isinstance(size, int) for size in (*x.shape, *w.shape))
    )


def _shown(x: torch.Tensor) -> torch.Tensor:
    """Return a one-channel tensor with the strides that make torch treat it as channels-last."""
    x = x.contiguous()
    _, _, height, width = x.shape
    return x.as_strided(x.shape, (height * width, 1, width, 1))
