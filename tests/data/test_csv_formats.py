"""Test formats of CSV files: delimiters, encodings, decimal characters, long cells and wide tables."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain import data
from ftrain.core.errors import DataError
from tests.data.test_table import table


def lists(found: dict[str, Any]) -> dict[str, Any]:
    return {name: values.tolist() for name, values in found.items()}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_delimiter_is_guessed(tmp_path: pathlib.Path, delimiter: str, header: bool) -> None:
    rows = ["a,b,c", "1,2,3", '"4",5,6'] if header else ["1,2,3", "4,5,6"]
    content = "\n".join(rows).replace(",", delimiter) + "\n"
    names = ["a", "b", "c"] if header else ["0", "1", "2"]
    expected = dict(zip(names, ([1, 4], [2, 5], [3, 6]), strict=True))
    assert lists(table(tmp_path, content, header=header)) == expected


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a;b;c,d\n1;2;3\n", ["a", "b", "c,d"]),
        ("a,b;c;d\n1,2\n", ["a", "b;c;d"]),
        ('"a;b;c",d\n1,2\n', ["a;b;c", "d"]),
        ("a\n1\n", ["a"]),
        ("a,b\n1,2\n", ["a", "b"]),
        ("a;b\n1,5;2,5\n", ["a", "b"]),
    ],
)
def test_guessed_delimiter_splits_the_first_rows_into_equal_numbers_of_cells(
    tmp_path: pathlib.Path, content: str, names: list[str]
) -> None:
    assert list(table(tmp_path, content, decimal=",")) == names


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=3), min_size=1, max_size=9),
    st.sampled_from(",;\t|"),
)
def test_table_with_a_guessed_delimiter_equals_that_with_the_given_delimiter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], delimiter: str
) -> None:
    content = "\n".join(delimiter.join(map(str, row)) for row in [["x", "y", "z"], *rows]) + "\n"
    folder = tmp_path_factory.mktemp("csv")
    assert lists(table(folder, content)) == lists(table(folder, content, delimiter=delimiter))


def test_csv_with_decimal_comma_reads_numbers_and_refuses_decimal_points(
    tmp_path: pathlib.Path,
) -> None:
    found = table(tmp_path, "a;b\n1,5;-2e3\n,5;+3\n", decimal=",")
    assert lists(found) == {"a": [1.5, 0.5], "b": [-2000, 3]}
    with pytest.raises(DataError, match=r"line 2, column 'a': expected a number, got '1\.000'"):
        table(tmp_path, "a;b\n1.000;2\n", decimal=",")
    with pytest.raises(DataError, match=r"expected a number, got '1\.000,5'"):
        table(tmp_path, "a;b\n1.000,5;2\n", decimal=",")
    with pytest.raises(DataError, match=r"got '1,5'. Set decimal to ','"):
        table(tmp_path, "a;b\n1,5;2\n")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8", "UTF8", "utf-8-sig"])
def test_csv_decodes_column_names_and_cells_by_the_encoding_option(
    tmp_path: pathlib.Path, encoding: str
) -> None:
    content = "Größe,Ort\n1,Zürich\n2,Köln\n".encode(encoding)
    found = table(tmp_path, content, encoding=encoding, categories={"Ort": ["Köln", "Zürich"]})
    assert lists(found) == {"Größe": [1, 2], "Ort": [1, 0]}
    with pytest.raises(DataError, match="line 3, column 'Ort': expected one of .* got 'Köln'"):
        table(tmp_path, content, encoding=encoding, categories={"Ort": ["Zürich"]})


@pytest.mark.parametrize(
    "content", ["Größe\n1\n".encode("latin-1"), "a,b\n1,2\nö,2,3\n".encode("latin-1")]
)
def test_file_in_another_encoding_raises_and_names_the_option(
    tmp_path: pathlib.Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        DataError, match="expected text in UTF-8.*with `encoding`, such as latin-1[.]$"
    ):
        table(tmp_path, content)
    with pytest.raises(DataError, match="expected text in ascii.*`encoding`"):
        table(tmp_path, content, encoding="ascii")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("encoding", "utf-9"),
        ("encoding", "rot13"),
        ("encoding", ""),
        ("delimiter", ""),
        ("delimiter", ";;"),
        ("delimiter", '"'),
        ("delimiter", "é"),
        ("decimal", ";"),
        ("decimal", ""),
    ],
)
def test_csv_refuses_an_invalid_format(tmp_path: pathlib.Path, option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected") as caught:
        table(tmp_path, "a\n1\n", **{option: value})
    assert not isinstance(caught.value, DataError)


def test_delimiter_at_the_end_of_lines_makes_no_column(tmp_path: pathlib.Path) -> None:
    assert lists(table(tmp_path, "a,b,\n1,2,\n3,4, \n")) == {"a": [1, 3], "b": [2, 4]}
    with pytest.raises(DataError, match="got the columns 'a', 'b'[.] Write one of these names[.]$"):
        table(tmp_path, "a,b,\n1,2,\n", columns=["zzz"])
    with pytest.raises(DataError, match="column '': expected a number, got 'x'"):
        table(tmp_path, "a,\n1,x\n")


def test_error_messages_are_short_and_printable_for_any_cell(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError) as caught:
        table(tmp_path, "a\n" + "x" * 200_000 + "\n")
    assert len(str(caught.value)) < 500
    names = ",".join(f"column {i}" for i in range(1000))
    with pytest.raises(
        DataError, match=r"'column 19' and 980 more\. Did you mean 'column 9'\?"
    ) as caught:
        table(tmp_path, f"{names}\n{'1,' * 999}1\n", columns=["colum 9"])
    assert len(str(caught.value)) < 1000


def test_time_to_read_a_table_grows_linearly_with_its_columns(tmp_path: pathlib.Path) -> None:
    def seconds(columns: int) -> float:
        names = ",".join(f"c{i}" for i in range(columns))
        (tmp_path / "wide.csv").write_text(f"{names}\n" + f"{'1.5,' * (columns - 1)}2\n" * 3)
        began = time.process_time()
        assert len(data.csv(tmp_path / "wide.csv")) == columns
        return time.process_time() - began

    seconds(10)
    # 16 times the columns took 60 times as long when each name was looked up in a list.
    wide, narrow = (min(seconds(columns) for _ in range(3)) for columns in (16_000, 1000))
    assert wide < 32 * max(narrow, 0.01)
