"""Reader of CSV files as columns of numbers, with pyarrow.

Read next: `sources/table.py`, which scales the columns for a run.
"""

from __future__ import annotations

import csv as python_csv
import dataclasses
import importlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, existing, not_utf8

__all__ = ["Column", "Table", "csv", "is_missing", "is_number"]

#: Cells of a column of numbers that stand for a missing number, in upper or lower case.
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")

#: A number, for Python and for RE2.
_NUMBER = r"^[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?i:inf|infinity|nan))$"


def csv(
    path: PathLike,
    *,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    integers: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    missing: float | None = None,
    delimiter: str = ",",
    header: bool = True,
) -> dict[str, Tensor]:
    """Read the columns of a CSV file as tensors.

    A number has a decimal point and may have an exponent; separators of thousands and units are refused.

    Args:
        path: the file, in UTF-8; cells may be quoted.
        target: the column to predict.
        columns: which columns to read, in this order; default: all.
        integers: columns to read as int64.
        categories: for a column of words, the words; a cell becomes its word's place in the list, int64.
        missing: the number that replaces an empty cell of a column of numbers, and `NA`, `n/a`, `nan`,
            `null`, `none`, `?` and `-`; the target is never filled in. Default: all of these are errors.
        delimiter: the separator between cells, such as `"\\t"` or `";"`.
        header: True if the first line names the columns; otherwise they are named "0", "1", ...

    Returns:
        float32 `(n,)` by column, or int64 where `integers` or `categories` say so. With a target: `x`,
        float32 `(n, columns)`, the other columns side by side, and `y`, the target `(n,)`.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a cell is not a number, a row has another number of cells than the header, a column is
            missing; the message names file, line, column and remedy.
        ImportError: pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "pets.csv").write_text("weight,age,kind\\n4.5,2,cat\\n31.0,5,dog\\n")
        >>> csv(folder / "pets.csv", target="kind", categories={"kind": ["cat", "dog"]})
        {'x': tensor([[ 4.5000,  2.0000], [31.0000,  5.0000]]), 'y': tensor([0, 1])}
    """
    table = Table.read(path, delimiter, header)
    categories = dict(categories or {})
    for asked in (*(columns or ()), *integers, *categories, *((target,) if target else ())):
        table.place(asked)
    chosen = list(table.names if columns is None else columns)
    if target is not None and target not in chosen:
        chosen.append(target)
    found: dict[str, Tensor] = {}
    for name in chosen:
        column = table.column(name, None if name == target else missing, name == target)
        if name in categories:
            found[name] = column.categories(categories[name])
        elif name in integers:
            found[name] = column.integers()
        else:
            found[name] = column.numbers()
    if target is None:
        return found
    features = [values.to(torch.float32) for name, values in found.items() if name != target]
    if not features:
        raise DataError(
            f"{table.path}: expected columns besides the target {target!r}, got none. Add a column "
            "of inputs"
        )
    return {"x": torch.stack(features, dim=1), "y": found[target]}


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of a CSV file, as text.

    Attributes:
        path: the file.
        names: of the columns.
        cells: a `pyarrow.Table` of strings.
        line: row number, from 0, to the line that the row ends on.
    """

    path: Path
    names: list[str]
    cells: Any
    line: Callable[[int], int]

    @classmethod
    def read(cls, path: PathLike, delimiter: str, header: bool = True) -> Table:
        """Read a table from a CSV file.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: it is not a table of rows of one length.
            ImportError: pyarrow is not installed.
        """
        path = existing(path)
        try:
            arrow = importlib.import_module("pyarrow")
            reader = importlib.import_module("pyarrow.csv")
        except ImportError:
            raise ImportError(
                "data.csv reads tables with pyarrow, which is not installed. Run "
                "`pip install 'ftrain[tables]'`, or `pip install pyarrow`."
            ) from None
        ragged: list[Any] = []

        def refused(row: Any) -> str:
            ragged.append(row)
            return "error"

        size = min(max(path.stat().st_size, 1 << 20), 2**31 - 1)  # a row must fit into a block
        try:
            cells = reader.read_csv(
                path,
                reader.ReadOptions(
                    use_threads=False, block_size=size, autogenerate_column_names=not header
                ),
                reader.ParseOptions(
                    delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refused
                ),
                reader.ConvertOptions(default_column_type=arrow.string()),
            )
            names = [name.strip() for name in cells.column_names]
        except UnicodeDecodeError as error:
            raise not_utf8(path, str(error)) from None
        except arrow.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise not_utf8(path, str(error)) from None
            if not ragged:  # among them: "Empty CSV file"
                raise DataError(f"{path}: expected a CSV table, got an error: {error}") from None
            line = _line(path, delimiter, ragged[0].number - 1)
            expected, got = ragged[0].expected_columns, ragged[0].actual_columns
            says = f"expected {expected} cells, got {got}{_delimiter(expected)}"
            raise DataError(f"{path}, line {line}: {says}") from None
        if not header:
            names = [str(place) for place, _ in enumerate(names)]
        found = cls(path, names, cells, lambda row: _line(path, delimiter, row + header))
        found.check()
        return found

    def check(self) -> None:
        """Raise `DataError` for repeated column names, a table without rows, or an unclosed quote."""
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            says = f"expected unique column names, got {twice!r} twice. Rename one"
            raise DataError(f"{self.path}, line {self.line(-1)}: {says}")
        if not self.cells.num_rows:
            raise DataError(
                f"{self.path}: expected rows below the header, got none. Add rows to the file"
            )
        last = self.cells.column(len(self.names) - 1)[-1].as_py()
        content = self.path.read_bytes() if "\n" in last else b""
        if content.count(b'"') % 2:  # pyarrow has read this cell to the end of the file
            line = content.count(b"\n") - last.count("\n") + 1
            says = "expected a closing quote, got the end of the file. Close the quote"
            raise DataError(f"{self.path}, line {line}: {says}")

    def place(self, name: str) -> int:
        """Return the index of the column called `name`; raise `DataError` if there is no such column."""
        if name not in self.names:
            there = ", ".join(map(repr, self.names))
            got = f"{there}{_delimiter(len(self.names))}"
            raise DataError(f"{self.path}: expected a column {name!r}, got the columns {got}")
        return self.names.index(name)

    def column(self, name: str, missing: float | None = None, target: bool = False) -> Column:
        """Return one column; `missing` replaces its missing numbers, except in a target."""
        compute = importlib.import_module("pyarrow.compute")
        cells = self.cells.column(self.place(name)).combine_chunks()
        cells = compute.utf8_trim_whitespace(cells)
        is_number = compute.match_substring_regex(cells, _NUMBER)
        return Column(
            table=self,
            name=name,
            cells=cells,
            values=_array(compute.if_else(is_number, cells, "nan").cast("double")).copy(),
            is_number=_array(is_number),
            is_missing=_array(
                compute.is_in(
                    compute.utf8_lower(cells), value_set=type(cells).from_pandas(_MISSING)
                )
            ),
            missing=missing,
            target=target,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """Column of a CSV table, with its cells as text and as numbers.

    Attributes:
        table: the table of the column.
        name: its name.
        cells: a `pyarrow.StringArray`, without white space around the words.
        values: float64 `(n,)`: the numbers, NaN where a cell is none.
        is_number: bool `(n,)`: the cell is a number; `nan` is one.
        is_missing: bool `(n,)`: the cell stands for a missing number; `nan` does.
        missing: the number that replaces missing ones; `None`: they are errors.
        target: True for the column to predict, which is never filled in.
    """

    table: Table
    name: str
    cells: Any
    values: np.ndarray
    is_number: np.ndarray
    is_missing: np.ndarray
    missing: float | None
    target: bool

    def numbers(self) -> Tensor:
        """Return the column as float32 `(n,)`."""
        values = self.doubles()
        with np.errstate(over="ignore"):
            result = values.astype(np.float32)
        self.check(
            ~np.isinf(result) | np.isinf(values), "a number within float32", "Scale the column"
        )
        return torch.from_numpy(result)

    def doubles(self, remedy: str = "Correct it, or list the words in `categories`") -> np.ndarray:
        """Return the column as float64 `(n,)`."""
        self.check(self.is_number | self.is_missing, "a number", remedy)
        if self.missing is None:
            self.check_present(self.is_missing, "a number")
            return self.values
        return np.where(self.is_missing, self.missing, self.values)

    def integers(self) -> Tensor:
        """Return the column as int64 `(n,)`."""
        values = []
        for row, cell in enumerate(self.cells.to_pylist()):
            value = int(cell) if re.fullmatch("[-+]?[0-9]{1,19}", cell) else None
            if self.missing is not None and self.is_missing[row]:
                value = int(self.missing)
            if value is None or not -(2**63) <= value < 2**63:
                raise self.wrong(row, "a 64-bit integer", "Leave the column out of `integers`")
            values.append(value)
        return torch.tensor(values, dtype=torch.int64)

    def categories(self, words: Sequence[str], remedy: str = "Correct it, or add it") -> Tensor:
        """Return each cell's index in `words`, int64 `(n,)`; raise if a cell is not among them."""
        known = {word: place for place, word in enumerate(words)}
        encoded = self.cells.dictionary_encode()
        places = np.array([known.get(word, -1) for word in encoded.dictionary.to_pylist()])
        found = places[_array(encoded.indices)]
        self.check(found >= 0, f"one of the categories {_listed(words, 20)}", remedy)
        return torch.from_numpy(found.astype(np.int64))

    def different(self) -> set[str]:
        """Return the set of the non-empty texts in the column."""
        return {*self.cells.unique().to_pylist()} - {""}

    def check_present(self, absent: np.ndarray, expected: str) -> None:
        """Raise `DataError` for the first cell that is marked in `absent` as missing."""
        if absent.any():
            row = int(np.argmax(absent))
            note = ", which stands for a missing number" if self.cells[row].as_py() else ""
            remedy = "Delete the row, or set `missing` to the number that replaces it"
            if self.target:
                remedy = "Delete the row, as a target is never filled in"
            raise self.wrong(row, expected, remedy, note)

    def check(self, valid: np.ndarray, expected: str, remedy: str) -> None:
        """Raise `DataError` for the first cell that is not marked in `valid`."""
        if not valid.all():
            raise self.wrong(int(np.argmin(valid)), expected, remedy)

    def wrong(self, row: int, expected: str, remedy: str, note: str = "") -> DataError:
        """Return a `DataError` that names file, line and column of an invalid cell."""
        where = f"{self.table.path}, line {self.table.line(row)}, column {self.name!r}"
        cell = repr(self.cells[row].as_py())
        return DataError(f"{where}: expected {expected}, got {cell}{note}. {remedy}")


