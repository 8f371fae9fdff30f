"""Text decoder architectures of the `transformers` library."""

from __future__ import annotations

from typing import Any

from tests.transformers.tiny import Architecture, tokens

#: Small by `SIZES` alone.
PLAIN = """
AfmoeForCausalLM Apertus1p5TextForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM
BailingHybridForCausalLM BambaForCausalLM BartForCausalLM BeamForCausalLM BertGenerationDecoder
BertLMHeadModel BigBirdForCausalLM BigBirdPegasusForCausalLM BioGptForCausalLM BitNetForCausalLM
BlenderbotForCausalLM BlenderbotSmallForCausalLM BloomForCausalLM CamembertForCausalLM
CodeGenForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM CohereForCausalLM CpmAntForCausalLM
CwmForCausalLM Data2VecTextForCausalLM DeepseekV4ForCausalLM  DogeForCausalLM
DoryForCausalLM Dots1ForCausalLM ElectraForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5ForCausalLM
ErnieForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM FalconMambaForCausalLM
FlexOlmoForCausalLM FlintForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM GlmForCausalLM GPT2LMHeadModel
GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM
GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
GraniteMoeSharedForCausalLM GraniteMoeSWAForCausalLM GraniteSWAForCausalLM HeliumForCausalLM
HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM
HYV3ForCausalLM HYV4ForCausalLM Jais2ForCausalLM JambaForCausalLM JetMoeForCausalLM
Kolibri1ForCausalLM LagunaForCausalLM LaraMiniForCausalLM Lfm2ForCausalLM Lfm3ForCausalLM
Llama4ForCausalLM LlamaForCausalLM MambaForCausalLM MarianForCausalLM MBartForCausalLM
MegatronBertForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM MiniMaxForCausalLM
MiniMaxM2ForCausalLM MiniMaxM3VLForCausalLM Ministral3ForCausalLM MinistralForCausalLM
MistralForCausalLM MixtralForCausalLM ModernBertDecoderForCausalLM MoshiForCausalLM MptForCausalLM
MvpForCausalLM NanoChatForCausalLM NemotronForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM
OlmoeForCausalLM OlmoForCausalLM OlmoHybridForCausalLM OpenAIGPTLMHeadModel OPTForCausalLM
PegasusForCausalLM PersimmonForCausalLM Phi3ForCausalLM PhiForCausalLM PhimoeForCausalLM
PLBartForCausalLM ProphetNetForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM
Qwen3MoeForCausalLM RecurrentGemmaForCausalLM RemBertForCausalLM RobertaForCausalLM
RobertaPreLayerNormForCausalLM RoFormerForCausalLM RwkvForCausalLM SeedOssForCausalLM
SmolLM3ForCausalLM SolarOpenForCausalLM StableLmForCausalLM Starcoder2ForCausalLM TrOCRForCausalLM
VaultGemmaForCausalLM WhisperForCausalLM XGLMForCausalLM XLMRobertaForCausalLM
XLMRobertaXLForCausalLM XLNetLMHeadModel xLSTMForCausalLM
"""

_HEADS: dict[str, Any] = {"num_key_value_heads": 4}  # as many as queries have
#: By class, what they need besides.
OWN: dict[str, dict[str, Any]] = {
    "AXK1ForCausalLM": _HEADS,
    "AXK2ForCausalLM": _HEADS,
    "DiffLlamaForCausalLM": {"attention_dropout": 0.0},
    "CTRLLMHeadModel": {"dff": 64},
    "DeepseekV2ForCausalLM": _HEADS,
    "DeepseekV3ForCausalLM": _HEADS,
    "DeepseekV32ForCausalLM": _HEADS,
    "Emu3ForCausalLM": {},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 64},
    "Glm4MoeLiteForCausalLM": _HEADS,
    "GlmMoeDsaForCausalLM": _HEADS,
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "InklingForCausalLM": {},
    "Llama4ForCausalLM": {},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8},
    "MiniCPM3ForCausalLM": _HEADS,
    "MllamaForCausalLM": {},
    "NemotronHForCausalLM": {},
    "Qwen3_5ForCausalLM": {},
    "Qwen3_5MoeForCausalLM": {},
    "Qwen3NextForCausalLM": {},
    "ReformerModelWithLMHead": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [3, 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "feed_forward_size": 64,
        "attention_head_size": 8,
        "num_buckets": 2,
    },
    "RoCBertForCausalLM": {
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 99,
        "pronunciation_vocab_size": 99,
    },
    "XLMWithLMHeadModel": {"emb_dim": 32, "n_words": 99},
    "XmodForCausalLM": {"default_language": "en_XX", "languages": ["en_XX"], "is_decoder": True},
    "YoutuForCausalLM": _HEADS,
    "ZambaForCausalLM": {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "hybrid", "hybrid"],
        "n_mamba_heads": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}

DECODERS = {name: Architecture(name, OWN.get(name, {}), tokens) for name in (*PLAIN.split(), *OWN)}
