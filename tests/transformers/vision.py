"""Vision architectures of the `transformers` library."""

from __future__ import annotations

import functools
from typing import Any

import torch

from tests.transformers.tiny import ROWS, Architecture, generator, ids

_TWO = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_PYRAMID = {
    **_TWO,
    "num_encoder_blocks": 2,
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
_WINDOWS = {
    "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 2,
}  # fmt: skip

#: By class: the width of an image, and values of the configuration.
_CLASSIFIERS: dict[str, tuple[int, dict[str, Any]]] = {
    "BeitForImageClassification": (16, {}),
    "BitForImageClassification": (32, {**_TWO, "embedding_size": 8, "num_groups": 1}),
    "CLIPForImageClassification": (16, {}),
    "ConvNextForImageClassification": (16, {**_TWO, "num_stages": 2, "patch_size": 4}),
    "ConvNextV2ForImageClassification": (16, {**_TWO, "num_stages": 2, "patch_size": 4}),
    "Data2VecVisionForImageClassification": (16, {}),
    "DeiTForImageClassification": (16, {}),
    "Dinov2ForImageClassification": (16, {}),
    "Dinov2WithRegistersForImageClassification": (16, {}),
    "DonutSwinForImageClassification": (16, _WINDOWS),
    "EfficientNetForImageClassification": (
        32,
        {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    ),
    "FocalNetForImageClassification": (
        16,
        {
            "embed_dim": 8,
            "depths": [1, 1],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
            "patch_size": 2,
        },
    ),
    "HGNetV2ForImageClassification": (
        32,
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 16],
            "embedding_size": 8,
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 8, 16, 16],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [8, 16, 16, 16],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [1, 1, 1, 1],
        },
    ),
    "HieraForImageClassification": (
        32,
        {
            "image_size": [32, 32],
            "embed_dim": 8,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 2],
            "num_query_pool": 2,
        },
    ),
    "IJepaForImageClassification": (16, {}),
    "LevitForImageClassification": (
        64,
        {
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "image_size": 64,
            "patch_size": 16,
            "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 2, 4, 2, 2]],
            "drop_path_rate": 0,
        },
    ),
    "MetaClip2ForImageClassification": (16, {}),
    "MobileNetV1ForImageClassification": (32, {"depth_multiplier": 0.25}),
    "MobileNetV2ForImageClassification": (32, {"depth_multiplier": 0.25}),
    "MobileViTForImageClassification": (
        32,
        {
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
            "patch_size": 2,
        },
    ),
    "MobileViTV2ForImageClassification": (64, {"width_multiplier": 0.25, "patch_size": 2}),
    "PoolFormerForImageClassification": (
        32,
        {
            **_TWO,
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
    ),
    "PvtForImageClassification": (
        32,
        {
            **_PYRAMID,
            "sequence_reduction_ratios": [2, 1],
            "patch_sizes": [4, 2],
            "image_size": 32,
        },
    ),
    "PvtV2ForImageClassification": (
        32,
        {**_PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "image_size": 32},
    ),
    "RegNetForImageClassification": (32, {**_TWO, "embedding_size": 8, "groups_width": 8}),
    "ResNetForImageClassification": (32, {**_TWO, "embedding_size": 8}),
    "SegformerForImageClassification": (
        32,
        {**_PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3]},
    ),
    "SiglipForImageClassification": (16, {}),
    "SwiftFormerForImageClassification": (
        32,
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    ),
    "SwinForImageClassification": (16, _WINDOWS),
    "Swinv2ForImageClassification": (16, _WINDOWS),
    "ViTForImageClassification": (16, {}),
    "ViTMSNForImageClassification": (16, {}),
}


def pixels(seed: int, width: int) -> torch.Tensor:
    return torch.randn(ROWS, 3, width, width, generator=generator(seed))


def images(width: int, seed: int) -> dict[str, Any]:
    return {"pixel_values": pixels(seed, width), "labels": torch.tensor([0, 1])}


def image_tokens(seed: int) -> dict[str, Any]:
    return {"input_ids": ids(seed), "labels": ids(seed)}


VISION = {
    name: Architecture(name, own, functools.partial(images, width))
    for name, (width, own) in _CLASSIFIERS.items()
} | {
    "ImageGPTForCausalImageModeling": Architecture(
        "ImageGPTForCausalImageModeling", {}, image_tokens
    )
}
