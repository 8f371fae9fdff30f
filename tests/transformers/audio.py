"""Audio architectures of the `transformers` library."""

from __future__ import annotations

from typing import Any

import torch

from tests.transformers.tiny import ROWS, Architecture, generator, ids

_WAVES: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "mask_time_prob": 0.0,
}
_SQUEEZED = {**_WAVES, "squeeze_factor": 2}


def waves(seed: int) -> dict[str, Any]:
    """Return waves and three tokens for each."""
    wave = torch.randn(ROWS, 4000, generator=generator(seed))
    return {"input_values": wave, "labels": ids(seed, ROWS, 3)}


def classes_of_waves(seed: int) -> dict[str, Any]:
    return {**waves(seed), "labels": torch.tensor([0, 1])}


def spectrum(seed: int) -> dict[str, Any]:
    return {
        "input_values": torch.randn(ROWS, 32, 16, generator=generator(seed)),
        "labels": torch.tensor([0, 1]),
    }


def bands(seed: int) -> dict[str, Any]:
    """Return frequency bands over time and a text."""
    features = torch.randn(ROWS, 8, 20, generator=generator(seed))
    return {"input_features": features, "labels": ids(seed, ROWS, 6)}


def frames(seed: int) -> dict[str, Any]:
    """Return frames of frequency bands and a text."""
    features = torch.randn(ROWS, 32, 8, generator=generator(seed))
    return {"input_features": features, "labels": ids(seed, ROWS, 4)}


def wide_frames(seed: int) -> dict[str, Any]:
    """Return frames that are as wide as the model."""
    features = torch.randn(ROWS, 6, 32, generator=generator(seed))
    return {"input_features": features, "labels": ids(seed, ROWS, 4)}


_CLASSIFIERS = {
    **dict.fromkeys(("Hubert", "UniSpeech", "UniSpeechSat", "Wav2Vec2", "WavLM"), _WAVES),
    "Wav2Vec2Conformer": _WAVES,
    "Data2VecAudio": {**_WAVES, "conv_pos_kernel_size": 5},
    "SEW": _SQUEEZED,
    "SEWD": {**_SQUEEZED, "position_buckets": 16},
}

AUDIO = {
    f"{name}ForSequenceClassification": Architecture(
        f"{name}ForSequenceClassification", {**own, "classifier_proj_size": 16}, classes_of_waves
    )
    for name, own in _CLASSIFIERS.items()
} | {
    of.model: of
    for of in (
        Architecture("HubertForCTC", _WAVES, waves),
        Architecture("Wav2Vec2ForCTC", _WAVES, waves),
        Architecture(
            "ASTForAudioClassification",
            {"max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
            spectrum,
        ),
        Architecture(
            "WhisperForConditionalGeneration",
            {
                "num_mel_bins": 8,
                "max_source_positions": 10,
                "max_target_positions": 16,
                "decoder_start_token_id": 1,
            },
            bands,
        ),
        Architecture(
            "Speech2TextForConditionalGeneration",
            {
                "input_feat_per_channel": 8,
                "conv_channels": 16,
                "max_source_positions": 32,
                "max_target_positions": 16,
            },
            frames,
        ),
        Architecture("MoonshineForConditionalGeneration", {}, waves),
        Architecture(
            "Wav2Vec2BertForCTC", {"feature_projection_input_dim": 8, "mask_time_prob": 0.0}, frames
        ),
        Architecture("SpeechT5ForSpeechToText", _WAVES, waves),
        Architecture(
            "Pop2PianoForConditionalGeneration", {"decoder_start_token_id": 0}, wide_frames
        ),
    )
}
