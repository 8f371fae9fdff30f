"""The first run that a newcomer makes: it learns, says so, and falls back where it must."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NoReturn

import pytest
import torch

import ftrain
from examples import digits
from ftrain.core.errors import CompilerMissingError


def options(*more: str) -> Any:
    return digits.arguments(["--no-compile", *more])


def losses(epochs: list[digits.Epoch]) -> list[float]:
    return [float(epoch.training["loss"]) for epoch in epochs]


def test_every_digit_is_either_trained_on_or_held_out() -> None:
    training, held_out = digits.digits()
    assert len(held_out["label"]) == digits.HELD_OUT
    assert len(training["label"]) + len(held_out["label"]) == 1797
    assert digits.HELD_OUT % digits.EVAL_BATCH == 0
    seen = {image.numpy().tobytes() for image in training["image"]}
    assert not any(image.numpy().tobytes() in seen for image in held_out["image"])


def test_only_training_digits_set_the_scale() -> None:
    training, held_out = digits.digits()
    # Sums of 1.5 million float32 numbers: measured 1e-7, and 6e-3 for the digits held out.
    assert abs(float(training["image"].mean())) < 1e-5
    assert abs(float(training["image"].std()) - 1) < 1e-5
    assert abs(float(held_out["image"].mean())) > 1e-4


def test_warps_keep_the_shape_and_follow_the_key() -> None:
    image = torch.rand(3, 1, 32, 32)

    def drawn(seed: int) -> torch.Tensor:
        with ftrain.random.keyed(ftrain.random.key(seed)):
            return digits.warped(image)

    assert drawn(0).shape == image.shape
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_it_learns(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = digits.main(["--no-compile", "--epochs", "8", "--out", str(tmp_path)])
    # Seeds 0 to 4 reach 97.2 to 98.6 % in eight epochs; sixty are the default.
    assert accuracy > 0.95
    picture = tmp_path / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert f"{accuracy:.1%}" in said[0]
    assert str(picture) in said[1]


def test_a_seed_is_a_run() -> None:
    first, again, other = (
        losses(digits.train(options("--epochs", "1", "--seed", seed))) for seed in "001"
    )
    assert first == again
    assert first != other


def test_the_compiled_road(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftrain, "compile", functools.partial(ftrain.compile, backend="eager"))
    eager = digits.train(options("--epochs", "1"))
    compiled = digits.train(digits.arguments(["--epochs", "1"]))
    assert losses(eager) == losses(compiled)


def test_without_a_compiler_it_trains_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(fn: Any, **_: Any) -> Any:
        def call(*_: Any) -> NoReturn:
            raise CompilerMissingError("no C++ compiler")

        return call

    monkeypatch.setattr(ftrain, "compile", missing)
    digits.main(["--epochs", "1", "--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("No C++ compiler")
    assert (tmp_path / "curves.png").exists()
