"""Test the example of adapters on the character GPT: what is trained, what it writes, that it learns."""

from __future__ import annotations

import functools
import pathlib

import pytest
import torch

import ftrain
from examples import char_gpt, lora
from ftrain import data, tasks
from ftrain.testing import assert_same_bits

LETTERS = "abcdefgh \n"


def test_each_adapter_learns_its_own_text_on_one_frozen_base() -> None:
    torch.manual_seed(0)
    base = char_gpt.GPT(len(LETTERS), context=8, layers=1, heads=2, width=16)
    words = {"first": "abc abc ", "second": "hgf fed\n"}
    texts = {name: data.Text.of(word * 50, LETTERS) for name, word in words.items()}
    model, states, losses = lora.adapt(base, texts, steps=80, rank=4, batch_size=8, context=8)
    assert losses.shape == (80, 2)
    modules = {name: ftrain.export(state, model) for name, state in states.items()}
    for name, state in states.items():
        for own, tensor in base.named_parameters():
            assert_same_bits(tensor.detach(), state.buffers[own])
        losses_of = {each: lora.held_out_loss(modules[each], texts[name], 8) for each in words}
        before = lora.held_out_loss(base, texts[name], 8)
        assert min(losses_of, key=lambda each: losses_of[each]) == name
        assert losses_of[name] < 0.9 * before  # of random frozen weights: measured 0.86
    assert not torch.equal(
        states["first"].params["blocks.0.mlp.up.weight.lora_B"],
        states["second"].params["blocks.0.mlp.up.weight.lora_B"],
    )


def test_lora_example_prints_a_table_and_writes_adapters_and_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(char_gpt.GPT, layers=1, heads=2, width=16)
    monkeypatch.setattr(char_gpt, "GPT", small)
    table = lora.main(["--base-steps", "2", "--steps", "2", "--out", str(tmp_path)])
    names = ["English", "tables", "asyncio"]
    assert list(table) == ["base", *names]
    assert all(list(row) == names for row in table.values())
    said = capsys.readouterr().out
    assert "each adapter: 2,048 numbers, " in said
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    gpt = char_gpt.GPT(data.standard_library().vocabulary)
    for name in names:
        read = tasks.read_lora(tmp_path / name, gpt)
        assert len(read.adapters) == 4
