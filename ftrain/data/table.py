"""Tables of text: CSV files as columns of numbers.

Read next: `text.py`, for text that is not a table.
"""

from __future__ import annotations

import csv as python_csv
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, existing, not_utf8

__all__ = ["Column", "Table", "absent", "csv", "respelled"]

Rows = list[tuple[int, list[str]]]  # with the number of the line that each ends on
Spelling = Callable[[str, str], str]  # an argument and its value, as a remedy writes them

#: Cells of a column of numbers that stand for a missing number, in upper or lower case.
_ABSENT = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:[,' \u2019\u00a0\u202f]\d{3})+(?:\.\d+)?")
_WITH_UNIT = re.compile(r"(?:[$€£¥] ?)?([-+]?(?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?)(?: ?[$€£¥%])?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


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
    """Return the columns of a CSV file as tensors.

    Args:
        path: the file, in UTF-8; cells may be quoted.
        target: the column to predict.
        columns: which columns to read, in this order; default: all.
        integers: columns to read as int64.
        categories: for a column of words, the words; a cell becomes its word's place in the list, int64.
        missing: the number that replaces an empty cell of a column of numbers, and `NA`, `n/a`, `nan`,
            `null`, `none`, `?` and `-`; the target is never filled in. Default: all of these but `nan`
            are errors.
        delimiter: the separator between cells, such as `"\\t"` or `";"`.
        header: True if the first line names the columns; otherwise they are named "0", "1", ...

    Returns:
        float32 `(n,)` by column, or int64 where `integers` or `categories` say so. With a target: `x`,
        float32 `(n, columns)`, the other columns side by side, and `y`, the target `(n,)`.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a cell is not the number it must be, a line has another number of cells than the
            header, a column is not there; the message names file, line, column and remedy.

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
        cells = table.column(name, None if name == target else missing, name == target)
        if name in categories:
            found[name] = cells.categories(categories[name])
        elif name in integers:
            found[name] = cells.integers()
        else:
            found[name] = cells.numbers()
    if target is None:
        return found
    features = [values.to(torch.float32) for name, values in found.items() if name != target]
    if not features:
        raise DataError(f"{table.path}: no column is left beside the target {target!r}")
    return {"x": torch.stack(features, dim=1), "y": found[target]}


def in_python(name: str, value: str) -> str:
    """Return an argument as a call of `csv` spells it."""
    return f"{name}={value}"


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a file, not yet read as numbers or words.

    Attributes:
        path: the file.
        names: of the columns.
        rows: the cells, and the line that each row ends on.
        spelled: how a remedy writes an argument.
    """

    path: Path
    names: list[str]
    rows: Rows
    spelled: Spelling = in_python

    @classmethod
    def read(
        cls,
        path: PathLike,
        delimiter: str = ",",
        header: bool = True,
        spelled: Spelling = in_python,
    ) -> Table:
        """Return the table in a file; errors as in `csv`."""
        found = existing(path)
        return cls(found, *_rows(found, delimiter, header, spelled), spelled)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, name: str) -> int:
        """Return the position of the column with this name; `DataError` if it is missing."""
        if name not in self.names:
            there = ", ".join(map(repr, self.names))
            hint = _delimiter(self.names, self.spelled)
            raise DataError(f"{self.path} has no column {name!r}; it has {there}{hint}")
        return self.names.index(name)

    def column(self, name: str, missing: float | None = None, target: bool = False) -> Column:
        """Return the cells of one column; `missing` as in `csv`; a target has its own remedies."""
        place = self.place(name)
        cells = [(line, row[place]) for line, row in self.rows]
        return Column(self.path, name, cells, missing, self.spelled, target)


class Column:
    """The cells of one column, with the lines they stand on."""

    def __init__(
        self,
        path: Path,
        name: str,
        cells: list[tuple[int, str]],
        missing: float | None,
        spelled: Spelling,
        target: bool = False,
    ) -> None:
        self.path, self.name, self.cells = path, name, cells
        self.missing, self.spelled, self.target = missing, spelled, target

    def numbers(self) -> Tensor:
        """Return float32 `(n,)`."""
        values = self.doubles()
        with np.errstate(over="ignore"):
            result = values.astype(np.float32)
        too_large = np.nonzero(np.isinf(result) & ~np.isinf(values))[0]
        if len(too_large):
            line, cell = self.cells[too_large[0]]
            raise self.wrong(line, cell, "is too large for float32: scale the column first")
        return torch.from_numpy(result)

    def doubles(self, remedy: str | None = None) -> np.ndarray:
        """Return float64 `(n,)`; `remedy` replaces that of `csv` for a word."""

        def says(cell: str) -> str:
            if absent(cell):
                return self.nothing(cell)
            return respelled(cell) or remedy or self._word()

        return np.array(self._each(float, says), dtype=np.float64)

    def integers(self) -> Tensor:
        """Return int64 `(n,)`."""
        remedy = (
            f"is no integer of 64 bits. Leave the column out of {self.spelled('integers', '...')}"
        )

        def one(cell: str) -> int:
            value = int(self.missing if self.missing is not None and absent(cell) else cell)
            if not -(2**63) <= value < 2**63:
                raise ValueError
            return value

        return torch.tensor(self._each(one, lambda cell: remedy), dtype=torch.int64)

    def categories(self, words: Sequence[str], remedy: str = "correct it, or add it") -> Tensor:
        """Return int64 `(n,)`: positions in `words`."""
        places = {word: place for place, word in enumerate(words)}
        says = f"is none of the categories {_listed(words, 20)}: {remedy}"
        found = self._each(lambda cell: places[cell.strip()], lambda cell: says)
        return torch.tensor(found, dtype=torch.int64)

    def different(self) -> set[str]:
        """Return the different cells that are not empty."""
        return {cell.strip() for _, cell in self.cells} - {""}

    def nothing(self, cell: str) -> str:
        """Return the message for an empty cell of numbers, or for one such as `N/A`."""
        found = "stands for an empty cell" if cell.strip() else "is empty"
        if self.target:
            return f"{found}, and what is to be predicted is never filled in: leave the row out"
        put = self.spelled("missing", "0")
        return f"{found}: delete the row, or write {put} to put that number there"

    def wrong(self, line: int, cell: str, what: str) -> DataError:
        """Return the error of a cell."""
        return DataError(f"{self.path}, line {line}, column {self.name!r}: {cell!r} {what}")

    def _each(self, convert: Callable[[str], Any], remedy: Callable[[str], str]) -> list[Any]:
        values = []
        filled = convert is float and self.missing is not None
        for line, cell in self.cells:
            try:
                value = convert(cell)
                values.append(self.missing if filled and math.isnan(value) else value)
            except (ValueError, KeyError, OverflowError):
                if not filled or not absent(cell):
                    raise self.wrong(line, cell, remedy(cell)) from None
                values.append(self.missing)
        return values

    def _word(self) -> str:
        words = sorted({cell.strip() for _, cell in itertools.islice(self.cells, 1000)})
        as_words = self.spelled("categories", f"{{{self.name!r}: {_listed(words, 6)}}}")
        return (
            f"is not a number. Correct it; if the column holds words, pass {as_words}; "
            f"or leave the column out with {self.spelled('columns', '[...]')}"
        )


def absent(cell: str) -> bool:
    """Return True if a cell of a column of numbers is empty or stands for a missing number.

    Example:
        >>> absent(" "), absent("N/A"), absent("0")
        (True, True, False)
    """
    return cell.strip().lower() in _ABSENT


def respelled(cell: str) -> str | None:
    """Return the message for a number with separators, a comma or a unit; `None` for other cells.

    Example:
        >>> respelled("31,000.50")
        "is a number with separators, which are not read: write '31000.50'"
    """
    cell = cell.strip()
    if _THOUSANDS.fullmatch(cell):
        plain = re.sub(r"[^-+.\d]", "", cell)
        return f"is a number with separators, which are not read: write {plain!r}"
    if _DECIMAL_COMMA.fullmatch(cell):
        return f"is a number with a comma: write {cell.replace(',', '.')!r}"
    unit = _WITH_UNIT.fullmatch(cell)
    if unit and unit[1] != cell:
        return f"is a number with a unit, which is not read: write {unit[1].replace(',', '')!r}"
    return None


def _listed(words: Sequence[str], most: int) -> str:
    return f"[{', '.join(map(repr, words[:most]))}{', ...' if len(words) > most else ''}]"


def _rows(path: Path, delimiter: str, header: bool, spelled: Spelling) -> tuple[list[str], Rows]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = python_csv.reader(file, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except python_csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}. A quote that is part of a cell is written twice"
        ) from None
    if len(rows) <= header:
        raise DataError(f"{path} has no rows" + (" below its header" if header else ""))
    names = [name.strip() for name in rows[0][1]] if header else _numbered(rows[0][1])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}, line {rows[0][0]}: two columns are called {twice!r}: rename one")
    rows = rows[header:]
    for line, row in rows:
        if len(row) != len(names):
            hint = _delimiter(names, spelled)
            raise DataError(
                f"{path}, line {line}: {len(row)} cells, but {len(names)} columns{hint}"
            )
    return names, rows


def _delimiter(names: list[str], spelled: Spelling) -> str:
    """Return a hint at the delimiter if a line is a single column."""
    hint = ". Do other characters separate the cells? " + spelled("delimiter", '";"')
    return hint if len(names) == 1 else ""


def _numbered(cells: Iterable[str]) -> list[str]:
    return [str(place) for place, _ in enumerate(cells)]
