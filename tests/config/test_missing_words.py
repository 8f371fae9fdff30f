"""Test missing cells in columns of words, decimals of another kind, and several errors in a table."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.data import sources
from ftrain.testing import assert_same_bits
from tests.config.test_fitted import as_json, write

MARKERS = ["", "NA", "n/a", "NaN", "null", "?", " - "]


def cities(folder: pathlib.Path, cells: list[str]) -> pathlib.Path:
    """Write a table with `city`, a column of words, and a target."""
    rows = [(cell, str(row)) for row, cell in enumerate(cells)]
    return write(folder / "cities.csv", ["city", "y"], rows)


@pytest.mark.parametrize("marker", MARKERS)
def test_missing_cell_in_a_column_of_words_is_refused_unless_missing_word_is_set(
    marker: str, tmp_path: pathlib.Path
) -> None:
    table = cities(tmp_path, ["Oslo", "Rome", marker, "Oslo"])
    for missing in (None, 0, "mean"):
        with pytest.raises(
            DataError, match=r"line 4, column 'city': expected a word.*`missing_word"
        ):
            sources.csv(table, "y", table, missing=missing)
    found = sources.csv(table, "y", table, missing_word="unknown")
    assert found.facts["columns"] == ["city=Oslo", "city=Rome", "city=unknown"]
    assert found.train["x"].argmax(1).tolist() == [0, 1, 2, 0]
    found = sources.csv(table, "y", table, missing_word="Rome")
    assert found.train["x"].argmax(1).tolist() == [0, 1, 1, 0]


def test_cell_text_none_in_a_column_of_words_is_not_a_missing_value(tmp_path: pathlib.Path) -> None:
    table = cities(tmp_path, ["none", "attached", "none"])
    assert sources.csv(table, "y", table).facts["columns"] == ["city=attached", "city=none"]


def test_missing_cells_of_a_file_read_after_training_are_replaced_as_in_training_or_ignored(
    tmp_path: pathlib.Path,
) -> None:
    table = cities(tmp_path, ["Oslo", "", "Rome"])
    fitted = as_json(sources.csv(table, "y", table, missing_word="unknown").fitted)
    later = cities(tmp_path, MARKERS)
    x = sources.csv_inputs(later, "y", missing_word="unknown", fitted=fitted)
    assert x.tolist() == [[0.0, 0.0, 1.0]] * len(MARKERS)
    x = sources.csv_inputs(later, "y", unknown="ignore", fitted=fitted)
    assert x.tolist() == [[0.0, 0.0, 0.0]] * len(MARKERS)
    with pytest.raises(
        DataError, match="set `missing_word` to the word .* or set `unknown: ignore`"
    ):
        sources.csv_inputs(later, "y", fitted=fitted)


def test_cell_text_na_stays_a_category_if_an_earlier_run_fitted_it_as_one(
    tmp_path: pathlib.Path,
) -> None:
    table = cities(tmp_path, ["Oslo", "unknown", "Rome"])
    fitted = as_json(sources.csv(table, "y", table).fitted)
    fitted["columns"]["city"]["one_of"][2] = "NA"
    x = sources.csv_inputs(cities(tmp_path, ["NA", "Oslo"]), "y", fitted=fitted)
    assert x.argmax(1).tolist() == [2, 0]


def test_cell_text_na_in_a_target_column_is_a_class_only_if_classes_is_true(
    tmp_path: pathlib.Path,
) -> None:
    rows = [("1", "yes"), ("2", "NA"), ("3", "no")]
    table = write(tmp_path / "t.csv", ["a", "y"], rows)
    with pytest.raises(DataError, match="line 3, column 'y': .*'NA', .* set `classes: true`"):
        sources.csv(table, "y", table, missing_word="unknown")
    found = sources.csv(table, "y", table, classes=True)
    assert found.facts["names"] == ["NA", "no", "yes"]
    empty = write(tmp_path / "t.csv", ["a", "y"], [("1", "yes"), ("2", ""), ("3", "no")])
    for classes in (None, True):
        with pytest.raises(DataError, match="line 3, column 'y': expected a word, got ''. Delete"):
            sources.csv(empty, "y", empty, classes=classes)


def test_option_missing_word_refuses_a_blank(tmp_path: pathlib.Path) -> None:
    table = cities(tmp_path, ["Oslo", "", "Rome"])
    with pytest.raises(ValueError, match="missing_word: expected a word, got ' '"):
        sources.csv(table, "y", table, missing_word=" ")


def test_error_for_a_missing_number_suggests_the_mean(tmp_path: pathlib.Path) -> None:
    table = write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("", "3")])
    with pytest.raises(DataError, match="set `missing` to `mean`, or to the number"):
        sources.csv(table, "y", table)


def test_csv_source_raises_a_single_error_that_names_every_column_with_a_problem(
    tmp_path: pathlib.Path,
) -> None:
    """The problems are found in three steps: kinds of columns, cells, and later files."""
    rows = [(f"n{row}", "Oslo", str(row), f"{row}", "yes") for row in range(101)]
    rows[1] = ("n1", "", "1", "inf", "yes")
    rows[2] = ("n2", "Rome", "", "many", "")
    table = write(tmp_path / "t.csv", ["id", "city", "area", "rooms", "sold"], rows)
    with pytest.raises(DataError) as caught:
        sources.csv(table, "sold", table)
    lines = str(caught.value).splitlines()
    assert [line.split("column ")[1].split(":")[0] for line in lines] == [
        "'id'",
        "'city'",
        "'rooms'",
        "'sold'",
        "'area'",
    ]
    good = [("a", "Oslo", str(row), str(row), "yes") for row in range(4)]
    fitted = as_json(
        sources.csv(
            write(table, ["id", "city", "area", "rooms", "sold"], good), "sold", table
        ).fitted
    )
    bad = [("a", "", "", "many", "no")]
    with pytest.raises(DataError) as caught:
        sources.csv(
            write(table, ["id", "city", "area", "rooms", "sold"], bad), "sold", table, fitted=fitted
        )
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(DataError) as caught:
        sources.csv(table, "price", table, columns=["size", "city"])
    assert [line.split("column ")[1][:7] for line in str(caught.value).splitlines()] == [
        "'size',",
        "'price'",
    ]


def test_data_csv_raises_a_single_error_that_names_every_column_with_a_problem(
    tmp_path: pathlib.Path,
) -> None:
    table = write(tmp_path / "t.csv", ["a", "b", "c"], [("1", "", "x")])
    with pytest.raises(DataError, match="(?s)column 'b': .*\n.*column 'c': "):
        data.csv(table)
    with pytest.raises(DataError, match="(?s)a column 'd'.*\n.*a column 'e'"):
        data.csv(table, columns=["d"], target="e")


@pytest.mark.parametrize(("cell", "decimal", "other"), [("-0,{}4", ".", ","), ("0.{}4", ",", ".")])
@pytest.mark.parametrize("rows", [12, 150])
def test_numbers_with_another_decimal_separator_raise_instead_of_becoming_categories(
    cell: str, decimal: Any, other: Any, rows: int, tmp_path: pathlib.Path
) -> None:
    cells = [cell.format(row) for row in range(rows)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a;y", *(f"{one};{row}" for row, one in enumerate(cells))]))
    with pytest.raises(DataError, match=f"column 'a': .*`decimal: \"[{other}]\"`.* `drop`"):
        sources.csv(path, "y", path, decimal=decimal)
    right = sources.csv(path, "y", path, decimal=other)
    assert right.facts["features"] == 1
    fitted = as_json(right.fitted)
    with pytest.raises(DataError, match=f'expected a number, .*`decimal: "[{other}]"`'):
        sources.csv_inputs(path, "y", decimal=decimal, fitted=fitted)
    path.write_text("\n".join(["a;y", *(f"{row};{one}" for row, one in enumerate(cells))]))
    with pytest.raises(DataError, match="column 'y': .* set `classes: true`"):
        sources.csv(path, "y", path, decimal=decimal)
    assert_same_bits(
        sources.csv(path, "y", path, decimal=other).train["x"],
        sources.csv(path, "y", path, decimal=decimal, classes=True).train["x"],
    )
