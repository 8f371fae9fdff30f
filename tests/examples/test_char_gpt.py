"""Test the character GPT example at a small size: learning, sampling and reproducibility."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest
import torch

import ftrain
from benchmarks import char_gpt_parity
from examples import char_gpt
from ftrain import data
from ftrain.core import tree
from ftrain.tasks.models import GPT

TINY = {"context": 8, "layers": 2, "heads": 2, "width": 16}
POEM = data.Text.of("the quick brown fox jumps over the lazy dog. " * 20)


def model(**changes: Any) -> functools.partial[GPT]:
    return functools.partial(GPT, POEM.vocabulary, **{**TINY, **changes})


def train(steps: int = 4, compiled: bool = False, **changes: Any) -> Any:
    return char_gpt.train(
        model(**changes), POEM, steps=steps, batch_size=4, context=8, compiled=compiled
    )


def losses(rows: list[dict[str, Any]], split: str) -> list[float]:
    return [row["loss"] for row in rows if row["split"] == split]


def test_char_gpt_initialization_matches_nanogpt() -> None:
    built = GPT(50)
    spread = {name: float(p.detach().std()) for name, p in built.named_parameters() if p.ndim == 2}
    for name, found in spread.items():
        expected = 0.02 / 8**0.5 if name.endswith("out.weight") else 0.02
        assert found == pytest.approx(expected, rel=0.05), name  # at least 6,400 draws each
    assert not [name for name, _ in built.named_parameters() if name.endswith("bias")]
    assert built.head.weight is built.tokens.weight
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(0.8e6, rel=0.02)


def test_char_gpt_reduces_the_held_out_loss() -> None:
    _, rows = train(150)
    start, end = losses(rows, "train")[0], losses(rows, "eval")[-1]
    assert start == pytest.approx(torch.log(torch.tensor(28.0)).item(), abs=0.1)
    assert end < 0.85 * start  # seeds 0 to 4: 0.74 to 0.77


def test_char_gpt_main_prints_a_sample_and_saves_curves(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "poem.txt"
    source.write_text(POEM.decode(POEM.tokens) * 2)
    char_gpt.main(
        ["--no-compile", "--steps", "2", "--text", str(source), "--out", str(tmp_path / "out")]
    )
    said = capsys.readouterr().out
    assert "1,800 characters, 28 different ones" in said
    assert "it writes:" in said
    assert f"curves: {tmp_path / 'out' / 'curves.png'}" in said
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_char_gpt_samples_are_a_function_of_the_seed() -> None:
    state, _ = train()
    beginning = POEM.tokens[:8].long()
    first = char_gpt.write(model(), state, beginning, 30)
    assert torch.equal(first, char_gpt.write(model(), state, beginning, 30))
    assert not torch.equal(first, char_gpt.write(model(), state, beginning, 30, seed=1))
    assert len(first) == 30


def test_char_gpt_samples_the_likeliest_character_at_low_temperature() -> None:
    state, _ = train(60)
    module = model()()
    module.load_state_dict(state.params, strict=False)  # the head is the embedding
    seen = POEM.tokens[:8].tolist()
    for _ in range(20):
        seen.append(int(module(torch.tensor([seen[-8:]]))[0, -1].argmax()))
    assert len(set(seen[8:])) > 1
    beginning = POEM.tokens[:8].long()
    for seed in range(3):
        cold = char_gpt.write(model(), state, beginning, 20, seed=seed, temperature=1e-6)
        assert cold.tolist() == seen[8:]


def test_compiled_char_gpt_training_equals_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftrain, "compile", functools.partial(ftrain.compile, backend="eager"))
    eager, compiled = train(dropout=0.1), train(compiled=True, dropout=0.1)
    assert tree.digest(eager[0]) == tree.digest(compiled[0])
    assert eager[1] == compiled[1]


def test_char_gpt_losses_match_a_hand_written_loop() -> None:
    run = char_gpt_parity.Setting(POEM, steps=30, batch_size=4, context=8, sizes=TINY)
    ours, theirs = char_gpt_parity.by_ftrain(run, compiled=False), char_gpt_parity.by_hand(run)
    # Rounding alone, grown over 30 steps of Adam: measured 5e-7.
    assert torch.allclose(ours.losses, theirs.losses, rtol=0, atol=1e-5)
    for (_, a), (_, b) in zip(ours.held_out, theirs.held_out, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
