"""Test that example configurations train to the same bytes as the example scripts."""

from __future__ import annotations

import functools
import inspect
import pathlib
import shutil
import sysconfig
from collections.abc import Callable
from typing import Any

import pytest

from examples import char_gpt, digits, retrieval
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


def test_retrieval_configuration_equals_the_retrieval_script(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss in chunks, named by a configuration; of the library, modules of one file alone."""
    library = tmp_path / "library"
    library.mkdir()
    for module in pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"):
        shutil.copy(module, library)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    config = load(CONFIGS / "retrieval.yaml")
    assert config.max_steps == default(retrieval.train, "steps")
    assert config.batch_size == default(retrieval.train, "batch_size")
    state, rows = retrieval.train(*retrieval.pairs(), steps=2, batch_size=200)
    result = by_configuration("retrieval.yaml", tmp_path / "run", "max_steps=2", "batch_size=200")
    assert tree.digest(result.state) == tree.digest(state)
    assert result.eval is not None
    for name in ("loss", "recall_at_1", "recall_at_10", "mrr"):
        assert rows[-1][name] == pytest.approx(result.eval.metrics[name], rel=1e-6)
