"""Test options of tables in runs: dropped columns, unknown words, dates, decimals and encodings."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from ftrain.cli import main
from ftrain.config import load
from ftrain.config.run import train
from ftrain.core.errors import DataError
from ftrain.data import sources
from ftrain.testing import assert_same_bits
from tests.config.test_fitted import as_json, write


def test_dropped_columns_are_not_features(tmp_path: pathlib.Path) -> None:
    rows = [(f"{n}", f"name {n:03}", f"{n % 7}", f"{n % 3}") for n in range(120)]
    table = write(tmp_path / "t.csv", ["id", "name", "a", "y"], rows)
    found = sources.csv(table, "y", table, drop=["id", "name"])
    assert found.facts["columns"] == ["a"]
    assert_same_bits(found[:2], sources.csv(table, "y", table, columns=["a"])[:2])
    other = write(tmp_path / "o.csv", ["a", "y"], [row[2:] for row in rows])
    again = sources.csv(other, "y", other, drop=["id", "name"], fitted=as_json(found.fitted))
    assert_same_bits(again.held_out, found.held_out)
    with pytest.raises(DataError, match="expected a column 'ident', .*"):
        sources.csv(table, "y", table, drop=["ident"])
    with pytest.raises(ValueError, match="columns, drop: expected at most one of them, got both"):
        sources.csv(table, "y", table, columns=["a"], drop=["id"])
    with pytest.raises(DataError, match="expected columns besides the target"):
        sources.csv(table, "y", table, drop=["id", "name", "a"])


def test_errors_about_a_whole_table_name_its_file(tmp_path: pathlib.Path) -> None:
    table = write(tmp_path / "t.csv", ["a", "y"], [("1", "2"), ("3", "4")])
    with pytest.raises(DataError, match=r"t\.csv: held_out=5 of 2 samples"):
        sources.csv(table, "y", 5)
    large = write(tmp_path / "large.csv", ["a", "y"], [("1e300", "2"), ("3", "4")])
    with pytest.raises(DataError, match=r"large\.csv, column 'a': expected numbers within float32"):
        sources.csv(large, "y", large, standardize=False)
    with pytest.raises(DataError, match=r"large\.csv, column 'a': expected numbers within float32"):
        sources.csv(table, "y", large, standardize=False)


def test_words_absent_from_training_rows_are_refused_or_encoded_as_zeros(
    tmp_path: pathlib.Path,
) -> None:
    table = write(tmp_path / "t.csv", ["kind", "y"], [("cat", "a"), ("dog", "b")] * 3)
    fitted = as_json(sources.csv(table, "y", table).fitted)
    other = write(tmp_path / "o.csv", ["kind", "y"], [("cow", "a"), ("dog", "b")])
    with pytest.raises(DataError, match="got 'cow'. Correct it, .*or set `unknown: ignore`"):
        sources.csv(other, "y", other, fitted=fitted)
    found = sources.csv(other, "y", other, unknown="ignore", fitted=fitted)
    assert found.held_out["x"].tolist() == [[0, 0], [0, 1]]
    inputs = sources.csv_inputs(other, "y", unknown="ignore", fitted=fitted)
    assert_same_bits(inputs, found.held_out["x"])
    strange = write(tmp_path / "s.csv", ["kind", "y"], [("cat", "c")])
    with pytest.raises(DataError, match="column 'y': expected one of the categories .* got 'c'"):
        sources.csv(strange, "y", strange, unknown="ignore", fitted=fitted)


DAYS = ["1970-01-01", "1970-01-02", "2000-02-29", "1969-12-31", "2024-01-31"]
NUMBERS = [0, 1, 11016, -1, 19753]


@pytest.mark.parametrize(
    ("cells", "dates", "expected"),
    [
        (DAYS, ["when"], NUMBERS),
        (
            [".".join(reversed(day.split("-"))) for day in DAYS],
            {"when": "%d.%m.%Y"},
            NUMBERS,
        ),
        (["1970-01-01T12:00", "1970-01-02 06:00:00", "1970-01-01T02:00+02:00"], ["when"], None),
    ],
)
def test_columns_of_dates_are_read_as_numbers_of_days(
    tmp_path: pathlib.Path, cells: list[str], dates: Any, expected: list[float] | None
) -> None:
    table = write(tmp_path / "t.csv", ["when", "y"], [(cell, "1") for cell in cells])
    options: dict[str, Any] = {"standardize": False, "dates": dates}
    found = sources.csv(table, "y", table, **options)
    assert found.train["x"][:, 0].tolist() == (expected or [0.5, 1.25, 0])
    scaled = sources.csv(table, "y", table, dates=dates)
    assert_same_bits(scaled.train["x"].mean(0).abs() < 1e-6, torch.tensor([True]))
    again = sources.csv(table, "y", table, dates=dates, fitted=as_json(scaled.fitted))
    assert_same_bits(again.train, scaled.train)


@pytest.mark.parametrize("cell", ["2024-02-31", "31.01.2024", "2024-01-31x", "soon", "12"])
def test_cell_that_is_not_a_date_is_refused(tmp_path: pathlib.Path, cell: str) -> None:
    rows = [("2024-01-31", "1"), (cell, "2")]
    table = write(tmp_path / "t.csv", ["when", "y"], rows)
    with pytest.raises(DataError, match="line 3, column 'when': expected a date as in 2024-01-31"):
        sources.csv(table, "y", table, dates=["when"])


def test_missing_dates_are_filled_like_missing_numbers(tmp_path: pathlib.Path) -> None:
    rows = [("1970-01-03", "1"), ("", "2"), ("1970-01-05", "3")]
    table = write(tmp_path / "t.csv", ["when", "y"], rows)
    with pytest.raises(DataError, match="line 3, column 'when': expected a date .* set `missing`"):
        sources.csv(table, "y", table, dates=["when"])
    options: dict[str, Any] = {"dates": ["when"], "standardize": False}
    found = sources.csv(table, "y", table, missing="mean", **options)
    assert found.train["x"][:, 0].tolist() == [2, 3, 4]


def test_option_dates_refuses_columns_that_are_not_features(tmp_path: pathlib.Path) -> None:
    table = write(tmp_path / "t.csv", ["when", "y"], [("2024-01-31", "1")])
    for name, got in (("y", "the target, 'y'"), ("then", "another name, 'then'")):
        with pytest.raises(ValueError, match=f"dates: expected feature columns, got {got}"):
            sources.csv(table, "y", table, dates=[name])
    many = write(
        tmp_path / "m.csv",
        ["when", "y"],
        [(f"2024-{m:02}-{d:02}", "1") for m in range(1, 8) for d in range(1, 29)],
    )
    with pytest.raises(DataError, match="'when': expected at most 100 .* list it in `dates`"):
        sources.csv(many, "y", many)


def test_run_on_a_table_with_semicolons_and_decimal_commas_trains_evaluates_and_predicts(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Semicolons, decimal commas, Latin-1, dates, a row number, and class numbers as `1,0`."""
    rows = [
        f"{n};{n % 7},5;{n % 28 + 1:02}.03.2024;{'Köln' if n % 2 else 'Zürich'};{n % 2},0"
        for n in range(60)
    ]
    content = "Nr;Größe;Tag;Ort;Klasse\n" + "\n".join(rows) + "\n"
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    unseen = content.replace("Zürich", "Bern")
    (tmp_path / "new.csv").write_bytes(unseen.encode("latin-1"))
    configuration = {
        "model": {"name": "mlp", "inputs": "${data.features}", "outputs": "${data.classes}"},
        "data": {
            "name": "csv",
            "path": str(tmp_path / "t.csv"),
            "target": "Klasse",
            "classes": True,
            "encoding": "latin-1",
            "decimal": ",",
            "drop": ["Nr"],
            "dates": {"Tag": "%d.%m.%Y"},
            "unknown": "ignore",
        },
        "epochs": 2,
        "batch_size": 8,
        "compile": False,
        "progress": False,
        "output_dir": str(tmp_path / "run"),
    }
    assert train(load(configuration)).status == "completed"
    run = str(tmp_path / "run")
    assert main(["eval", run, f"data.path={tmp_path / 'new.csv'}"]) == 0
    capsys.readouterr()
    assert main(["predict", run, f"data.path={tmp_path / 'new.csv'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 61
