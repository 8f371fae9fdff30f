"""Modules of `torch.nn` that torch's database lacks, or holds without random draws, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Beside(NamedTuple):
    """Module factory and arguments for the module.

    Attributes:
        make: builds the module.
        args: floating tensors get the dtype of the test and require a gradient.
    """

    make: Callable[[], nn.Module]
    args: tuple[Any, ...]


def image(*shape: int) -> torch.Tensor:
    n = torch.Size(shape).numel()
    return torch.linspace(-2, 2, n).sin().reshape(shape)


MAPS, PAIR = image(2, 4, 6, 6), (image(3, 4), image(3, 4).flip(0))
SEQUENCE = image(2, 5, 4)
INDICES = torch.tensor([[0, 2], [1, 3]])


def pooled(dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
    values, indices = pool(image(2, 3, *[4] * dimensions))
    return values, indices


#: Draw in training mode.
DRAWING = {
    "AlphaDropout": Beside(nn.AlphaDropout, PAIR[:1]),
    "Dropout": Beside(nn.Dropout, PAIR[:1]),
    "Dropout1d": Beside(nn.Dropout1d, (SEQUENCE,)),
    "Dropout2d": Beside(nn.Dropout2d, (MAPS,)),
    "Dropout3d": Beside(nn.Dropout3d, (image(2, 3, 2, 2, 2),)),
    "FeatureAlphaDropout": Beside(nn.FeatureAlphaDropout, (MAPS,)),
    "RReLU": Beside(nn.RReLU, PAIR[:1]),
    "GRU with dropout": Beside(lambda: nn.GRU(4, 3, 2, dropout=0.5), (SEQUENCE,)),
    "LSTM with dropout": Beside(lambda: nn.LSTM(4, 3, 2, dropout=0.5), (SEQUENCE,)),
    "MultiheadAttention with dropout": Beside(
        lambda: nn.MultiheadAttention(4, 2, dropout=0.5), (SEQUENCE, SEQUENCE, SEQUENCE)
    ),
    "TransformerEncoderLayer with dropout": Beside(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5), (SEQUENCE,)
    ),
    "TransformerDecoder": Beside(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2), (SEQUENCE, SEQUENCE)
    ),
}
#: Draw in both modes.
POOLING = {
    "FractionalMaxPool2d without samples": Beside(
        lambda: nn.FractionalMaxPool2d(2, output_size=3), (MAPS,)
    ),
    "FractionalMaxPool3d without samples": Beside(
        lambda: nn.FractionalMaxPool3d(2, output_size=2), (image(2, 2, 4, 4, 4),)
    ),
}
OTHERS = {
    "AdaptiveLogSoftmaxWithLoss": Beside(
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 8, [2, 5]), (PAIR[0], torch.tensor([0, 3, 7]))
    ),
    "ChannelShuffle": Beside(lambda: nn.ChannelShuffle(2), (MAPS,)),
    "CosineSimilarity": Beside(nn.CosineSimilarity, PAIR),
    "CrossMapLRN2d": Beside(lambda: nn.CrossMapLRN2d(2), (MAPS,)),
    "EmbeddingBag": Beside(lambda: nn.EmbeddingBag(5, 3), (INDICES,)),
    "Flatten": Beside(nn.Flatten, (MAPS,)),
    "Fold": Beside(lambda: nn.Fold((4, 5), (2, 2)), (image(2, 12, 12),)),
    "Hardsigmoid": Beside(nn.Hardsigmoid, PAIR[:1]),
    "Identity": Beside(nn.Identity, PAIR[:1]),
    "MaxUnpool1d": Beside(lambda: nn.MaxUnpool1d(2), pooled(1)),
    "MaxUnpool2d": Beside(lambda: nn.MaxUnpool2d(2), pooled(2)),
    "MaxUnpool3d": Beside(lambda: nn.MaxUnpool3d(2), pooled(3)),
    "PairwiseDistance": Beside(nn.PairwiseDistance, PAIR),
    "PixelShuffle": Beside(lambda: nn.PixelShuffle(2), (MAPS,)),
    "PixelUnshuffle": Beside(lambda: nn.PixelUnshuffle(2), (MAPS,)),
    "Sequential": Beside(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)), PAIR[:1]),
    "TripletMarginLoss": Beside(nn.TripletMarginLoss, (*PAIR, PAIR[0] * 2)),
    "TripletMarginWithDistanceLoss": Beside(nn.TripletMarginWithDistanceLoss, (*PAIR, PAIR[0] * 2)),
    "Unflatten": Beside(lambda: nn.Unflatten(1, (2, 2)), PAIR[:1]),
    "Unfold": Beside(lambda: nn.Unfold(2), (MAPS,)),
    "Upsample": Beside(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (MAPS,)),
    "UpsamplingBilinear2d": Beside(lambda: nn.UpsamplingBilinear2d(scale_factor=2), (MAPS,)),
    "UpsamplingNearest2d": Beside(lambda: nn.UpsamplingNearest2d(scale_factor=2), (MAPS,)),
}
ALL = DRAWING | POOLING | OTHERS

LAZY = {
    "LazyBatchNorm1d": nn.LazyBatchNorm1d,
    "LazyBatchNorm2d": nn.LazyBatchNorm2d,
    "LazyBatchNorm3d": nn.LazyBatchNorm3d,
    "LazyInstanceNorm1d": nn.LazyInstanceNorm1d,
    "LazyInstanceNorm2d": nn.LazyInstanceNorm2d,
    "LazyInstanceNorm3d": nn.LazyInstanceNorm3d,
    "LazyLinear": lambda: nn.LazyLinear(3),
}
#: Classes without a forward pass of their own, and those of several processes.
NONE = {
    "Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "NLLLoss2d", "ParameterDict",
    "ParameterList", "RNNBase", "RNNCellBase", "SyncBatchNorm",
}  # fmt: skip
