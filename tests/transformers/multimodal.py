"""Multimodal architectures of the `transformers` library: text with images or audio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.transformers.tiny import AUDIO, IMAGE, ROWS, Architecture, generator, ids
from tests.transformers.vision import pixels


def inserted(
    count: int, *shape: int, key: str = "pixel_values", token: int = IMAGE, **more: Any
) -> Callable[[int], dict[str, Any]]:
    """Return a batch function of texts with `count` tokens for image (default) or sound features."""
    shape = shape or (ROWS, 3, 16, 16)

    def batch(seed: int) -> dict[str, Any]:
        input_ids = ids(seed)
        input_ids[:, 1 : 1 + count] = token
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": input_ids.masked_fill(input_ids == token, -100),
            key: torch.randn(*shape, generator=generator(seed)),
            **more,
        }

    return batch


def typed(name: str, batch: Callable[[int], dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
    """Return the batch function with an added mask of the image tokens."""
    return lambda seed: {**batch(seed), name: (batch(seed)["input_ids"] == IMAGE).long()}


def captions(seed: int) -> dict[str, Any]:
    return {"input_ids": ids(seed), "labels": ids(seed), "pixel_values": pixels(seed, 16)}


def read(seed: int) -> dict[str, Any]:
    """Return images of text to be recognized."""
    return {"pixel_values": pixels(seed, 16), "labels": ids(seed)}


def pairs(seed: int) -> dict[str, Any]:
    """Return pairs of matching images and texts."""
    return {"input_ids": ids(seed, ROWS, 8), "pixel_values": pixels(seed, 16), "return_loss": True}


def instructions(seed: int) -> dict[str, Any]:
    return {**inserted(4)(seed), "qformer_input_ids": ids(seed)}


def positions(seed: int) -> dict[str, Any]:
    mask = torch.arange(12).expand(ROWS, 12) < 4
    return {**captions(seed), "image_embeds_position_mask": mask}


def patches(seed: int) -> dict[str, Any]:
    """Return patches whose first two numbers are a row and a column."""
    flat = torch.rand(ROWS, 6, 14, generator=generator(seed))
    return {"flattened_patches": flat, "labels": ids(seed)}


def sounds(seed: int) -> dict[str, Any]:
    batch = inserted(5, ROWS, 8, 20, key="input_features", token=AUDIO)(seed)
    return {**batch, "feature_attention_mask": torch.ones(ROWS, 20, dtype=torch.long)}


_FINE = {"patch_size": 4}
_SIZES = torch.tensor([[16, 16], [16, 16]])
_FIVE = inserted(4, ROWS, 1, 3, 16, 16)
_GRID = inserted(4, 32, 48, image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]))
_QWEN = {
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "num_heads": 4,
    "depth": 2,
}


def _rotated(*sections: int) -> dict[str, Any]:
    return {
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": list(sections),
            "rope_theta": 10000.0,
        }
    }


_TABLE = (
    Architecture("AltCLIPModel", {}, pairs),
    Architecture(
        "AyaVisionForConditionalGeneration",
        {"vision_config": _FINE, "downsample_factor": 2},
        inserted(4),
    ),
    Architecture("Blip2ForConditionalGeneration", {"num_query_tokens": 4}, inserted(4)),
    Architecture("BlipForConditionalGeneration", {}, captions),
    Architecture("BlipModel", {}, pairs),
    Architecture("ChineseCLIPModel", {}, pairs),
    Architecture("CLIPModel", {}, pairs),
    Architecture("CLIPSegModel", {}, pairs),
    Architecture("DeepseekVLForConditionalGeneration", {}, inserted(4)),
    Architecture(
        "Florence2ForConditionalGeneration",
        {
            "vision_config": {
                "depths": [1, 1],
                "embed_dim": [8, 16],
                "num_heads": [1, 2],
                "num_groups": [1, 2],
                "patch_size": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [3, 1],
                "patch_prenorm": [False, True],
                "window_size": 2,
                "projection_dim": 32,
            }
        },
        inserted(5),
    ),
    Architecture(
        "Gemma3ForConditionalGeneration",
        {"mm_tokens_per_image": 4},
        typed("token_type_ids", inserted(4)),
    ),
    Architecture("GitForCausalLM", {}, captions),
    Architecture(
        "GroupViTModel",
        {
            "vision_config": {
                "depths": [1, 1],
                "num_group_tokens": [4, 0],
                "num_output_groups": [4, 2],
            },
            "projection_intermediate_dim": 32,
            "projection_dim": 16,
        },
        pairs,
    ),
    Architecture(
        "Idefics2ForConditionalGeneration",
        {
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
            }
        },
        _FIVE,
    ),
    Architecture(
        "Idefics3ForConditionalGeneration",
        {"scale_factor": 2, "vision_config": _FINE},
        _FIVE,
    ),
    Architecture("InstructBlipForConditionalGeneration", {"num_query_tokens": 4}, instructions),
    Architecture(
        "InternVLForConditionalGeneration",
        {"vision_config": {"patch_size": [4, 4], "image_size": [16, 16]}, "downsample_ratio": 0.5},
        inserted(4),
    ),
    Architecture(
        "Kosmos2ForConditionalGeneration",
        {
            "text_config": {"embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 64},
            "latent_query_num": 4,
        },
        positions,
    ),
    Architecture("LlavaForConditionalGeneration", {}, inserted(4)),
    Architecture(
        "LlavaNextForConditionalGeneration",
        {"image_grid_pinpoints": [[16, 16]]},
        inserted(10, ROWS, 2, 3, 16, 16, image_sizes=_SIZES),
    ),
    Architecture(
        "LlavaOnevisionForConditionalGeneration",
        {"image_grid_pinpoints": [[16, 16]]},
        inserted(10, ROWS, 2, 3, 16, 16, image_sizes=_SIZES),
    ),
    Architecture("MetaClip2Model", {}, pairs),
    Architecture(
        "Mistral3ForConditionalGeneration",
        {"spatial_merge_size": 1},
        inserted(4, image_sizes=_SIZES),
    ),
    Architecture("Ovis2ForConditionalGeneration", {}, inserted(4)),
    Architecture("OwlViTModel", {}, pairs),
    Architecture(
        "PaliGemmaForConditionalGeneration",
        {"projection_dim": 32},
        typed("token_type_ids", inserted(4)),
    ),
    Architecture(
        "Pix2StructForConditionalGeneration",
        {"vision_config": {"patch_embed_hidden_size": 12}},
        patches,
    ),
    Architecture(
        "Qwen2AudioForConditionalGeneration",
        {"audio_config": {"num_mel_bins": 8, "max_source_positions": 10}},
        sounds,
    ),
    Architecture(
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": {**_QWEN, "embed_dim": 32, "mlp_ratio": 2},
            "text_config": _rotated(1, 1, 2),
        },
        typed("mm_token_type_ids", _GRID),
    ),
    Architecture(
        "Qwen2_5_VLForConditionalGeneration",
        {
            "vision_config": {
                **_QWEN,
                "out_hidden_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            "text_config": _rotated(1, 1, 2),
        },
        typed("mm_token_type_ids", _GRID),
    ),
    Architecture(
        "Qwen3VLForConditionalGeneration",
        {
            "vision_config": {
                **_QWEN,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            "text_config": _rotated(2, 1, 1),
        },
        typed("mm_token_type_ids", _GRID),
    ),
    Architecture("SiglipModel", {}, pairs),
    Architecture(
        "SmolVLMForConditionalGeneration",
        {"scale_factor": 2, "vision_config": _FINE},
        _FIVE,
    ),
    Architecture("ViltForMaskedLM", {}, captions),
    Architecture(
        "VipLlavaForConditionalGeneration", {"vision_feature_layers": [-1, -2]}, inserted(4)
    ),
    Architecture(
        "VisionEncoderDecoderModel", {"pad_token_id": 0, "decoder_start_token_id": 1}, read
    ),
    Architecture("VisionTextDualEncoderModel", {}, pairs),
    Architecture(
        "VoxtralForConditionalGeneration",
        {"audio_config": {"num_mel_bins": 8, "max_source_positions": 16, "intermediate_size": 128}},
        inserted(4, ROWS, 8, 32, key="input_features", token=AUDIO),
    ),
)
MULTIMODAL = {of.model: of for of in _TABLE}
