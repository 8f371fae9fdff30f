"""The main job in small: it learns, writes, is one run for one seed, and says what a text lacks."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from benchmarks import char_gpt_parity
from examples import char_gpt

TINY = ["--layers", "2", "--heads", "2", "--width", "16", "--context", "8", "--batch", "4"]
POEM = "the quick brown fox jumps over the lazy dog. " * 20


def options(*more: str) -> Any:
    return char_gpt.arguments(["--no-compile", "--steps", "4", *TINY, *more])


def text(content: str = POEM) -> char_gpt.Text:
    return char_gpt.Text.of(content, context=8)


@given(st.text(min_size=1, max_size=200))
@settings(deadline=None, max_examples=50)
def test_numbers_give_the_text_back(content: str) -> None:
    found = char_gpt.Text.of(content, context=8)
    assert found.decode(torch.cat([found.training, found.held_out])) == content
    assert list(found.alphabet) == sorted(set(content))


@given(st.integers(min_value=90, max_value=4000))
@settings(deadline=None, max_examples=30)
def test_held_out_windows_predict_each_character_once(length: int) -> None:
    found = text("".join(chr(0x4E00 + i) for i in range(length)))  # every character another
    windows = found.held_out_windows()
    assert len({tuple(w.shape) for w in windows}) == 1
    targets = torch.cat([w[:, 1:].flatten() for w in windows])
    assert torch.equal(targets, found.held_out[1 : 1 + len(targets)])


def test_batches_are_pieces_of_the_training_text() -> None:
    found = text()
    windows = found.windows(ftrain.random.key(0), 64)
    assert windows.shape == (64, 9)
    learned = found.decode(found.training)
    assert all(found.decode(window) in learned for window in windows)


def test_the_start_is_nanogpts() -> None:
    model = char_gpt.GPT(50, char_gpt.arguments([]))
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim == 2}
    for name, found in spread.items():
        expected = 0.02 / 8**0.5 if name.endswith("out.weight") else 0.02
        assert found == pytest.approx(expected, rel=0.05), name  # at least 6,400 draws each
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert model.head.weight is model.characters.weight
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.8e6, rel=0.02)


def test_it_learns() -> None:
    run = char_gpt.train(options("--steps", "150"), text())
    start, end = run.held_out[0][1], run.held_out[-1][1]
    assert start == pytest.approx(torch.log(torch.tensor(28.0)).item(), abs=0.1)
    assert end < 0.85 * start  # seeds 0 to 4: 0.75 to 0.77


def test_it_prints_and_draws(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "poem.txt"
    source.write_text(POEM)
    arguments = ["--no-compile", *TINY, "--text", str(source), "--out", str(tmp_path / "run")]
    run = char_gpt.main([*arguments, "--steps", "4", "--sample", "12"])
    assert run.losses.shape == (4,)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"{source}: {len(POEM)} characters, 28 different ones" in said
    assert said.rstrip().endswith(str(tmp_path / "run" / "curves.png"))


def test_a_seed_is_a_run_and_a_sample() -> None:
    def all_of(seed: str) -> tuple[list[float], str]:
        run = char_gpt.train(options("--seed", seed, "--dropout", "0.2"), text())
        return run.losses.tolist(), char_gpt.write(run, text(), ftrain.random.key(int(seed)), 30)

    assert all_of("0") == all_of("0")
    losses, written = all_of("1")
    assert losses != all_of("0")[0]
    assert written != all_of("0")[1]
    assert len(written) == 30


def test_a_cold_sample_is_the_likeliest_character_after_the_last_eight() -> None:
    run = char_gpt.train(options("--steps", "60"), text())
    model = char_gpt.GPT(28, options())
    model.load_state_dict(run.state.params, strict=False)  # the head is the embedding
    seen = text().held_out[:8].tolist()
    for _ in range(20):
        seen.append(int(model(torch.tensor([seen[-8:]]))[0, -1].argmax()))
    expected = text().decode(torch.tensor(seen[8:]))
    assert len(set(expected)) > 1
    for key in ftrain.random.split(ftrain.random.key(0), 3):
        assert char_gpt.write(run, text(), key, 20, temperature=1e-6) == expected


def test_the_compiled_road(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftrain, "compile", functools.partial(ftrain.compile, backend="eager"))
    more = ["--dropout", "0.1", "--accumulate", "2"]
    eager = char_gpt.train(options(*more), text())
    compiled = char_gpt.train(char_gpt.arguments(["--steps", "4", *TINY, *more]), text())
    assert torch.equal(eager.losses, compiled.losses)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_every_precision_runs(precision: str) -> None:
    run = char_gpt.train(options("--precision", precision), text())
    assert run.losses.isfinite().all()
    assert len(char_gpt.write(run, text(), ftrain.random.key(0), 3)) == 3


def test_it_is_the_loop_by_hand() -> None:
    found = options("--steps", "30")
    ours, theirs = char_gpt_parity.by_ftrain(found, text()), char_gpt_parity.by_hand(found, text())
    # Rounding alone, grown over 30 steps of Adam: measured 5e-7.
    assert torch.allclose(ours.losses, theirs.losses, rtol=0, atol=1e-5)
    for (_, a), (_, b) in zip(ours.held_out, theirs.held_out, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"short", "has 5 characters, and --context 8 needs at least 90"),
        (b"caf\xe9 " * 100, "is no text in UTF-8 (byte 3 does not fit)"),
    ],
)
def test_a_text_that_will_not_do(tmp_path: pathlib.Path, content: bytes | None, said: str) -> None:
    source = tmp_path / "text.txt"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        char_gpt.main(["--no-compile", *TINY, "--text", str(source)])
    assert said in str(stopped.value)
    assert str(source) in str(stopped.value)


def test_a_folder_is_no_text(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match="cannot be read"):
        char_gpt.main(["--text", str(tmp_path)])


def test_the_shortest_text_that_will_do() -> None:
    shortest = "ab" * 45  # 10 * (context + 1) characters
    assert char_gpt.checked(shortest, "text", 8) == shortest
    with pytest.raises(SystemExit, match="needs at least 90"):
        char_gpt.checked(shortest[:-1], "text", 8)
    assert len(text(shortest).held_out_windows()) == 1
    assert char_gpt.train(options(), text(shortest)).losses.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "0 is no whole number from 2 up"),
        (["--layers", "two"], "two is no whole number"),
        (["--width", "10", "--heads", "4"], "--width 10 cannot be shared by --heads 4"),
        (["--batch", "12", "--accumulate", "5"], "--batch 12 cannot be cut into --accumulate 5"),
        (["--dropout", "1"], "--dropout 1.0 is no probability"),
    ],
)
def test_options_that_will_not_do(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        char_gpt.arguments(arguments)
    assert said in capsys.readouterr().err