def is_missing(cell: str) -> bool:
    """Return True if a cell is empty or a text for a missing number, such as `N/A`.

    Example:
        >>> is_missing(" "), is_missing("N/A"), is_missing("0")
        (True, True, False)
    """
    return cell.strip().lower() in _MISSING


def is_number(cell: str) -> bool:
    """Return True if the text of a cell is a number.

    Example:
        >>> is_number("-1.5e3"), is_number("1,000"), is_number("5 kg")
        (True, False, False)
    """
    return re.match(_NUMBER, cell) is not None


def _array(values: Any) -> np.ndarray:
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found


def _listed(words: Sequence[str], most: int) -> str:
    return f"[{', '.join(map(repr, words[:most]))}{', ...' if len(words) > most else ''}]"


def _line(path: Path, delimiter: str, row: int) -> int:
    """Return the line of the file on which a row ends; pyarrow skips empty lines, which count too."""
    limit = python_csv.field_size_limit(2**31 - 1)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = python_csv.reader(file, delimiter=delimiter)
            lines = (reader.line_num for cells in reader if cells)
            return next(itertools.islice(lines, row, None), reader.line_num)
    finally:
        python_csv.field_size_limit(limit)


def _delimiter(columns: int) -> str:
    """Return a hint about `delimiter` for a header with a single column; `""` for more columns."""
    return ". Set `delimiter` if another character separates the cells" if columns == 1 else ""
