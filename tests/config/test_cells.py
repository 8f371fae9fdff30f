"""Test table cells that are not numbers: empty, marked as missing, or words."""

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
def test_empty_cell_is_refused_unless_a_fill_value_is_given(
    missing: float, shown: float, tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("", "3"), ("4", "5"), ("6", "7")])
    table = {"name": "csv", "path": "t.csv", "target": "y", "held_out": 1, "standardize": False}
    model = {"name": "mlp", "inputs": 1, "outputs": 1}
    message = said(tmp_path, model=model, data=table)
    assert "t.csv, line 3, column 'a': expected a number, got ''" in message
    assert "set `missing`" in message
    table["missing"] = missing
    parts = built(base=tmp_path, model=model, data=table, batch_size=1, loss="mse")
    both = parts.train.dataset["x"], parts.held_out.dataset["x"]
    assert shown in torch.cat(both)


def test_cells_such_as_na_count_as_missing_numbers(tmp_path: pathlib.Path) -> None:
    """The markers count as missing in training and later tables, except in columns of words."""
    markers = ["NA", "n/a", "N/A", "NaN", "nan", "null", "None", "?", " - ", ""]
    rows = [(f"{n}", "none" if n % 2 else "red", f"{n}") for n in range(12)]
    rows += [(marker, "red", "1") for marker in markers]
    table = write(tmp_path / "t.csv", ["a", "b", "y"], rows)
    with pytest.raises(
        DataError, match="line 14, column 'a': expected a number, got 'NA', which .*miss"
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
            "line 4, column 'a': expected a number, as in 2 of the 3 cells",
        ),
        (["1", "2", "unknown"], {}, "got 'unknown'. Correct it, or leave .* set `missing`"),
        (
            ["1", "two", "NA"],
            {"missing": 0},
            "line 3, column 'a': .* in 1 of the 2 cells .* got 'two'",
        ),
        (["1", "31,000"], {}, "line 3, column 'a': expected a number, .* got '31,000'"),
        (
            ["5", "12.5 %"],
            {"target": "a"},
            "line 3, column 'a': expected a number, .* got '12.5 %'",
        ),
        (["1", "unknown"], {"target": "a"}, "got 'unknown'.* `classes: true`"),
        (
            ["1", "2", ""],
            {"target": "a", "missing": 0},
            "line 4, column 'a': .* got ''. Delete the row",
        ),
        (
            ["1", "2", "?"],
            {"target": "a", "missing": 0},
            "line 4.* got '\\?', which stands for a miss",
        ),
        (
            ["1", "2", "nan"],
            {"target": "a", "missing": 0},
            "line 4.* got 'nan', which stands for a miss",
        ),
        (["1", "2", "inf"], {"target": "a", "missing": 0}, "line 4.*a finite number, got 'inf'"),
        (["1", "2", "NA"], {"target": "a", "classes": True}, "line 4.* got 'NA', which stands for"),
        (
            ["x", "y", ""],
            {"target": "a", "missing": 0},
            "line 4, column 'a': expected a word, got ''",
        ),
    ],
)
def test_word_in_a_column_of_numbers_is_refused(
    cells: list[str], options: dict[str, Any], expected: str, tmp_path: pathlib.Path
) -> None:
    rows = [(f'"{cell}"', f"{n}") for n, cell in enumerate(cells)]
    table = write(tmp_path / "t.csv", ["a", "b"], rows)
    with pytest.raises(DataError, match=expected):
        sources.csv(table, **{"target": "b", "held_out": table, **options})


def test_column_with_mostly_words_has_a_class_for_each_distinct_cell(
    tmp_path: pathlib.Path,
) -> None:
    cells = ["S", "M", "38", "L", "40", "XL"]
    rows = [(cell, f"{n}") for n, cell in enumerate(cells)]
    table = write(tmp_path / "t.csv", ["a", "b"], rows)
    names = sources.csv(table, target="a", held_out=table).facts["names"]
    assert names == ["38", "40", "L", "M", "S", "XL"]
    table = write(tmp_path / "t.csv", ["a", "b"], rows[2:5])
    meant = sources.csv(table, target="a", held_out=table, classes=True)
    assert meant.facts["names"] == ["38", "40", "L"]


def test_fill_value_nan_keeps_empty_cells_as_nan_and_scales_the_other_cells(
    tmp_path: pathlib.Path,
) -> None:
    table = write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("", "3"), ("3", "5")])
    found = sources.csv(table, target="y", held_out=table, missing=float("nan"))
    assert found.train["x"].tolist()[0::2] == [[-1.0], [1.0]]
    assert found.train["x"][1].isnan()


@pytest.mark.parametrize("standardize", [True, False])
def test_fill_value_mean_fills_empty_cells_with_the_mean_of_the_training_rows(
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
    with pytest.raises(ValueError, match="missing: expected a mean of 'a' fitted by the run"):
        sources.csv(table, "y", table, missing="mean", standardize=False, fitted=without)
    empty = write(tmp_path / "e.csv", ["a", "y"], [("NA", "2"), ("", "3")])
    with pytest.raises(DataError, match="column 'a': expected a number in the training rows"):
        sources.csv(empty, held_out=empty, **options)
    built(
        base=tmp_path,
        model={"name": "mlp", "inputs": 3, "outputs": 1},
        data={"name": "csv", "path": "t.csv", **options, "held_out": 0},
        loss="mse",
        batch_size=2,
    )
