"""Cells of a table that hold no number: empty, marked as missing, or words among numbers."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from ftrain.core.errors import DataError
from ftrain.data import sources
from ftrain.testing import assert_same_bits
from tests.config.test_build import built, said
from tests.config.test_fitted import as_json, write


@pytest.mark.parametrize(("missing", "shown"), [(0, 0.0), (-1.5, -1.5)])
def test_an_empty_cell_is_what_the_configuration_says(
    missing: float, shown: float, tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("", "3"), ("4", "5"), ("6", "7")])
    table = {"name": "csv", "path": "t.csv", "target": "y", "held_out": 1, "standardize": False}
    model = {"name": "mlp", "inputs": 1, "outputs": 1}
    message = said(tmp_path, model=model, data=table)
    assert "t.csv, line 3, column 'a': '' is empty" in message
    assert "data.missing: 0" in message
    table["missing"] = missing
    parts = built(base=tmp_path, model=model, data=table, batch_size=1, loss="mse")
    both = parts.train.dataset["x"], parts.held_out.dataset["x"]
    assert shown in torch.cat(both)


def test_what_says_that_there_is_no_number_is_an_empty_cell(tmp_path: pathlib.Path) -> None:
    """In the table that is learnt from, and in one that is read later; a word among words is a word."""
    markers = ["NA", "n/a", "N/A", "NaN", "nan", "null", "None", "?", " - ", ""]
    rows = [(f"{n}", "none" if n % 2 else "red", f"{n}") for n in range(12)]
    rows += [(marker, "red", "1") for marker in markers]
    table = write(tmp_path / "t.csv", ["a", "b", "y"], rows)
    with pytest.raises(
        DataError, match="line 14, column 'a': 'NA' stands for an empty cell: .*miss"
    ):
        sources.csv(table, target="y", held_out=table)
    found = sources.csv(table, target="y", held_out=table, missing=-7.0, standardize=False)
    assert found.train["x"][:, 0].tolist() == [*range(12), *[-7.0] * len(markers)]
    assert sources.csv(table, target="b", held_out=table, missing=0).facts["names"] == [
        "none",
        "red",
    ]
    other = write(tmp_path / "other.csv", ["a", "b", "y"], rows[12:])
    later = sources.csv(
        other, "y", other, missing=-7.0, standardize=False, fitted=as_json(found.fitted)
    )
    assert_same_bits(later.held_out["x"], found.train["x"][12:])


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (
            ["1", "2", "unknown"],
            {},
            r"line 4, column 'a': 'unknown' is not a number, as 2 of 3 cells",
        ),
        (
            ["1", "2", "unknown"],
            {},
            r"data.missing: 0; or name the columns .*data.columns: \[...\]",
        ),
        (
            ["1", "two", "NA"],
            {"missing": 0},
            "line 3, column 'a': 'two' is not a number, as 1 of 2",
        ),
        (["1", "31,000"], {}, "line 3, column 'a': '31,000' is a number with.*: write '31000'"),
        (["1,5", "2,75"], {}, r"line 2, column 'a': '1,5' is a number with a comma: write '1.5'"),
        (["$31,000", "$4.5"], {}, "line 2.* is a number with a unit, .*: write '31000'"),
        (["5", "12.5 %"], {"target": "a"}, "line 3.* is a number with a unit, .*: write '12.5'"),
        (
            ["31,000", "1,250,000.5"],
            {"target": "a"},
            "line 2, column 'a': '31,000' is a number with",
        ),
        (["1", "unknown"], {"target": "a"}, "'unknown' is not a number.* data.classes: true"),
        (
            ["1", "2", ""],
            {"target": "a", "missing": 0},
            "line 4, column 'a': '' is empty.*leave the r",
        ),
        (
            ["1", "2", "?"],
            {"target": "a", "missing": 0},
            "line 4.* '\\?' stands for an empty cell, and",
        ),
        (
            ["1", "2", "nan"],
            {"target": "a", "missing": 0},
            "line 4.* 'nan' stands for an empty cell",
        ),
        (
            ["1", "2", "inf"],
            {"target": "a", "missing": 0},
            "line 4.* 'inf' is not finite.* leave the row",
        ),
        (
            ["1", "2", "NA"],
            {"target": "a", "classes": True},
            "line 4.* 'NA' stands for an empty cell",
        ),
        (
            ["x", "y", ""],
            {"target": "a", "missing": 0},
            "line 4, column 'a': '' is empty, and what is",
        ),
    ],
)
def test_a_word_among_numbers_is_an_error(
    cells: list[str], options: dict[str, Any], expected: str, tmp_path: pathlib.Path
) -> None:
    rows = [(f'"{cell}"', f"{n}") for n, cell in enumerate(cells)]
    table = write(tmp_path / "t.csv", ["a", "b"], rows)
    with pytest.raises(DataError, match=expected):
        sources.csv(table, **{"target": "b", "held_out": table, **options})


def test_words_among_which_some_are_numbers(tmp_path: pathlib.Path) -> None:
    cells = ["S", "M", "38", "L", "40", "XL"]
    rows = [(cell, f"{n}") for n, cell in enumerate(cells)]
    table = write(tmp_path / "t.csv", ["a", "b"], rows)
    names = sources.csv(table, target="a", held_out=table).facts["names"]
    assert names == ["38", "40", "L", "M", "S", "XL"]
    table = write(tmp_path / "t.csv", ["a", "b"], rows[2:5])
    meant = sources.csv(table, target="a", held_out=table, classes=True)
    assert meant.facts["names"] == ["38", "40", "L"]


def test_a_cell_without_a_number_may_be_nan(tmp_path: pathlib.Path) -> None:
    """For models that know what to do with it: the others are scaled by what there is."""
    table = write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("", "3"), ("3", "5")])
    found = sources.csv(table, target="y", held_out=table, missing=float("nan"))
    assert found.train["x"].tolist()[0::2] == [[-1.0], [1.0]]
    assert found.train["x"][1].isnan()


@pytest.mark.parametrize("standardize", [True, False])
def test_the_mean_of_the_training_rows_stands_for_an_empty_cell(
    standardize: bool, tmp_path: pathlib.Path
) -> None:
    rows = [("1", "red", "2"), ("NA", "red", "3"), ("4", "blue", "5"), ("7", "red", "7")]
    table = write(tmp_path / "t.csv", ["a", "b", "y"], rows)
    options: dict[str, Any] = {"target": "y", "missing": "mean", "standardize": standardize}
    first = sources.csv(table, held_out=table, **options)
    assert first.train["x"][1, 0] == (0.0 if standardize else 4.0)
    assert first.fitted["columns"]["a"]["mean"] == 4.0
    assert first.fitted["columns"]["b"] == {"one_of": ["blue", "red"]}
    fitted = as_json(first.fitted)
    other = write(tmp_path / "o.csv", ["y", "b", "a"], [("2", "red", "1"), ("3", "red", "")])
    found = sources.csv(other, held_out=other, fitted=fitted, **options)
    assert_same_bits(found.held_out, {k: v[:2] for k, v in first.train.items()})
    again = sources.csv(table, held_out=2, fitted=None, **options)
    assert_same_bits(
        again[:2], sources.csv(table, held_out=2, fitted=as_json(again.fitted), **options)[:2]
    )
    without = sources.csv(table, "y", table, missing=0, standardize=False).fitted
    with pytest.raises(ValueError, match="missing is 'mean', and the run has learnt none of 'a'"):
        sources.csv(table, "y", table, missing="mean", standardize=False, fitted=without)
    empty = write(tmp_path / "e.csv", ["a", "y"], [("NA", "2"), ("", "3")])
    with pytest.raises(DataError, match="the column 'a' has no number in the training rows"):
        sources.csv(empty, held_out=empty, **options)
    built(
        base=tmp_path,
        model={"name": "mlp", "inputs": 3, "outputs": 1},
        data={"name": "csv", "path": "t.csv", **options, "held_out": 0},
        loss="mse",
        batch_size=2,
    )
