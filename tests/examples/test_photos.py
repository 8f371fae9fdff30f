"""Test that the configuration of photos trains on photos of any size, evaluates, and resumes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from ftrain.cli import main
from ftrain.config import load, load_run
from ftrain.config.run import train
from ftrain.data import sources

CONFIG = pathlib.Path(__file__).parents[2] / "examples" / "configs" / "photos.yaml"


def take_photos(folder: pathlib.Path, count: int = 12) -> pathlib.Path:
    """Write photos of two classes, bright and dark, each of a size of its own, in several formats."""
    numbers = np.random.default_rng(0)
    for name, light in (("day", 150), ("night", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = numbers.integers(20, 200, 2)
            pixels = light + numbers.integers(0, 100, (height, width, 3))
            photo = Image.fromarray(pixels.astype(np.uint8))
            photo = photo.convert("L") if i % 5 == 0 else photo
            photo.save(folder / name / f"{i}{('.jpg', '.png', '.webp')[i % 3]}")
    return folder


def test_configuration_of_photos_has_six_lines() -> None:
    lines = [line for line in CONFIG.read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) == 6


def test_photos_of_any_size_can_be_used_to_train_evaluate_and_predict(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, run = take_photos(tmp_path / "photos"), tmp_path / "run"
    options = [f"data.path={photos}", f"output_dir={run}", "batch_size=8", "workers=0"]
    result = train(load(CONFIG, [*options, "epochs=15", "progress=false"]))
    assert result.eval is not None
    assert result.eval.metrics["accuracy"] == 1.0
    assert main(["eval", str(run)]) == 0
    shown = capsys.readouterr().out
    assert main(["eval", str(run), f"data.path={photos}"]) == 0
    assert "accuracy 1" in shown
    trained, whole = load_run(run), sources.images(photos, held_out=0, size=64).train
    dark = trained.predict(whole[len(whole) - 1]["x"][None])
    assert dark.argmax(1).tolist() == [whole.classes.index("night")]


def test_image_data_report_the_input_sizes_that_models_need(tmp_path: pathlib.Path) -> None:
    """A convolutional model needs the channels, a multilayer perceptron the numbers in an image."""
    photos = take_photos(tmp_path / "photos", count=5)
    found = sources.images(photos, size=(8, 12), mode="L")
    assert found.facts == {
        "classes": 2,
        "names": ["day", "night"],
        "channels": 1,
        "height": 8,
        "width": 12,
        "features": 96,
    }
    keys = {"path": str(photos), "size": [8, 12], "mode": "L"}
    shapes = {"inputs": "${data.features}", "outputs": "${data.classes}"}
    models = ({"name": "mlp", **shapes}, {"name": "resnet", "channels": "${data.channels}"})
    for model in models:
        configuration = {
            "model": model,
            "data": {"name": "images", **keys},
            "max_steps": 1,
            "batch_size": 4,
            "compile": False,
            "progress": False,
            "output_dir": str(tmp_path / model["name"]),
        }
        assert train(load(configuration)).status == "completed"
