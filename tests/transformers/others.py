"""Architectures for time series, video, detection, segmentation and other tasks."""

from __future__ import annotations

from typing import Any

import torch

from tests.transformers.tiny import ROWS, Architecture, generator, ids, tokens
from tests.transformers.vision import pixels


def series(seed: int) -> dict[str, Any]:
    g = generator(seed)
    return {
        "past_values": torch.randn(ROWS, 20, generator=g),
        "past_time_features": torch.randn(ROWS, 20, 1, generator=g),
        "past_observed_mask": torch.ones(ROWS, 20),
        "future_values": torch.randn(ROWS, 4, generator=g),
        "future_time_features": torch.randn(ROWS, 4, 1, generator=g),
    }


def channels(seed: int) -> dict[str, Any]:
    g = generator(seed)
    past, future = torch.randn(ROWS, 16, 2, generator=g), torch.randn(ROWS, 4, 2, generator=g)
    return {"past_values": past, "future_values": future}


def videos(seed: int) -> dict[str, Any]:
    frames = torch.randn(ROWS, 2, 3, 16, 16, generator=generator(seed))
    return {"pixel_values": frames, "labels": torch.tensor([0, 1])}


def sentences(seed: int) -> dict[str, Any]:
    return {"input_ids": ids(seed), "labels": torch.tensor([0, 1])}


def pairs_of_sentences(seed: int) -> dict[str, Any]:
    return {**tokens(seed), "next_sentence_label": torch.tensor([0, 1])}


def images(seed: int) -> dict[str, Any]:
    return {"pixel_values": pixels(seed, 16)}


def masked_images(seed: int) -> dict[str, Any]:
    """Return images and numbers whose order decides which patches are masked."""
    return {**images(seed), "noise": torch.rand(ROWS, 4, generator=generator(seed))}


def depths(seed: int) -> dict[str, Any]:
    depth = 1 + torch.rand(ROWS, 32, 32, generator=generator(seed))
    return {"pixel_values": pixels(seed, 32), "labels": depth}


def segments(seed: int) -> dict[str, Any]:
    labels = torch.randint(0, 2, (ROWS, 32, 32), generator=generator(seed))
    return {"pixel_values": pixels(seed, 32), "labels": labels}


def boxes(seed: int) -> dict[str, Any]:
    g = generator(seed)
    targets = [
        {"class_labels": torch.tensor([0, 1]), "boxes": torch.rand(2, 4, generator=g)}
        for _ in range(ROWS)
    ]
    return {"pixel_values": pixels(seed, 32), "labels": targets}


def regions(seed: int) -> dict[str, Any]:
    g = generator(seed)
    features = torch.randn(ROWS, 4, 8, generator=g)
    return {
        "input_ids": ids(seed),
        "visual_feats": features,
        "visual_pos": torch.rand(ROWS, 4, 4, generator=g),
    }


def decisions(seed: int) -> dict[str, Any]:
    g = generator(seed)
    return {
        "states": torch.randn(ROWS, 5, 3, generator=g),
        "actions": torch.randn(ROWS, 5, 2, generator=g),
        "rewards": torch.zeros(ROWS, 5, 1),
        "returns_to_go": torch.ones(ROWS, 5, 1),
        "timesteps": torch.arange(5).expand(ROWS, 5).contiguous(),
        "attention_mask": torch.ones(ROWS, 5),
    }


def square(output: Any) -> torch.Tensor:
    """Return the mean square of the first output tensor, for models without a loss."""
    first = next(x for x in output.to_tuple() if isinstance(x, torch.Tensor))
    return first.square().mean()


_SERIES = {
    "prediction_length": 4,
    "context_length": 13,
    "num_time_features": 1,
    "lags_sequence": [1, 2, 7],
}
_PATCHES = {
    "context_length": 16,
    "prediction_length": 4,
    "num_input_channels": 2,
    "patch_length": 4,
    "patch_stride": 4,
}
_PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "sr_ratios": [2, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}

_TABLE = (
    Architecture("AutoformerForPrediction", _SERIES, series),
    Architecture("BertForNextSentencePrediction", {}, sentences),
    Architecture("BertForPreTraining", {}, pairs_of_sentences),
    Architecture("BertForSequenceClassification", {}, sentences),
    Architecture(
        "DecisionTransformerModel",
        {"state_dim": 3, "act_dim": 2, "max_ep_len": 32},
        decisions,
        square,
    ),
    Architecture("DeiTForMaskedImageModeling", {}, images, square),
    Architecture("DINOv3ViTModel", {"pos_embed_rescale": None}, images, square),
    Architecture("GPT2ForSequenceClassification", {}, sentences),
    Architecture(
        "GLPNForDepthEstimation",
        {
            "num_encoder_blocks": 4,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "sr_ratios": [2, 2, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        depths,
    ),
    Architecture("InformerForPrediction", {**_SERIES, "attention_type": "full"}, series),
    Architecture("LlamaForSequenceClassification", {}, sentences),
    Architecture(
        "LxmertModel",
        {"visual_feat_dim": 8, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        regions,
        square,
    ),
    Architecture("PatchTSMixerForPrediction", _PATCHES, channels),
    Architecture("PatchTSTForPrediction", _PATCHES, channels),
    Architecture(
        "PerceiverForMaskedLM",
        {
            "d_latents": 32,
            "num_latents": 8,
            "num_blocks": 1,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "qk_channels": 16,
            "v_channels": 32,
            "max_position_embeddings": 12,
        },
        tokens,
    ),
    Architecture("SegformerForSemanticSegmentation", _PYRAMID, segments),
    Architecture("TimeSeriesTransformerForPrediction", _SERIES, series),
    Architecture("TimesformerForVideoClassification", {"num_frames": 2}, videos),
    Architecture("VideoMAEForVideoClassification", {"num_frames": 2, "tubelet_size": 2}, videos),
    Architecture("ViTForMaskedImageModeling", {}, images, square),
    Architecture(
        "ViTMAEForPreTraining",
        {
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 64,
        },
        masked_images,
    ),
    Architecture("VitDetModel", {}, images, square),
    Architecture(
        "VivitForVideoClassification",
        {"num_frames": 2, "tubelet_size": [2, 8, 8], "video_size": [16, 16]},
        videos,
    ),
    Architecture(
        "YolosForObjectDetection", {"num_detection_tokens": 4, "image_size": [32, 32]}, boxes
    ),
)
OTHERS = {of.model: of for of in _TABLE}
