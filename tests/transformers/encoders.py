"""Text encoder and encoder-decoder architectures of the `transformers` library."""

from __future__ import annotations

from typing import Any

from tests.transformers.tiny import Architecture, tokens

ENCODERS_PLAIN = """
AlbertForMaskedLM BertForMaskedLM BigBirdForMaskedLM CamembertForMaskedLM ConvBertForMaskedLM
Data2VecTextForMaskedLM DebertaForMaskedLM DebertaV2ForMaskedLM ElectraForMaskedLM ErnieForMaskedLM
EsmForMaskedLM EuroBertForMaskedLM FNetForMaskedLM GteForMaskedLM IBertForMaskedLM
JinaEmbeddingsV3ForMaskedLM LongformerForMaskedLM MPNetForMaskedLM MegatronBertForMaskedLM
ModernBertForMaskedLM ModernVBertForMaskedLM MraForMaskedLM NomicBertForMaskedLM
NystromformerForMaskedLM RoFormerForMaskedLM RobertaForMaskedLM RobertaPreLayerNormForMaskedLM
UltrabertForMaskedLM UltraVBertForMaskedLM XLMRobertaForMaskedLM XLMRobertaXLForMaskedLM
YosoForMaskedLM
"""
_ROC: dict[str, Any] = {
    "shape_embed_dim": 8,
    "pronunciation_embed_dim": 8,
    "shape_vocab_size": 99,
    "pronunciation_vocab_size": 99,
}
ENCODERS_OWN: dict[str, dict[str, Any]] = {
    "DistilBertForMaskedLM": {"hidden_dim": 64},
    "EsmcForMaskedLM": {"num_key_value_heads": 4},
    "FlaubertWithLMHeadModel": {"emb_dim": 32, "n_words": 99},
    "FunnelForMaskedLM": {
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "d_head": 8,
        "d_inner": 64,
    },
    "LayoutLMForMaskedLM": {"max_2d_position_embeddings": 64},
    "LukeForMaskedLM": {"entity_vocab_size": 16, "entity_emb_size": 8},
    "MobileBertForMaskedLM": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "ReformerForMaskedLM": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [3, 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "feed_forward_size": 64,
        "attention_head_size": 8,
        "num_buckets": 2,
    },
    "RemBertForMaskedLM": {"input_embedding_size": 16, "output_embedding_size": 16},
    "RoCBertForMaskedLM": _ROC,
    "SqueezeBertForMaskedLM": {"embedding_size": 32},
    "TapasForMaskedLM": {"type_vocab_sizes": [3, 2, 2, 2, 2, 2, 2]},
    "XmodForMaskedLM": {"default_language": "en_XX", "languages": ["en_XX"]},
}

SEQ2SEQ_PLAIN = """
BartForConditionalGeneration BigBirdPegasusForConditionalGeneration
BlenderbotForConditionalGeneration BlenderbotSmallForConditionalGeneration EncoderDecoderModel
M2M100ForConditionalGeneration MBartForConditionalGeneration MT5ForConditionalGeneration
MarianMTModel MvpForConditionalGeneration NllbMoeForConditionalGeneration
PLBartForConditionalGeneration PegasusForConditionalGeneration PegasusXForConditionalGeneration
SeamlessM4TForTextToText SeamlessM4Tv2ForTextToText T5Gemma2ForConditionalGeneration
T5GemmaForConditionalGeneration UMT5ForConditionalGeneration
"""
_START: dict[str, Any] = {"decoder_start_token_id": 0}
SEQ2SEQ_OWN: dict[str, dict[str, Any]] = {
    "FSMTForConditionalGeneration": {
        "src_vocab_size": 99, "tgt_vocab_size": 99, "langs": ["en", "de"],
    },
    "LEDForConditionalGeneration": {
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
        "attention_window": 4,
    },
    "LongT5ForConditionalGeneration": _START,
    "ProphetNetForConditionalGeneration": {"num_encoder_layers": 2},
    "SwitchTransformersForConditionalGeneration": _START,
    "T5ForConditionalGeneration": _START,
}  # fmt: skip

ENCODERS = {
    name: Architecture(name, ENCODERS_OWN.get(name, {}), tokens)
    for name in (*ENCODERS_PLAIN.split(), *ENCODERS_OWN)
}
SEQ2SEQ = {
    name: Architecture(name, SEQ2SEQ_OWN.get(name, {}), tokens)
    for name in (*SEQ2SEQ_PLAIN.split(), *SEQ2SEQ_OWN)
}
