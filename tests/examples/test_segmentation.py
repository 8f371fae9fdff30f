"""Test the segmentation example: its images, learning, picture, and configuration."""

from __future__ import annotations

import pathlib

import pytest
import torch

from examples import segmentation
from ftrain.config import load
from ftrain.config.run import train
from ftrain.core import tree

CONFIG = pathlib.Path(__file__).parents[2] / "examples" / "configs" / "segmentation.yaml"


def test_images_have_two_digits_and_clutter_of_the_background_class() -> None:
    found = segmentation.made({"image": torch.ones(3, 1, 16, 16)}, 20, seed=0)
    image, label = found["image"], found["label"]
    assert (image.shape, label.shape) == ((20, 1, 32, 32), (20, 32, 32))
    assert {*label.unique().tolist()} == {0, 1}
    pixels = (label > 0).flatten(1).sum(1)
    assert bool((pixels >= 16 * 16).all())
    assert bool((pixels <= 2 * 16 * 16).all())
    clutter = (image[:, 0] > 0.5) & (label == 0)
    assert bool(clutter.flatten(1).any(1).all())


def test_images_are_a_function_of_the_seed() -> None:
    digits = {"image": torch.rand(3, 1, 16, 16)}
    one, again, other = (segmentation.made(digits, 4, seed) for seed in (0, 0, 1))
    assert tree.digest(one) == tree.digest(again)
    assert tree.digest(one) != tree.digest(other)


def test_segmentation_example_learns_and_saves_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = segmentation.cluttered(480, 100)
    monkeypatch.setattr(segmentation, "cluttered", lambda: few)
    found = segmentation.main(["--no-compile", "--epochs", "2", "--out", str(tmp_path)])
    # The background alone gives about 0.4.
    assert found > 0.6
    assert (tmp_path / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert f"{found:.3f}" in said[-2]
    assert str(tmp_path / "segmentation.png") in said[-1]


def test_segmentation_configuration_equals_the_segmentation_script(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = segmentation.cluttered(64, 100)
    monkeypatch.setattr(segmentation, "cluttered", lambda: few)
    by_hand = segmentation.train(tmp_path, epochs=5, compiled=False)
    quick = ("compile=false", "progress=false", "epochs=5", f"output_dir={tmp_path / 'run'}")
    sizes = ("data.images=64", "data.held_out=100")
    result = train(load(CONFIG, [*quick, *sizes]))
    assert tree.digest(result.state) == tree.digest(by_hand.state)
    assert result.eval is not None
    assert by_hand.eval is not None
    assert result.eval.metrics == by_hand.eval.metrics
