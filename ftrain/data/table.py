"""Reader for CSV files, which returns columns of numbers; needs pyarrow.

Read next: `_csv_table.py`, which converts cells to numbers; `sources/table.py`, which scales columns for
a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._csv_file import Format
from ftrain.data._csv_table import Table
from ftrain.data._error_collector import Problems
from ftrain.data._files import PathLike

__all__ = ["csv"]


def csv(
    path: PathLike,
    *,
    target: str | None = None,
    columns: Sequence[str] | None = None,
    integers: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] | None = None,
    missing: float | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    decimal: str = ".",
    header: bool = True,
) -> dict[str, Tensor]:
    """Read the columns of a CSV file as tensors.

    Numbers may have an exponent; thousands separators and units raise.

    Args:
        path: the file; cells may be quoted.
        target: the column to predict.
        columns: the columns to read, in this order; default: all.
        integers: columns to read as int64.
        categories: for each column of words, the list of its words; a cell becomes the index of its
            word, int64.
        missing: the number that replaces missing numbers: empty cells, `NA`, `n/a`, `nan`, `null`,
            `none`, `?` and `-`. Default: these are errors. A missing target is always an error.
        delimiter: the separator between cells, such as `"\\t"`; default: the one of `,`, `;`, tab and
            `|` that splits the first rows into equal numbers of cells.
        encoding: Python's name of the encoding, such as `"latin-1"`.
        decimal: the decimal character of numbers, `"."` or `","`.
        header: True if the first line names the columns; otherwise they are named "0", "1", ...

    Returns:
        `{column: tensor}`, float32 `(n,)`, or int64 for columns in `integers` or `categories`. With a
        target: `x`, float32 `(n, columns)` with all other columns, and `y`, the target `(n,)`.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: a cell is not a number, a row has another number of cells than the header, a column is
            missing; the message names file, line, column and remedy, for each column with an error.
        ImportError: pyarrow is not installed.
        ValueError: the delimiter, encoding or decimal character is invalid.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "pets.csv").write_text("weight,age,kind\\n4.5,2,cat\\n31.0,5,dog\\n")
        >>> csv(folder / "pets.csv", target="kind", categories={"kind": ["cat", "dog"]})
        {'x': tensor([[ 4.5000,  2.0000], [31.0000,  5.0000]]), 'y': tensor([0, 1])}
    """
    table = Table.read(path, Format(delimiter, encoding, decimal), header)
    categories = dict(categories or {})
    missing_columns = Problems()
    for asked in dict.fromkeys(
        (*(columns or ()), *integers, *categories, *((target,) if target else ()))
    ):
        with missing_columns:
            table.place(asked)
    missing_columns.check()
    chosen = list(table.names if columns is None else columns)
    if target is not None and target not in chosen:
        chosen.append(target)
    found: dict[str, Tensor] = {}
    problems = Problems()
    for name in chosen:
        column = table.column(name, None if name == target else missing, name == target)
        with problems:
            if name in categories:
                found[name] = column.categories(categories[name])
            elif name in integers:
                found[name] = column.integers()
            else:
                found[name] = column.numbers()
    problems.check()
    if target is None:
        return found
    features = [values.to(torch.float32) for name, values in found.items() if name != target]
    if not features:
        raise DataError(
            f"{table.path}: expected columns besides the target {target!r}, got none. Add a column "
            "of inputs."
        )
    return {"x": torch.stack(features, dim=1), "y": found[target]}
