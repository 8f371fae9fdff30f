"""Test the example that fine-tunes a Hugging Face model: its text, what is trained, what it writes."""

from __future__ import annotations

import pathlib

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import ftrain  # noqa: E402
from examples import fine_tune  # noqa: E402
from ftrain import data, tasks  # noqa: E402
from ftrain.testing import assert_same_bits  # noqa: E402


def test_english_text_contains_only_characters_of_the_source_code_text() -> None:
    alphabet = data.standard_library().alphabet
    assert alphabet is not None
    text = fine_tune.english(alphabet)
    assert text.alphabet == alphabet
    assert len(text) > 100_000
    words = text.decode(text.tokens).split()
    assert words.count("the") > 1000
    assert words.count("self.assertEqual(") == 0


def test_adapters_of_the_example_learn_and_keep_the_base_model_unchanged() -> None:
    text = data.Text.of("the quick brown fox jumps over the lazy dog. " * 20)
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(fine_tune.config(text.vocabulary))
    model = tasks.lora(base, ["self_attn", "mlp"], rank=4, alpha=16)
    held_out = text.windows(64, stride=64).gather(torch.arange(4))
    state, curve = fine_tune.train("test", model, text, held_out, steps=20, rate=1e-2)
    assert [step for step, _ in curve] == list(range(0, 21, 2))
    assert curve[-1][1] < 0.95 * curve[0][1]  # on a random base: only its middle is trained
    for name, tensor in base.named_parameters():
        assert_same_bits(tensor.detach(), state.buffers[name])
    module = ftrain.export(state, model)
    with torch.no_grad():
        loss = float(module(input_ids=held_out, labels=held_out).loss)
    assert loss == pytest.approx(curve[-1][1], rel=1e-5)  # another order of the sum


def test_fine_tune_example_saves_a_model_and_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = fine_tune.main(["--pretraining", "2", "--steps", "1", "--out", str(tmp_path)])
    assert list(losses) == ["random start", "all weights", "adapters"]
    said = capsys.readouterr().out
    assert f"read again: {min(losses.values()):.3f}" in said
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "model" / "model.safetensors").exists()
