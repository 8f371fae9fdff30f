"""The table of all tested `transformers` architectures."""

from __future__ import annotations

from tests.transformers.audio import AUDIO
from tests.transformers.decoders import DECODERS
from tests.transformers.encoders import ENCODERS, SEQ2SEQ
from tests.transformers.multimodal import MULTIMODAL
from tests.transformers.others import OTHERS
from tests.transformers.tiny import Architecture
from tests.transformers.vision import VISION

ARCHITECTURES: dict[str, Architecture] = (
    DECODERS | ENCODERS | SEQ2SEQ | VISION | AUDIO | MULTIMODAL | OTHERS
)

#: What the suite takes: one of each kind.
SUITE = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "MambaForCausalLM",
    "BertForMaskedLM",
    "DebertaV2ForMaskedLM",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "ViTForImageClassification",
    "SwinForImageClassification",
    "ResNetForImageClassification",
    "LlavaForConditionalGeneration",
)
