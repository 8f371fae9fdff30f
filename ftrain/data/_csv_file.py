"""Reading of CSV files as text cells with pyarrow: delimiters, encodings, and errors with line numbers.

Read next: `_csv_table.py`, which converts cells to numbers.
"""

from __future__ import annotations

import codecs
import csv as python_csv
import importlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from ftrain.core._words import one_line
from ftrain.core.errors import DataError
from ftrain.data._files import check_memory, not_utf8, reading

__all__ = ["Cells", "Format", "delimiter_hint", "line_of", "read_cells"]

#: Delimiters to try, in this order, and the number of rows on which they are tried.
_DELIMITERS, _TRIED = (",", ";", "\t", "|"), 6


class Format(NamedTuple):
    """Format of a CSV file.

    Attributes:
        delimiter: the character between cells; `None`: the one that splits the first rows into equal
            numbers of cells.
        encoding: Python's name of the encoding.
        decimal: the decimal character of numbers.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    decimal: str = "."

    def checked(self) -> Format:
        """Validate the format and return it; UTF-8 becomes `utf-8-sig`, which skips a byte order mark.

        Raises:
            ValueError: the delimiter, encoding or decimal character is invalid.
        """
        for name in ("delimiter", "decimal"):
            value = getattr(self, name)
            if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n'):
                raise ValueError(
                    f"{name}: expected one character, got {value!r}. Write {name}=';', for instance."
                )
        if self.decimal not in (".", ","):
            raise ValueError(
                f"decimal: expected '.' or ',', got {self.decimal!r}. Write one of these."
            )
        try:
            "".encode(self.encoding)
            name = codecs.lookup(self.encoding).name
        except (LookupError, TypeError, ValueError):
            raise ValueError(
                f"encoding: expected the name of an encoding, got {self.encoding!r}. Write 'latin-1' or "
                "'cp1252' for older files of Western Europe."
            ) from None
        return self._replace(encoding="utf-8-sig" if name == "utf-8" else name)


class Cells(NamedTuple):
    """Cells of a CSV file.

    Attributes:
        names: the names of the columns.
        columns: a `pyarrow.StringArray` for each column.
        format: the format in which the cells were read.
    """

    names: list[str]
    columns: list[Any]
    format: Format


def read_cells(path: Path, format: Format, header: bool) -> Cells:
    """Read all cells of a file.

    Raises:
        DataError: the file is not text in this encoding, or its rows differ in length.
        ImportError: pyarrow is not installed.
        ValueError: the format is invalid.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        reader = importlib.import_module("pyarrow.csv")
    except ImportError:
        raise ImportError(
            "data.csv reads tables with pyarrow, which is not installed. Run "
            "`pip install 'ftrain[tables]'`, or `pip install pyarrow`."
        ) from None
    format = format.checked()
    format = format._replace(delimiter=format.delimiter or _guessed(path, format.encoding))
    ragged: list[Any] = []

    def refused(row: Any) -> str:
        ragged.append(row)
        return "error"

    length = path.stat().st_size
    check_memory(path, "its cells", 2 * length)
    widened = length if format.encoding == "utf-8-sig" else 3 * length  # upper bound as UTF-8
    size = min(max(widened, 1 << 20), 2**31 - 1)  # a row must fit into a block
    with reading(path):
        try:
            cells = reader.read_csv(
                path,
                reader.ReadOptions(
                    use_threads=False,
                    block_size=size,
                    autogenerate_column_names=not header,
                    encoding=format.encoding,  # also for UTF-8, so that errors name the position
                ),
                reader.ParseOptions(
                    delimiter=format.delimiter, newlines_in_values=True, invalid_row_handler=refused
                ),
                reader.ConvertOptions(default_column_type=arrow.string()),
            )
        except UnicodeError as error:
            if format.encoding == "utf-8-sig":
                raise DataError(
                    f"{not_utf8(path, one_line(error))} To read it as it is, name its encoding with "
                    "`encoding`, such as latin-1."
                ) from None
            raise DataError(
                f"{path}: expected text in {format.encoding}, got other bytes ({one_line(error)}). Name "
                "the encoding of the file with `encoding`."
            ) from None
        except arrow.ArrowInvalid as error:
            if not ragged:  # such as "Empty CSV file"
                raise DataError(
                    f"{path}: expected a CSV table, got an error: {one_line(error).rstrip('.')}. "
                    "Correct the file, or name another one."
                ) from None
            line = line_of(path, format, ragged[0].number - 1)
            expected, got = ragged[0].expected_columns, ragged[0].actual_columns
            remedy = delimiter_hint(expected) or "Give every line as many cells as the header."
            raise DataError(
                f"{path}, line {line}: expected {expected} cells, got {got}. {remedy}"
            ) from None
    names = [name.strip() for name in cells.column_names]
    if not header:
        names = [str(place) for place, _ in enumerate(names)]
    columns = [column.combine_chunks() for column in cells.columns]
    return Cells(*_named(names, columns), format)


def line_of(path: Path, format: Format, row: int) -> int:
    """Return the number of the line on which a row ends, including empty lines, which pyarrow skips."""
    limit = python_csv.field_size_limit(2**31 - 1)
    try:
        with path.open(newline="", encoding=format.encoding) as file:
            reader = python_csv.reader(file, delimiter=format.delimiter or ",")
            lines = (reader.line_num for cells in reader if cells)
            return next(itertools.islice(lines, row, None), reader.line_num)
    finally:
        python_csv.field_size_limit(limit)


def delimiter_hint(columns: int) -> str:
    """Return a hint about `delimiter` for a header with a single column; `""` for more columns."""
    return "Set `delimiter` if another character separates the cells." if columns == 1 else ""


def _named(names: list[str], columns: list[Any]) -> tuple[list[str], list[Any]]:
    """Remove columns without name and content, which come from a delimiter at the end of each line."""
    kept = [
        place
        for place, name in enumerate(names)
        if name or any(cell.strip() for cell in columns[place].unique().to_pylist())
    ]
    kept = kept or list(range(len(names)))
    return [names[place] for place in kept], [columns[place] for place in kept]


def _guessed(path: Path, encoding: str) -> str:
    """Return the first delimiter that splits each of the first rows into the same number of cells.

    If none does, the header alone decides. For a file with one column, return a comma.
    """
    found = {}
    limit = python_csv.field_size_limit(2**31 - 1)
    try:
        for delimiter in _DELIMITERS:
            with path.open(newline="", encoding=encoding, errors="replace") as file:
                rows = python_csv.reader(file, delimiter=delimiter)
                found[delimiter] = [len(row) for row in itertools.islice(rows, _TRIED) if row]
    except (UnicodeError, python_csv.Error):  # pyarrow will raise an error with the position
        return ","
    finally:
        python_csv.field_size_limit(limit)
    for delimiter, counts in found.items():
        if len(counts) > 1 and counts[0] > 1 and len(set(counts)) == 1:
            return delimiter
    return max(_DELIMITERS, key=lambda delimiter: (found[delimiter] or [0])[0])
