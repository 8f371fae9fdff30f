"""Test which samples a configuration holds out: of the training file, of another file, none."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ftrain.config import ConfigError
from ftrain.data import sources
from tests.config.test_build import built, said
from tests.config.test_fitted import write


def test_held_out_file_is_searched_beside_the_configuration(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "t.csv", ["a", "y"], [(f"{n}", f"{2 * n}") for n in range(9)])
    write(tmp_path / "test.csv", ["y", "a"], [("1", "2"), ("3", "4")])
    model = {"name": "mlp", "inputs": 1, "outputs": 1}
    table = {"name": "csv", "path": "t.csv", "target": "y", "held_out": "test.csv"}
    parts = built(base=tmp_path, model=model, data=table, loss="mse")
    assert (len(parts.train.dataset["y"]), len(parts.held_out.dataset["y"])) == (9, 2)
    table["held_out"] = "tst.csv"
    message = said(tmp_path, model=model, data=table)
    assert "Did you mean" in message
    assert "held_out 'tst.csv' was searched beside" in message
    assert "data.held_out: expected a number of samples or a share of them, got 'test.csv'" in said(
        data={"name": "project.py:data", "held_out": "test.csv"}
    )
    assert "expected" in said(data={"name": "digits", "held_out": "test.csv"})
    assert (
        "data.fitted: expected no value, because the run passes fitted to csv. Remove fitted"
        in said(data={**table, "fitted": {}})
    )
    with pytest.raises(ConfigError, match="a share of them .*, or the name of a file, got '20%'"):
        built(data={"name": "digits", "held_out": "20%"})


def test_configuration_with_held_out_zero_trains_on_every_sample(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "t.csv", ["a", "y"], [(f"{n}", f"{2 * n}") for n in range(9)])
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 3), np.float32), y=np.zeros(9, np.float32))
    (tmp_path / "t.txt").write_text("to be or not to be")
    model = {"name": "mlp", "inputs": 1, "outputs": 1}
    for source in (
        {"name": "csv", "path": "t.csv", "target": "y"},
        {"name": "arrays", "path": "a.npz"},
        {"name": "text", "path": "t.txt", "context": 4},
        {"name": "project.py:pair"},
    ):
        for none in (0, 0.0):
            base = tmp_path if "path" in source else None
            options = {} if base is None else {"base": base}
            parts = built(model=model, data={**source, "held_out": none}, batch_size=4, **options)
            assert parts.held_out is None
            if source["name"] in ("csv", "arrays"):
                assert len(parts.train.dataset["y"]) == 9
    assert len(sources.text(tmp_path / "t.txt", 4, held_out=0).train) == 18 - 4
    assert "(0: none)" in said(data={"name": "digits", "held_out": -1})
