"""Table of a CSV file, and its columns as numbers, dates or categories.

Read next: `_csv_file.py`, which reads the cells.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ftrain.core._nearest import nearest
from ftrain.core.errors import DataError
from ftrain.data._csv_file import Cells, Format, delimiter_hint, line_of, read_cells
from ftrain.data._files import PathLike, existing

__all__ = ["Column", "Table", "is_missing", "is_number"]

#: Cells that mean a missing number in a column of numbers, in upper or lower case.
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")

#: Cells that mean a missing word in a column of words; "none" is a word, such as in a column `garage`.
_MISSING_WORDS = tuple(cell for cell in _MISSING if cell != "none")

_FORMAT = Format()

#: Number of cells to parse in one call, which takes several columns if they are short.
_AT_ONCE = 1 << 16

#: Pattern of a number, valid in Python and in RE2.
_NUMBER = r"^[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?i:inf|infinity|nan))$"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """CSV file as a table of text cells.

    Attributes:
        path: the file.
        cells: the result of `read_cells`.
        header: True if the first line names the columns.
    """

    path: Path
    cells: Cells
    header: bool = True

    @classmethod
    def read(cls, path: PathLike, format: Format = _FORMAT, header: bool = True) -> Table:
        """Read a table from a CSV file.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: the file is not a table whose rows have equal length.
            ImportError: pyarrow is not installed.
        """
        path = existing(path)
        found = cls(path, read_cells(path, format, header), header)
        found.check()
        return found

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self.cells.names

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.cells.columns[0])

    def line(self, row: int) -> int:
        """Return the number of the line in the file on which a row ends."""
        return line_of(self.path, self.cells.format, row + self.header)

    def check(self) -> None:
        """Raise `DataError` for repeated column names, a table without rows, or an unclosed quote."""
        twice = next((name for name, n in collections.Counter(self.names).items() if n > 1), None)
        if twice is not None:
            says = f"expected unique column names, got {_shown(twice)} twice. Rename one."
            raise DataError(f"{self.path}, line {self.line(-1)}: {says}")
        if not self.rows:
            raise DataError(
                f"{self.path}: expected rows below the header, got none. Add rows to the file."
            )
        last = self.cells.columns[-1][-1].as_py()
        content = self.path.read_bytes() if "\n" in last else b""
        if content.count(b'"') % 2:  # without a closing quote, pyarrow reads to the end of the file
            line = content.count(b"\n") - last.count("\n") + 1
            says = "expected a closing quote, got the end of the file. Close the quote."
            raise DataError(f"{self.path}, line {line}: {says}")

    def place(self, name: str) -> int:
        """Return the index of the column called `name`; raise `DataError` if there is no such column."""
        if name not in self._places:
            near = nearest(name, self.names)
            remedy = delimiter_hint(len(self.names)) or "Write one of these names."
            there = ", ".join(map(_shown, self.names[:20]))
            more = f" and {len(self.names) - 20} more" if len(self.names) > 20 else ""
            raise DataError(
                f"{self.path}: expected a column {_shown(name)}, got the columns {there}{more}. "
                f"{f'Did you mean {near!r}?' if near else remedy}"
            )
        return self._places[name]

    def column(self, name: str, missing: float | None = None, target: bool = False) -> Column:
        """Return one column; `missing` replaces its missing numbers, except in a target."""
        place = self.place(name)
        first = place - place % self._width
        if first not in self._parsed:
            self._parsed.clear()
            self._parsed[first] = _Parsed.of(self.cells, slice(first, first + self._width))
        parsed, at = self._parsed[first], place - first
        return Column(
            table=self,
            name=name,
            cells=parsed.cells[at],
            values=parsed.values[at].copy(),
            is_number=parsed.is_number[at],
            is_missing=parsed.is_missing[at],
            missing=missing,
            target=target,
        )

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    @functools.cached_property
    def _width(self) -> int:
        """The number of columns whose cells are parsed in one call of pyarrow's functions."""
        size = sum(column.nbytes for column in self.cells.columns)
        return max(1, _AT_ONCE // self.rows) if size < 1 << 30 else 1

    @functools.cached_property
    def _parsed(self) -> dict[int, _Parsed]:
        """Cache of the columns parsed last, with the index of their first column as its key."""
        return {}


class _Parsed(NamedTuple):
    """Parsed columns of a table: their cells without surrounding white space, and their numbers.

    Attributes:
        cells: a `pyarrow.StringArray` for each column.
        values: float64 `(columns, rows)`.
        is_number: bool `(columns, rows)`.
        is_missing: bool `(columns, rows)`.
    """

    cells: list[Any]
    values: np.ndarray
    is_number: np.ndarray
    is_missing: np.ndarray

    @classmethod
    def of(cls, cells: Cells, places: slice) -> _Parsed:
        compute = importlib.import_module("pyarrow.compute")
        columns = cells.columns[places]
        joined = importlib.import_module("pyarrow").concat_arrays(columns)
        trimmed = compute.utf8_trim_whitespace(joined)
        rows = len(columns[0])
        numbers = trimmed
        if cells.format.decimal == ",":
            numbers = compute.replace_substring(
                compute.replace_substring(trimmed, ".", "_"), ",", "."
            )
        is_number = compute.match_substring_regex(numbers, _NUMBER)
        markers = type(columns[0]).from_pandas(_MISSING)
        values = compute.if_else(is_number, numbers, "nan").cast("double")
        is_missing = compute.is_in(compute.utf8_lower(trimmed), value_set=markers)
        return cls(
            [trimmed.slice(place * rows, rows) for place in range(len(columns))],
            *(_array(each).reshape(len(columns), -1) for each in (values, is_number, is_missing)),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """Column of a CSV table, with its cells as text and as numbers.

    Attributes:
        table: the table of the column.
        name: its name.
        cells: a `pyarrow.StringArray`, without surrounding white space.
        values: float64 `(n,)`: the numbers; NaN for a cell that is not a number.
        is_number: bool `(n,)`: True if the cell is a number; `nan` is a number.
        is_missing: bool `(n,)`: True if the cell means a missing number, such as `nan`.
        missing: the number that replaces missing numbers; `None` if they are errors.
        target: True for the column to predict, in which missing numbers are always errors.
        expected: the expected kind of cell, for messages.
    """

    table: Table
    name: str
    cells: Any
    values: np.ndarray
    is_number: np.ndarray
    is_missing: np.ndarray
    missing: float | None
    target: bool
    expected: str = "a number"

    def missing_words(self, known: Sequence[str] = ()) -> np.ndarray:
        """Return a mask, bool `(n,)`: True for cells that are empty or say `NA` or similar.

        The words in `known` do not count as missing.
        """
        encoded = self.cells.dictionary_encode()
        absent = np.array(
            [
                word.lower() in _MISSING_WORDS and word not in known
                for word in encoded.dictionary.to_pylist()
            ],
            dtype=bool,
        )
        found: np.ndarray = absent[_array(encoded.indices)]
        return found

    def replaced(self, places: np.ndarray, word: str) -> Column:
        """Return the column with `word` in the cells for which the mask `places` is True."""
        compute = importlib.import_module("pyarrow.compute")
        mask = importlib.import_module("pyarrow").array(places)
        return dataclasses.replace(self, cells=compute.if_else(mask, word, self.cells))

    def numbers(self) -> Tensor:
        """Return the column as float32 `(n,)`."""
        values = self.doubles()
        with np.errstate(over="ignore"):
            result = values.astype(np.float32)
        self.check(
            ~np.isinf(result) | np.isinf(values), "a number within float32", "Scale the column"
        )
        return torch.from_numpy(result)

    def doubles(
        self,
        remedy: str = "Correct it, or list the words in `categories`",
        absent: str = "set `missing` to the number that replaces it",
    ) -> np.ndarray:
        """Return the column as float64 `(n,)`; raise `DataError` for a cell that is not a number.

        The error proposes `remedy` or, for a missing number, `absent`.
        """
        valid = self.is_number | self.is_missing
        if self.expected != "a number":
            remedy = "Correct it, or change `dates`"
        elif not valid.all() and self.has_other_decimal(self.cells[int(np.argmin(valid))].as_py()):
            remedy = f"{self.decimal_remedy}. {remedy}"
        self.check(valid, self.expected, remedy)
        if self.missing is None:
            self.check_present(self.is_missing, self.expected, absent)
            return self.values
        return np.where(self.is_missing, self.missing, self.values)

    def days(self, format: str | None = None) -> Column:
        """Return a column of dates as days since 1970; a cell without an offset is read as UTC.

        Args:
            format: the format for `datetime.strptime`; `None` for ISO 8601.
        """
        encoded = self.cells.dictionary_encode()
        days = np.array([_days(cell, format) for cell in encoded.dictionary.to_pylist()])
        values = days[_array(encoded.indices)]
        such = (
            "as in 2024-01-31 or 2024-01-31T12:00" if format is None else f"of the format {format}"
        )
        return dataclasses.replace(
            self, values=values, is_number=~np.isnan(values), expected=f"a date {such}"
        )

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

    def categories(
        self, words: Sequence[str], remedy: str = "Correct it, or add it", unknown: bool = False
    ) -> Tensor:
        """Return each cell's index in `words`, int64 `(n,)`.

        For a cell that is not in `words`, raise; if `unknown` is True, return the index -1.
        """
        known = {word: place for place, word in enumerate(words)}
        encoded = self.cells.dictionary_encode()
        places = np.array([known.get(word, -1) for word in encoded.dictionary.to_pylist()])
        found = places[_array(encoded.indices)]
        self.check((found >= 0) | unknown, f"one of the categories {_listed(words, 20)}", remedy)
        return torch.from_numpy(found.astype(np.int64))

    def different(self, among: np.ndarray | None = None) -> set[str]:
        """Return the distinct non-empty texts in the column, or in the cells where a mask is True."""
        cells = self.cells
        if among is not None:
            cells = cells.filter(importlib.import_module("pyarrow").array(among))
        return {*cells.unique().to_pylist()} - {""}

    def has_other_decimal(self, cell: str) -> bool:
        """Return True if a cell would be a number with the other decimal character (point or comma)."""
        other = "," if self.table.cells.format.decimal == "." else "."
        return cell.count(other) == 1 and is_number(cell.replace(other, "."))

    @property
    def decimal_remedy(self) -> str:
        """Remedy for an error message, which proposes the other decimal character (point or comma)."""
        other = "," if self.table.cells.format.decimal == "." else "."
        return f"Set decimal to '{other}' if it stands before decimals (`decimal: \"{other}\"`)"

    def check_present(
        self, absent: np.ndarray, expected: str, remedy: str, kind: str = "number"
    ) -> None:
        """Raise `DataError` if the mask `absent` is True for a cell; the error names the first one."""
        if absent.any():
            row = int(np.argmax(absent))
            note = f", which stands for a missing {kind}" if self.cells[row].as_py() else ""
            remedy = f"Delete the row, or {remedy}"
            if self.target:
                remedy = "Delete the row: a missing target is never replaced"
                if note and kind == "word":
                    remedy += ". If it is a class, set `classes: true`"
            raise self.wrong(row, expected, remedy, note)

    def check(self, valid: np.ndarray, expected: str, remedy: str) -> None:
        """Raise `DataError` for the first cell whose entry in the mask `valid` is False."""
        if not valid.all():
            raise self.wrong(int(np.argmin(valid)), expected, remedy)

    def wrong(self, row: int, expected: str, remedy: str, note: str = "") -> DataError:
        """Return a `DataError` that names file, line and column of an invalid cell."""
        where = f"{self.table.path}, line {self.table.line(row)}, column {_shown(self.name)}"
        cell = _shown(self.cells[row].as_py())
        return DataError(f"{where}: expected {expected}, got {cell}{note}. {remedy}.")


def _days(cell: str, format: str | None) -> float:
    """Return the days from 1970 to the date in a cell; NaN if the cell is not a date."""
    try:
        if format is None:
            found = datetime.datetime.fromisoformat(cell)
        else:
            found = datetime.datetime.strptime(cell, format)
    except ValueError:
        return float("nan")
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp() / 86400


def is_missing(cell: str) -> bool:
    """Return True if a cell is empty or means a missing number, such as `N/A`.

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
    return f"[{', '.join(map(_shown, words[:most]))}{', ...' if len(words) > most else ''}]"


def _shown(text: str) -> str:
    """Return a text in quotes, shortened if it is long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
