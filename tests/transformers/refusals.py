"""Tested architectures that ftrain refuses, with the expected errors and reasons."""

from __future__ import annotations

from typing import NamedTuple

from ftrain.core.errors import ImpureFunctionError, TraceError, UnkeyedRandomError


class Refusal(NamedTuple):
    """Expected error of ftrain for an architecture.

    Attributes:
        error: its class.
        match: its text, over several lines.
        reason: what the architecture does.
    """

    error: type[Exception]
    match: str
    reason: str


def _value(file: str, line: str, reason: str) -> Refusal:
    """The step cannot be one graph: the line in this file branches on the value of a tensor."""
    return Refusal(
        TraceError, rf"asks for the value of a tensor.*{file}.*{line}.*ftrain\.cond", reason
    )


def _shape(file: str, line: str, reason: str) -> Refusal:
    """The step cannot be one graph: the shape that the line computes depends on values."""
    return Refusal(TraceError, rf"depends on values.*{file}.*{line}.*torch\.where", reason)


_COMPILED: dict[str, Refusal] = {
    "AutoformerForPrediction": _value(
        "modeling_autoformer", "top_k_delays_index", "it indexes by delays that it has computed"
    ),
    "FlaubertWithLMHeadModel": _value(
        "modeling_flaubert", r"lengths\.max\(\)", "it asserts that sequences fit"
    ),
    "GLPNForDepthEstimation": _shape(
        "modeling_glpn", r"target\[valid_mask\]", "its loss selects pixels"
    ),
    "HubertForCTC": _value("modeling_hubert", r"labels\.max\(\)", "it compares labels with a size"),
    "IBertForMaskedLM": _value("quant_modules", "isnan", "it asserts that activations are not NaN"),
    "Idefics2ForConditionalGeneration": _shape(
        "modeling_idefics2", "real_images_inds", "it leaves out images that are all padding"
    ),
    "Idefics3ForConditionalGeneration": _shape(
        "modeling_idefics3", "real_images_inds", "it leaves out images that are all padding"
    ),
    "JetMoeForCausalLM": _value(
        "modeling_jetmoe",
        r"expert_size\.tolist\(\)",
        "it splits by how many tokens each expert got",
    ),
    "Kosmos2ForConditionalGeneration": Refusal(
        TraceError,
        r"x\[mask\] = values.*torch\.where",
        "the gradient of x[mask] = y selects by the mask; no line of Python runs there",
    ),
    "LEDForConditionalGeneration": _value(
        "modeling_led", "is_index_global_attn", "it branches on whether a token is global"
    ),
    "LlavaNextForConditionalGeneration": _value(
        "modeling_llava_next", r"image_size\.tolist\(\)", "it cuts images by their sizes"
    ),
    "LlavaOnevisionForConditionalGeneration": _value(
        "modeling_llava_onevision", r"image_size\.tolist\(\)", "it cuts images by their sizes"
    ),
    "LongformerForMaskedLM": _value(
        "modeling_longformer", "is_index_global_attn", "it branches on whether a token is global"
    ),
    "Mistral3ForConditionalGeneration": _value(
        "modeling_pixtral", "self.patch_size", "it cuts images by their sizes"
    ),
    "Ovis2ForConditionalGeneration": _value(
        "modeling_ovis2", r"mask\.any\(\)", "it branches on whether an image is marked"
    ),
    "ProphetNetForConditionalGeneration": _value(
        "modeling_prophetnet", "assert torch.all", "it asserts that tokens are not negative"
    ),
    "Qwen2AudioForConditionalGeneration": _value(
        "modeling_qwen2_audio",
        "legacy_processing",
        "it branches on how many tokens stand for sounds",
    ),
    "Qwen2VLForConditionalGeneration": _value(
        "vision_utils", r"grid_thw\.tolist\(\)", "it reads the sizes of images"
    ),
    "Qwen2_5_VLForConditionalGeneration": _value(
        "vision_utils", r"grid_thw\.tolist\(\)", "it reads the sizes of images"
    ),
    "Qwen3VLForConditionalGeneration": Refusal(
        TraceError,
        r"numbers of repeats.*vision_utils.*repeat_interleave.*output_size",
        "it reads the sizes of images",
    ),
    "SmolVLMForConditionalGeneration": _shape(
        "modeling_smolvlm", "real_images_inds", "it leaves out images that are all padding"
    ),
    "T5Gemma2ForConditionalGeneration": Refusal(
        TraceError,
        r"x\[mask\] = values.*torch\.where",
        "modeling_t5gemma2: input_embeddings[input_ids == ...] = self.eoi_embedding; so its gradient",
    ),
    "ViltForMaskedLM": Refusal(
        TraceError,
        r"asks for the values of tensors.*modeling_vilt.*interpolate",
        "it reads the sizes of images",
    ),
    "VoxtralForConditionalGeneration": _shape(
        "modeling_voxtral", "special_audio_mask", "it counts the tokens that stand for sounds"
    ),
    "Wav2Vec2BertForCTC": _value(
        "modeling_wav2vec2_bert", r"labels\.max\(\)", "it compares labels with a size"
    ),
    "Wav2Vec2ForCTC": _value(
        "modeling_wav2vec2", r"labels\.max\(\)", "it compares labels with a size"
    ),
    "XLMWithLMHeadModel": _value(
        "modeling_xlm", r"lengths\.max\(\)", "it asserts that sequences fit"
    ),
    "XmodForCausalLM": _shape("modeling_xmod", "lang_mask", "it selects rows by their language"),
    "XmodForMaskedLM": _shape("modeling_xmod", "lang_mask", "it selects rows by their language"),
    "YolosForObjectDetection": _value(
        "loss_for_object_detection", "boxes1", "its loss matches boxes with SciPy"
    ),
}

_WRITES_TO_IDS = Refusal(
    ImpureFunctionError,
    r"input `batch\['input_ids'\]` was changed in place.*changed copy",
    "it replaces padding in its input, in place",
)

_REFORMERS = ("ReformerForMaskedLM", "ReformerModelWithLMHead")
_DRAWS_BACKWARD = Refusal(
    UnkeyedRandomError,
    "draw in a backward pass",
    "its reversible layers call attention and dropout again in a backward of their own",
)
_SEEDS = Refusal(
    UnkeyedRandomError,
    r"seeded here.*modeling_reformer.*torch\.seed\(\)",
    "it draws a seed for the dropout of each layer",
)

#: By architecture and check.
REFUSED: dict[tuple[str, str], Refusal] = {
    **{(name, "compiled"): refusal for name, refusal in _COMPILED.items()},
    **{
        ("FSMTForConditionalGeneration", check): _WRITES_TO_IDS
        for check in ("eager", "compiled", "evaluation", "gradients")
    },
    **{
        (name, check): _DRAWS_BACKWARD
        for name in _REFORMERS
        for check in ("eager", "compiled", "evaluation")
    },
    **{(name, "gradients"): _SEEDS for name in _REFORMERS},
    ("RwkvForCausalLM", "evaluation"): Refusal(
        ImpureFunctionError,
        r"parameter `.*attention\.output\.weight` was changed in place.*state\.replace",
        "it divides its weights in place when it is first evaluated",
    ),
}

#: Architectures that draw in training even without dropout, so that plain PyTorch has other gradients.
DRAWS = {
    "GroupViTModel": "it assigns patches to groups by Gumbel noise",
    "PhimoeForCausalLM": "it chooses experts by sampling",
}
