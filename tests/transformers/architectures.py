"""The table of all tested `transformers` architectures."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

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


def tested() -> Sequence[str]:
    """Return the architectures to test: those of the suite, in a campaign all or a random sample.

    `FTRAIN_SAMPLE=100:1` draws 100 with the seed 1.
    """
    if not os.environ.get("FTRAIN_CAMPAIGN"):
        return SUITE
    if not (sample := os.environ.get("FTRAIN_SAMPLE")):
        return list(ARCHITECTURES)
    count, _, seed = sample.partition(":")
    return sorted(random.Random(int(seed or 0)).sample(sorted(ARCHITECTURES), int(count)))
