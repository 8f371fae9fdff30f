"""Test the text classification example: its snippets, learning, picture, and configuration."""

from __future__ import annotations

import functools
import pathlib
import sysconfig

import pytest

from examples import text_classification
from ftrain.config import load
from ftrain.config.run import train
from ftrain.core import tree

CONFIG = pathlib.Path(__file__).parents[2] / "examples" / "configs" / "text_classification.yaml"
FEW = ("json", "html")


def test_text_classification_rows_are_bytes_of_source_files() -> None:
    found = text_classification.snippets(FEW)
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    scanner = (library / "json" / "scanner.py").read_bytes()
    rows = [bytes(row.tolist()) for row in found.train["tokens"]]
    assert scanner[:256] in rows
    cut = len(scanner) * 4 // 5
    held_out = [bytes(row.tolist()) for row in found.held_out["tokens"]]
    assert scanner[cut : cut + 256] in held_out
    assert not {*rows} & {*held_out}
    assert found.train["label"].bincount().tolist()[0] > 20
    assert found.facts == {"classes": 2}


def test_text_classification_example_learns_and_saves_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = text_classification.main(["--no-compile", "--epochs", "1", "--out", str(tmp_path)])
    assert accuracy > 0.4
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert f"{accuracy:.1%}" in said[-2]
    assert str(tmp_path / "confusion.png") in said[-1]


def test_text_classification_configuration_equals_the_script(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(text_classification.snippets, FEW)
    monkeypatch.setattr(text_classification, "snippets", few)
    monkeypatch.setattr(text_classification, "PACKAGES", FEW)
    by_hand = text_classification.train(tmp_path, epochs=2, compiled=False)
    quick = ("compile=false", "progress=false", "epochs=2", f"output_dir={tmp_path / 'run'}")
    result = train(load(CONFIG, [*quick, "data.packages=[json, html]"]))
    assert tree.digest(result.state) == tree.digest(by_hand.state)
    assert result.eval is not None
    assert by_hand.eval is not None
    assert result.eval.metrics == by_hand.eval.metrics
