"""Test that example configurations train to the same bytes as the example scripts."""

from __future__ import annotations

import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from examples import char_gpt, digits
from ftrain import data
from ftrain.config import load
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.loop import FitResult
from ftrain.tasks.models import GPT

CONFIGS = pathlib.Path(__file__).parents[2] / "examples" / "configs"


def by_configuration(name: str, folder: pathlib.Path, *overrides: str) -> FitResult:
    quick = ("compile=false", "progress=false", f"output_dir={folder}")
    return train(load(CONFIGS / name, [*quick, *overrides]))


def default(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def test_digits_configuration_equals_the_digits_script(tmp_path: pathlib.Path) -> None:
    assert load(CONFIGS / "digits.yaml").epochs == default(digits.train, "epochs")
    state, rows = digits.train(epochs=2, compiled=False)
    result = by_configuration("digits.yaml", tmp_path, "epochs=2")
    assert tree.digest(result.state) == tree.digest(state)
    for row, theirs in zip(rows, result.history, strict=True):
        assert (row["split"], row["step"]) == (theirs.split, theirs.step)
        for name in ("loss", "accuracy"):  # sums in float64 there: measured 1e-7
            assert row[name] == pytest.approx(theirs.metrics[name], rel=1e-6)


def test_char_gpt_configuration_equals_the_char_gpt_script(tmp_path: pathlib.Path) -> None:
    assert load(CONFIGS / "char_gpt.yaml").max_steps == default(char_gpt.train, "steps")
    text = data.standard_library()
    model = functools.partial(GPT, text.vocabulary)
    state, rows = char_gpt.train(model, text, steps=20, compiled=False)
    result = by_configuration("char_gpt.yaml", tmp_path, "max_steps=20")
    (sample,) = (tmp_path / "samples").iterdir()
    assert (sample.name, len(sample.read_text())) == ("step-00000020.txt", 301)
    assert tree.digest(result.state) == tree.digest(state)
    assert result.eval is not None
    assert rows[-1]["loss"] == pytest.approx(result.eval.loss, rel=1e-6)
