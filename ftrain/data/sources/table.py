"""CSV files as features: columns of numbers are standardized, columns of words one-hot encoded.

The preprocessing fitted on the training rows is in `fitted`, with the names and words of the file:

    {"rows": 120, "sha256": "6b86b273ff34fce1",
     "columns": {"weight": {"mean": 4.1, "scale": 0.8}, "kind": {"one_of": ["cat", "dog"]}},
     "target": {"name": "price", "mean": 31.5, "scale": 12.0}}

Read next: `_scaling.py`, which fits and applies means and scales.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ftrain.core.errors import DataError
from ftrain.data._csv_file import Format
from ftrain.data._csv_table import Column, Table, is_missing, is_number
from ftrain.data._error_collector import Problems
from ftrain.data.sources._data import Data, Fitted, Share, parted
from ftrain.data.sources._same_columns import check_same, check_target
from ftrain.data.sources._scaling import (
    Known,
    check_means,
    feature_names,
    filled,
    fit,
    scaled,
    scaled_inputs,
)

__all__ = ["csv", "csv_inputs"]

#: Largest number of different words in a column, each of which becomes a feature.
_MOST_WORDS = 100


def csv(
    path: pathlib.Path,
    target: str,
    held_out: Share | pathlib.Path = 0.2,
    classes: bool | None = None,
    columns: list[str] | None = None,
    standardize: bool = True,
    missing: float | Literal["mean"] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    decimal: Literal[".", ","] = ".",
    drop: list[str] | None = None,
    unknown: Literal["error", "ignore"] = "error",
    dates: list[str] | dict[str, str] | None = None,
    missing_word: str | None = None,
    fitted: Fitted = None,
) -> Data:
    """Read a CSV table as features `x`, float32 `(n, features)`, and target `y`, `(n,)`.

    Args:
        path: the file; its first line names the columns.
        target: the column to predict.
        held_out: the number or share of rows to evaluate on, or another file with the same columns; 0:
            none, so that all rows are trained on.
        classes: true if the target is a class (int64), false if it is a number (float32); null: a class
            if the column has words.
        columns: the columns to predict from; null: all except the target. A column of words becomes one
            feature for each different word, in sorted order: 1 where the cell is that word, else 0.
        standardize: subtract the mean of each column of numbers, and of a numeric target, and divide by
            the standard deviation, both over the training rows.
        missing: the number that replaces an empty cell in a column of numbers (`NA`, `n/a`, `nan`,
            `null`, `none`, `?` and `-` are treated as empty); `mean`: the mean of the column's training
            rows; null: an empty cell is an error. A missing target is always an error.
        delimiter: the separator between cells; null: the one of `,`, `;`, tab and `|` that splits the
            first rows into equal numbers of cells.
        encoding: the encoding of the file, such as `latin-1`.
        decimal: the decimal character of numbers.
        drop: columns to leave out, such as row numbers; cannot be combined with `columns`.
        unknown: treatment of words in another file that the training table does not have: "error"
            raises, "ignore" sets all features of the column to 0.
        dates: columns of dates, which become days since 1970: a list of columns in ISO 8601, or a
            mapping of columns to formats, `{born: "%d.%m.%Y"}`.
        missing_word: the word that replaces an empty cell in a column of words, such as `unknown`, and
            becomes a category (`NA`, `n/a`, `nan`, `null`, `?` and `-` are treated as empty); null: an
            empty cell is an error.
        fitted: the columns, words, means and standard deviations that a run fitted.

    Returns:
        The data with the facts `features` (the number of features) and `columns` (their names, such as
        `colour=green` for a word). If the target is a class, also `classes` (the number of classes) and
        `names`; if it is standardized, `target_mean` and `target_scale`.
    """
    form = Format(delimiter, encoding, decimal)
    options = _Options.of(missing, unknown, dates, missing_word)
    whole = Table.read(path, form)
    if fitted:
        check_same(fitted, target, columns, classes, standardize)
        check_target(whole, target, fitted["columns"])
        known = fitted
    else:
        known = _kinds(whole, target, _chosen(whole, columns, drop), classes, options)
    train = _encoded(whole, known, options)
    if isinstance(held_out, pathlib.Path):
        other = whole if held_out == path else Table.read(held_out, form)
        rest = train if other is whole else _encoded(other, known, options)
    else:
        train, rest = parted(train, held_out, path)
    # Runs of earlier versions stored no mean of the target, because they did not standardize it.
    plain = fitted is not None and "mean" not in known["target"]
    refitted = fit(train, known, standardize, standardize and not plain, missing == "mean")
    used = fitted or refitted
    names = feature_names(used)
    if missing == "mean":
        if not fitted:
            check_means(whole, train["x"], names)
        train, rest = (part and {**part, "x": filled(part["x"], used)} for part in (train, rest))
    goal = used["target"]
    facts: dict[str, Any] = {"features": len(names), "columns": names}
    if "classes" in goal:
        facts |= {"classes": len(goal["classes"]), "names": goal["classes"]}
    elif "mean" in goal:
        facts |= {"target_mean": goal["mean"], "target_scale": goal["scale"]}
    apart = held_out if isinstance(held_out, pathlib.Path) else path
    held = None if rest is None else scaled(rest, used, apart)
    return Data(scaled(train, used, path), held, facts, fitted=refitted)


def csv_inputs(
    path: pathlib.Path,
    target: str,
    held_out: Share | pathlib.Path = 0.2,
    classes: bool | None = None,
    columns: list[str] | None = None,
    standardize: bool = True,
    missing: float | Literal["mean"] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    decimal: Literal[".", ","] = ".",
    drop: list[str] | None = None,
    unknown: Literal["error", "ignore"] = "error",
    dates: list[str] | dict[str, str] | None = None,
    missing_word: str | None = None,
    fitted: Fitted = None,
) -> Tensor:
    """Return the features `x` of a CSV table, encoded as in training; no target column is needed.

    The arguments are those of `csv`; `fitted` must be the preprocessing of a run, and `held_out` is not
    used.
    """
    if not fitted:
        raise ValueError(
            "csv_inputs: expected as `fitted` the preprocessing that the run stored in data.json, got "
            "none. Train the run again, which stores it."
        )
    check_same(fitted, target, columns, classes, standardize)
    table = Table.read(path, Format(delimiter, encoding, decimal))
    x = _inputs(table, fitted, _Options.of(missing, unknown, dates, missing_word))
    if missing == "mean":
        x = filled(x, fitted)
    return scaled_inputs(x, fitted, path)


class _Options(NamedTuple):
    """Options for reading the cells of feature columns.

    Attributes:
        missing: the number that replaces missing numbers; NaN if the mean of the column replaces them.
        unknown: True to ignore words that the training table does not have.
        dates: the format of each column of dates; `None` for ISO 8601.
        missing_word: the word that replaces missing words; `None` if they are errors.
    """

    missing: float | None
    unknown: bool
    dates: Mapping[str, str | None]
    missing_word: str | None

    @classmethod
    def of(
        cls,
        missing: float | Literal["mean"] | None,
        unknown: str,
        dates: list[str] | dict[str, str] | None,
        missing_word: str | None,
    ) -> _Options:
        if missing_word is not None and not missing_word.strip():
            raise ValueError(
                f"missing_word: expected a word, got {missing_word!r}. Write `missing_word: unknown`, "
                "for instance."
            )
        number = math.nan if missing == "mean" else missing
        formats = dates if isinstance(dates, dict) else dict.fromkeys(dates or ())
        word = None if missing_word is None else missing_word.strip()
        return cls(number, unknown == "ignore", formats, word)

    def column(self, table: Table, name: str) -> Column:
        """Return the cells of a feature column; dates are converted to numbers of days."""
        column = table.column(name, self.missing)
        return column.days(self.dates[name]) if name in self.dates else column


def _chosen(table: Table, columns: list[str] | None, drop: list[str] | None) -> list[str]:
    """Return the names of the columns to use, including the target unless it was dropped."""
    if columns is not None and drop:
        raise ValueError("columns, drop: expected at most one of them, got both. Remove one.")
    for name in drop or ():
        table.place(name)
    return [name for name in columns or table.names if name not in {*(drop or ())}]


def _kinds(
    table: Table, target: str, chosen: list[str], classes: bool | None, options: _Options
) -> dict[str, Any]:
    """Return the names of target and feature columns, and the distinct words of columns of words."""
    problems = Problems()
    for name in dict.fromkeys((*chosen, target)):
        with problems:
            table.place(name)
    problems.check()
    for name in options.dates:
        if name not in chosen or name == target:
            got = "the target" if name == target else "another name"
            raise ValueError(
                f"dates: expected feature columns, got {got}, {name!r}. Remove it from `dates`."
            )
    if not {*chosen} - {target}:
        raise DataError(
            f"{table.path}: expected columns besides the target {target!r}, got none. Add a column "
            "of inputs."
        )
    features: dict[str, Known] = {}
    for name in chosen:
        if name != target:
            with problems:
                words = None if name in options.dates else _feature_words(table, name, options)
                features[name] = {} if words is None else {"one_of": words}
    goal, labels = table.column(target, target=True), None
    with problems:
        labels = _words(goal, classes)
    if problems:
        with problems:  # collect the errors of the remaining columns, too
            _inputs(table, {"columns": features}, options)
        problems.check()
    if classes is False and labels is not None:
        raise ValueError(
            f"{table.path}: expected numbers in the target {target!r}, got words. Remove "
            "`classes: false`."
        )
    if classes and labels is None:
        cells = [cell for cell in goal.different() if not is_missing(cell)]
        labels = sorted(cells, key=lambda cell: float(cell.replace(",", ".")))
    return {
        "columns": features,
        "target": {"name": target, **({} if labels is None else {"classes": labels})},
    }


def _feature_words(table: Table, name: str, options: _Options) -> list[str] | None:
    """Return the words of a column, each of which becomes a feature; `None` for a column of numbers."""
    words = _words(table.column(name), missing_word=options.missing_word)
    if words is not None and len(words) > _MOST_WORDS:
        listed = ", ".join(map(repr, words[:3]))
        raise DataError(
            f"{table.path}, column {name!r}: expected at most {_MOST_WORDS} different words, each a "
            f"feature, got {len(words)} ({listed}, ...). Leave it out with `drop`, or list it in "
            "`dates` if these are dates."
        )
    return words


def _words(
    column: Column, classes: bool | None = None, missing_word: str | None = None
) -> list[str] | None:
    """Return the sorted distinct words of a column; `None` if it is a column of numbers.

    Raises:
        DataError: the column has words among numbers, or numbers with the other decimal character, and
            `classes` is not True; a word is missing and has no replacement.
    """
    present = ~column.is_missing
    words = present & ~column.is_number
    if not words.any():
        return None
    numbers, cells = int((present & column.is_number).sum()), int(present.sum())
    if not classes and 2 * numbers >= cells:
        remedy = "Correct it, or leave the cell empty and set `missing`"
        if column.target:
            remedy = "Correct it, or set `classes: true` if the numbers are classes"
        expected = f"a number, as in {numbers} of the {cells} cells of the column"
        cell = column.cells[int(np.argmax(words))].as_py()
        if column.has_other_decimal(cell):
            remedy = f"{column.decimal_remedy}. {remedy}"
        raise column.wrong(int(np.argmax(words)), expected, remedy)
    if not classes and all(map(column.has_other_decimal, column.different(words))):
        character = column.table.cells.format.decimal
        remedy = f"{column.decimal_remedy}, or leave the column out with `drop`"
        if column.target:
            remedy = f"{column.decimal_remedy}, or set `classes: true` if these are classes"
        expected = f"words, or numbers with {character!r} before their decimals"
        raise column.wrong(int(np.argmax(words)), expected, remedy)
    different = column.different()
    absent = column.missing_words(known=[*different] if classes else [])
    if missing_word is None:
        remedy = "set `missing_word` to the word that replaces it, such as `missing_word: unknown`"
        column.check_present(absent, "a word", remedy, "word")
        return sorted(different)
    return sorted(column.replaced(absent, missing_word).different())


def _encoded(table: Table, known: Known, options: _Options) -> dict[str, Tensor]:
    """Return features `x` and target `y` of a table, in float64 or int64, before standardization."""
    goal = known["target"]
    problems, found = Problems(), {}
    with problems:
        found["x"] = _inputs(table, known, options)
    with problems:
        found["y"] = _values(table.column(goal["name"], target=True), goal.get("classes"))
    problems.check()
    return found


def _inputs(table: Table, known: Known, options: _Options) -> Tensor:
    problems, features = Problems(), [torch.empty(table.rows, 0, dtype=torch.float64)]
    for name, one in known["columns"].items():
        words = one.get("one_of")
        with problems:
            column = options.column(table, name)
            values = _values(column, words, options.unknown, options.missing_word)
            if words is None:
                features.append(values[:, None])
            else:  # the index of an unknown word is -1
                features.append(one_hot(values + 1, len(words) + 1)[:, 1:].double())
    problems.check()
    return torch.cat(features, dim=1)


def _values(
    column: Column,
    words: list[str] | None,
    unknown: bool = False,
    missing_word: str | None = None,
) -> Tensor:
    """Return a column of numbers as float64, or the index in `words` of each cell as int64.

    For a cell that is not in `words`, raise; if `unknown` is True, return the index -1.
    """
    if words is not None:
        absent = column.is_missing
        if not all(map(is_number, words)):  # a class may be called "?", for example
            absent = column.missing_words(known=words)
        if missing_word is not None:
            column = column.replaced(absent, missing_word)
        elif not unknown:
            remedy = "set `missing_word` to the word that replaces it, or set `unknown: ignore`"
            column.check_present(absent, "a word", remedy, "word")
        remedy = "Correct it, delete the row, or set `unknown: ignore`"
        if column.target:
            remedy = "Correct it, or delete the row"
        return column.categories(words, remedy, unknown)
    values = column.doubles(
        "Correct it, or delete the row",
        "set `missing` to `mean`, or to the number that replaces it",
    )
    remedy = "Correct it, or delete the row"
    column.check(np.isfinite(values) | column.is_missing, "a finite number", remedy)
    return torch.from_numpy(values)
