"""Test the reading of tables, and errors that name line, column and cell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.testing import assert_same_bits


def table(tmp_path, content, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return data.csv(path, **options)


def test_table_reads_floats_integers_and_categories(tmp_path):
    content = '\ufeffa, b,"c ""q"""\r\n1,2.5,x\r\n\r\n-3,1e2,"y"\r\n'
    found = table(tmp_path, content, integers=["a"], categories={'c "q"': ["y", "x"]})
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [1, -3],
        "b": [2.5, 100.0],
        'c "q"': [1, 0],
    }
    assert [values.dtype for values in found.values()] == [torch.int64, torch.float32, torch.int64]


def test_table_with_target_stacks_the_other_columns(tmp_path):
    found = table(tmp_path, "1;2;3\n4;5;6\n", header=False, delimiter=";", target="1")
    assert found["x"].tolist() == [[1, 3], [4, 6]]
    assert found["y"].tolist() == [2, 5]
    found = table(tmp_path, "a,b,c\n1,2,word\n", columns=["a"], target="b", integers=["b"])
    assert (found["x"].tolist(), found["y"].tolist()) == ([[1]], [2])
    found = table(tmp_path, "a,b,c\n1,2,3\n", columns=["c", "a"])
    assert list(found) == ["c", "a"]


def test_missing_numbers_are_replaced_by_the_given_number(tmp_path):
    found = table(tmp_path, "a,b\n1,\n,2\n", missing=-1.0, integers=["b"])
    assert (found["a"].tolist(), found["b"].tolist()) == ([1, -1], [-1, 2])
    found = table(tmp_path, "a,b\n1,NA\n nan,2\n?,3\n", missing=-1.0, integers=["b"])
    assert (found["a"].tolist(), found["b"].tolist()) == ([1, -1, -1], [-1, 2, 3])


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_table_reads_the_nearest_float32_of_each_number(tmp_path_factory, numbers):
    content = "a\n" + "".join(f"{number!r}\n" for number in numbers)
    found = table(tmp_path_factory.mktemp("csv"), content)["a"]
    assert_same_bits(found, torch.tensor(numbers, dtype=torch.float32))


def test_table_reads_cells_and_files_larger_than_a_block_of_pyarrow(tmp_path):
    word = "x" * 1_500_000
    found = table(tmp_path, f'a,b\n"{word}",2\n', categories={"a": [word]})
    assert {name: values.tolist() for name, values in found.items()} == {"a": [0], "b": [2.0]}
    with pytest.raises(DataError, match="line 3, column 'b': expected a number, got 'x'"):
        table(tmp_path, f'a,b\n"{word}",2\n1,x\n', categories={"a": [word, "1"]})
    with pytest.raises(DataError, match="line 300002: expected 2 cells, got 3"):
        table(tmp_path, "a,b\n" + "1.5,2\n" * 300_000 + "1,2,3\n")


def test_table_reads_integers_of_64_bits(tmp_path):
    found = table(tmp_path, f"a\n{-(2**63)}\n{2**63 - 1}\n+3\n", integers=["a"])
    assert found["a"].tolist() == [-(2**63), 2**63 - 1, 3]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            "a,b\n1,2\n3,four\n",
            {},
            r"line 3, column 'b': expected a number, got 'four'.* `categories`",
        ),
        (
            'a,b\n"x\ny",2\n1,z\n',
            {"categories": {"a": ["x\ny", "1"]}},
            "line 4, column 'b': expected a number, got 'z'",
        ),
        ("a,b\n1,\n", {}, "line 2, column 'b': expected a number, got ''. .* set `missing`"),
        (
            "a,b\n1,?\n",
            {},
            "line 2, column 'b': expected a number, got '\\?', which stands for .* set `missing`",
        ),
        (
            "a,b\n1,\n",
            {"target": "b", "missing": 0},
            "got ''. Delete the row: a missing target is never replaced",
        ),
        ('a,b\n1,"2,5"\n', {}, "line 2, column 'b': expected a number, got '2,5'"),
        ("a,b\n1,2\n1,2,3\n", {}, "line 3: expected 2 cells, got 3"),
        ("a;b\n1,5;2\n", {}, "line 2, column 'a': .* got '1,5'. Set decimal to ','"),
        ("a:b\n1,5:2\n", {}, "line 2: expected 1 cells, got 2.*delimiter"),
        ("a\n1e39\n", {}, "line 2, column 'a': expected a number within float32, got '1e39'"),
        (
            "a\n1.5\n",
            {"integers": ["a"]},
            "line 2, column 'a': expected a 64-bit integer, got '1.5'",
        ),
        (f"a\n{2**63}\n", {"integers": ["a"]}, "expected a 64-bit integer"),
        ("a\n\n ,\n", {}, "line 3: expected 1 cells, got 2"),
        (
            "a\nx\n",
            {"categories": {"a": ["y"]}},
            r"line 2, column 'a': expected one of .*\['y'\], got 'x'",
        ),
        ("a,b\n1,2\n", {"target": "c"}, "expected a column 'c', got the columns 'a', 'b'"),
        ("a,b\n1,2\n", {"columns": ["d"]}, "expected a column 'd', got the columns 'a', 'b'"),
        ("a\n1\n", {"target": "a"}, "expected columns besides the target 'a', got none"),
        ("a,a\n1,2\n", {}, "line 1: expected unique column names, got 'a' twice"),
        ("a,b\n", {}, "expected rows below the header, got none"),
        ("", {"header": False}, "expected a CSV table, got an error: Empty CSV"),
        ("a,b\n1,nan\n", {}, "line 2, column 'b': expected a number, got 'nan', which stands for"),
        ("a\n1_000\n", {}, "line 2, column 'a': expected a number, got '1_000'"),
        ('a\n"open\n', {}, "line 2: expected a closing quote, got the end of the file"),
        ('a,b\n1,2\n1,"open\n3,4', {}, "line 3: expected a closing quote"),
        (b"a\n\xff\n", {}, "expected text in UTF-8.*iconv"),
        (b"\xff\n1\n", {}, "expected text in UTF-8.*iconv"),
    ],
)
def test_error_for_an_unreadable_table_names_line_column_and_cell(
    tmp_path, content, options, message
):
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, content, **options)
    assert str(tmp_path / "t.csv") in str(caught.value)
