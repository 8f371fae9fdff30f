"""Test `ftrain predict` for images, arrays and text, and `ftrain sample`."""

from __future__ import annotations

import csv
import io
import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from ftrain.cli import main
from ftrain.config import load_run

Captured = pytest.CaptureFixture[str]

COMMON = "epochs: 2\nbatch_size: 4\ncompile: false\nprogress: false\n"
PHOTOS = """
model: {name: mlp, inputs: "${data.features}", outputs: "${data.classes}"}
data: {name: images, path: photos, size: 8}
optimizer: {name: adamw, learning_rate: 0.01}
"""
ARRAYS = """
model: {name: mlp, inputs: 3, outputs: 2}
data: {name: arrays, path: train.npz}
optimizer: {name: adamw, learning_rate: 0.01}
"""
BOOK = """
model: {name: gpt, vocabulary: "${data.vocabulary}", context: 8, layers: 1, width: 16, heads: 2}
data: {name: text, path: book.txt, context: 8}
loss: next_token
max_steps: 60
optimizer: {name: adamw, learning_rate: 0.01}
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(folder: pathlib.Path, name: str, config: str, capsys: Captured, *more: str) -> None:
    (folder / f"{name}.yaml").write_text(config + COMMON)
    assert main(["train", f"{name}.yaml", *more]) == 0, capsys.readouterr().err
    capsys.readouterr()


def predicted(capsys: Captured, *arguments: str) -> list[dict[str, str]]:
    assert main(["predict", *arguments]) == 0, capsys.readouterr().err
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_predict_names_the_class_of_each_image_of_any_size(
    folder: pathlib.Path, capsys: Captured
) -> None:
    for label, colour in (("cat", (230, 40, 40)), ("dog", (20, 40, 230))):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            size = (10 + number, 12 + 2 * number)
            Image.new("RGB", size, colour).save(folder / "photos" / label / f"{number}.png")
    train(folder, "photos", PHOTOS, capsys, "epochs=8")
    (folder / "new" / "deep").mkdir(parents=True)
    Image.new("RGB", (30, 20), (230, 40, 40)).save(folder / "new" / "b.png")
    Image.new("RGB", (7, 9), (20, 40, 230)).save(folder / "new" / "deep" / "a.jpg")
    found = predicted(capsys, "runs/photos", "data.path=new")
    assert [(row["file"], row["class"]) for row in found] == [
        ("new/b.png", "cat"),
        ("new/deep/a.jpg", "dog"),
    ]
    assert list(found[0]) == ["file", "class", "p(cat)", "p(dog)"]
    (one,) = predicted(capsys, "runs/photos", "data.path=new/b.png")
    assert float(one["p(cat)"]) == pytest.approx(float(found[0]["p(cat)"]), rel=1e-6)
    (folder / "new" / "c.png").write_bytes(b"no image")
    assert main(["predict", "runs/photos", "data.path=new"]) == 1
    assert "new/c.png: expected an image that Pillow can read" in capsys.readouterr().err


def test_predict_reads_arrays_with_or_without_targets(
    folder: pathlib.Path, capsys: Captured
) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 3)).astype(np.float32)
    np.savez(folder / "train.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    train(folder, "arrays", ARRAYS, capsys, "epochs=20")
    np.savez(folder / "new.npz", x=x[:5])
    found = predicted(capsys, "runs/arrays", "data.path=new.npz")
    assert list(found[0]) == ["y", "p(0)", "p(1)"]
    assert [row["y"] for row in found] == [str(int(value > 0)) for value in x[:5, 0]]
    assert predicted(capsys, "runs/arrays", "data.path=train.npz")[:2] == found[:2]
    run = load_run("runs/arrays")
    expected = run.predict({"x": torch.from_numpy(x[:5])}).double().softmax(1)[:, 1]
    got = torch.tensor([float(row["p(1)"]) for row in found], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    np.savez(folder / "new.npz", x=x[:0])
    assert main(["predict", "runs/arrays", "data.path=new.npz"]) == 2
    assert "data.path: expected samples, got a file without samples" in capsys.readouterr().err
    np.savez(folder / "new.npz", x=x[:5, :2])
    assert main(["predict", "runs/arrays", "data.path=new.npz"]) == 2
    assert "expected an array 'x' of dtype and sample shape float32 (3,)" in capsys.readouterr().err


def test_predict_writes_a_column_for_each_number_of_a_vector(
    folder: pathlib.Path, capsys: Captured
) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(folder / "train.npz", x=x, y=x[:, :2])
    train(folder, "arrays", ARRAYS + "loss: mse\n", capsys)
    found = predicted(capsys, "runs/arrays", "data.path=train.npz")
    assert (len(found), list(found[0])) == (40, ["y.0", "y.1"])


def test_predict_and_sample_continue_a_text_character_by_character(
    folder: pathlib.Path, capsys: Captured
) -> None:
    (folder / "book.txt").write_text("abcdefgh\n" * 60)
    train(folder, "book", BOOK, capsys)
    (folder / "new.txt").write_text("abcdefgh\nabcdefgh\nab")
    found = predicted(capsys, "runs/book", "data.path=new.txt")
    assert list(found[0]) == ["character", "predicted", "p(predicted)"]
    assert "".join(row["character"] for row in found) == "bcdefgh\nabcdefgh\nab"
    hits = sum(row["character"] == row["predicted"] for row in found)
    assert hits > 15
    (folder / "strange.txt").write_text("abz")
    assert main(["predict", "runs/book", "data.path=strange.txt"]) == 2
    assert "expected a character of the training text, got 'z'" in capsys.readouterr().err

    def sampled(*arguments: str) -> str:
        assert main(["sample", "runs/book", *arguments]) == 0
        return capsys.readouterr().out

    greedy = sampled("abc", "--length", "12", "--temperature", "0")
    assert greedy == "abcdefgh\nabcdef\n"
    assert sampled("abc", "--length", "12", "--top-k", "1") == greedy
    drawn = [sampled("--length", "40", "--temperature", "9", "--seed", seed) for seed in "001"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 42  # the prompt is a line end, and print adds one
    assert main(["sample", "runs/book", "xyz"]) == 2
    assert "expected characters of the training text, got 'x'" in capsys.readouterr().err
    assert main(["sample", "runs/book", "a", "--temperature", "-1"]) == 2
    assert "temperature: expected a number of at least 0" in capsys.readouterr().err


def test_predict_refuses_a_model_without_logits_of_every_character(
    folder: pathlib.Path, capsys: Captured
) -> None:
    (folder / "book.txt").write_text("abcdefgh\n" * 60)
    (folder / "model.py").write_text(
        "import torch\n"
        "def model(): return torch.nn.EmbeddingBag(9, 9)\n"
        "def loss_fn(model, batch): return model(batch).square().mean()\n"
    )
    own = ["model={name: model.py:model}", "loss={name: model.py:loss_fn}", "max_steps=1"]
    train(folder, "book", BOOK, capsys, *own)
    (folder / "new.txt").write_text("abcdefgh\nabcdefgh\nab")
    assert main(["predict", "runs/book", "data.path=new.txt"]) == 2
    said = capsys.readouterr().err
    assert "model: expected logits (n, length, vocabulary) as output, got shape" in said


def test_sample_refuses_a_run_that_was_not_trained_on_a_text(
    folder: pathlib.Path, capsys: Captured
) -> None:
    x = np.zeros((8, 3), np.float32)
    np.savez(folder / "train.npz", x=x, y=np.zeros(8, np.int64))
    train(folder, "arrays", ARRAYS, capsys)
    assert main(["sample", "runs/arrays"]) == 2
    assert "data.name: expected a run on a text, got data: arrays" in capsys.readouterr().err
    assert json.loads((folder / "runs/arrays/data.json").read_text())["source"] == "arrays"
