"""Tiny random models of the `transformers` library, and batches for them. Nothing is downloaded.

`SIZES` has a small value for each name that the library's configurations give to a width, a depth or a
count; `build` sets those that a configuration has, in its sub-configurations too. What an architecture
needs beyond that stands in its entry of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

ROWS, TOKENS, VOCABULARY = 2, 12, 99
IMAGE, AUDIO, VIDEO = 3, 4, 5  # tokens


def own_loss(output: Any) -> Any:
    """Return the loss that the model computes from the labels in its batch."""
    return output.loss


class Architecture(NamedTuple):
    """Architecture of the `transformers` library, with its configuration and batch.

    Attributes:
        model: the name of its class.
        own: values of its configuration.
        batch: the arguments of a call, by seed.
        loss: the loss of what a call returns.
    """

    model: str
    own: Mapping[str, Any]
    batch: Callable[[int], dict[str, Any]]
    loss: Callable[[Any], Any] = own_loss


#: By the names of a configuration's fields.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "dim_ff"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("head_dim", "dim_head", "d_kv", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "embedding_size"), 16),
    "rotary_dim": 4,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("n_group", "n_groups", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_d_head", "mamba_n_heads"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "sliding_window"), 8),
    "mamba_n_groups": 1,
    "conv_kernel": 4,
    "expand": 2,
    "image_size": 16,
    "patch_size": 8,
    "decoder_start_token_id": 1,
    **dict.fromkeys(("layerdrop", "encoder_layerdrop", "decoder_layerdrop"), 0.0),
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("image_token_id", "image_token_index"), IMAGE),
    **dict.fromkeys(("audio_token_id", "audio_token_index"), AUDIO),
    **dict.fromkeys(("video_token_id", "video_token_index"), VIDEO),
    "vision_start_token_id": 6,
    "vision_end_token_id": 7,
}


def config_of(cls: Any, own: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a small configuration.

    Args:
        cls: its class.
        own: values that go before `SIZES`; a dict for a sub-configuration, whose class may stand in it
            under `cls`.
    """
    default = cls()
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {
        name: size
        for name, size in SIZES.items()
        if name in fields and not isinstance(getattr(default, name, None), (list, tuple, dict))
    }
    values |= {name: value for name, value in own.items() if name != "cls"}
    for name in cls.sub_configs:
        given, sub = own.get(name, {}), type(getattr(default, name, None))
        if isinstance(given, Mapping):
            sub = given.get("cls", sub)
            if issubclass(sub, PreTrainedConfig):
                values[name] = config_of(sub, given)
    return cls(**values)


def set_dropout(config: Any, rate: float, own: Mapping[str, Any]) -> None:
    """Set each rate of dropout that `own` does not fix, in the sub-configurations too."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            set_dropout(value, rate, own.get(name, {}))
        elif (
            isinstance(value, float) and "drop" in name and "layer" not in name and name not in own
        ):
            setattr(config, name, rate)


def build(of: Architecture, dropout: float) -> PreTrainedModel:
    """Return a model with random weights."""
    cls = getattr(transformers, of.model)
    config = config_of(cls.config_class, of.own)
    set_dropout(config, dropout, of.own)
    return cls(config)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(seed: int, *shape: int) -> torch.Tensor:
    """Return tokens without special ones."""
    return torch.randint(10, VOCABULARY, shape or (ROWS, TOKENS), generator=generator(seed))


def tokens(seed: int) -> dict[str, Any]:
    """Return a next-token batch whose second row ends in two padding tokens."""
    input_ids = ids(seed)
    mask = torch.ones_like(input_ids)
    mask[1, -2:] = 0
    labels = input_ids.masked_fill(mask == 0, -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
