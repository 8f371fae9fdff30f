"""CSV files as features: columns of numbers are standardized, columns of words one-hot encoded.

The preprocessing of the training rows is in `fitted`, in the file's own terms:

    {"rows": 120, "sha256": "6b86b273ff34fce1",
     "columns": {"weight": {"mean": 4.1, "scale": 0.8}, "kind": {"one_of": ["cat", "dog"]}},
     "target": {"name": "price", "mean": 31.5, "scale": 12.0}}

Read next: `ftrain/data/table.py`, which reads the cells.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ftrain.core.errors import DataError
from ftrain.data.sources._data import Data, Fitted, Share, parted, sha256
from ftrain.data.table import Column, Table, is_missing, is_number

__all__ = ["csv", "csv_inputs"]

#: What is known of a column: `one_of` which words, `classes`; `mean` and `scale` if it is standardized.
Known = Mapping[str, Any]

#: Different words of a column, of which each becomes a feature.
_MOST_WORDS = 100


def csv(
    path: pathlib.Path,
    target: str,
    held_out: Share | pathlib.Path = 0.2,
    classes: bool | None = None,
    columns: list[str] | None = None,
    standardize: bool = True,
    missing: float | Literal["mean"] | None = None,
    delimiter: str = ",",
    fitted: Fitted = None,
) -> Data:
    """Read a CSV table as features `x`, float32 `(n, features)`, and target `y`, `(n,)`.

    Args:
        path: the file; its first line names the columns.
        target: the column to predict.
        held_out: the number of rows to evaluate on, a share of them, or another file with the same
            columns; 0: none, all rows are trained on.
        classes: whether the target is a class (int64) or a number (float32); null: a class if it
            holds words.
        columns: the columns to predict from; null: all others. A column of words becomes one feature
            for each different word, in sorted order: 1 where the cell is that word, else 0.
        standardize: subtract the mean of each column of numbers, and of a numeric target, and divide by
            the standard deviation, both over the training rows.
        missing: the number that replaces an empty cell in a column of numbers (`NA`, `n/a`, `nan`,
            `null`, `none`, `?` and `-` count as empty); `mean`: the mean of the column's training
            rows; null: an empty cell is an error. A target is never filled in.
        delimiter: the separator between cells.
        fitted: the columns, words, means and standard deviations that a run fitted.

    Returns:
        The data with the facts `features` (their number) and `columns` (their names; `colour=green` for
        a word), and `classes` (their number) and `names`; or, for a standardized target, `target_mean`
        and `target_scale`.
    """
    whole = Table.read(path, delimiter)
    if fitted:
        _check_same(fitted, target, columns, classes, standardize)
        known = fitted
    else:
        known = _kinds(whole, target, columns, classes)
    number = math.nan if missing == "mean" else missing
    train = _encoded(whole, known, number)
    if isinstance(held_out, pathlib.Path):
        other = whole if held_out == path else Table.read(held_out, delimiter)
        rest = train if other is whole else _encoded(other, known, number)
    else:
        train, rest = parted(train, held_out)
    # Runs of earlier versions stored no mean of the target, because they did not standardize it.
    plain = fitted is not None and "mean" not in known["target"]
    refitted = _fit(train, known, standardize, standardize and not plain, missing == "mean")
    used = fitted or refitted
    names = _features(used)
    if missing == "mean":
        if not fitted:
            _check_means(whole, train["x"], names)
        train, rest = (part and {**part, "x": _filled(part["x"], used)} for part in (train, rest))
    goal = used["target"]
    facts: dict[str, Any] = {"features": len(names), "columns": names}
    if "classes" in goal:
        facts |= {"classes": len(goal["classes"]), "names": goal["classes"]}
    elif "mean" in goal:
        facts |= {"target_mean": goal["mean"], "target_scale": goal["scale"]}
    held = None if rest is None else _scaled(rest, used)
    return Data(_scaled(train, used), held, facts, fitted=refitted)


def csv_inputs(
    path: pathlib.Path,
    target: str,
    held_out: Share | pathlib.Path = 0.2,
    classes: bool | None = None,
    columns: list[str] | None = None,
    standardize: bool = True,
    missing: float | Literal["mean"] | None = None,
    delimiter: str = ",",
    fitted: Fitted = None,
) -> Tensor:
    """Return the features `x` of a CSV table, as the source `csv` does, without its target column.

    The arguments are those of `csv`; `fitted` must hold what a run has fitted, and `held_out` is unused.
    """
    if not fitted:
        raise ValueError("csv_inputs: expected fitted preprocessing, got none. Train the run again")
    _check_same(fitted, target, columns, classes, standardize)
    table = Table.read(path, delimiter)
    x = _inputs(table, fitted, math.nan if missing == "mean" else missing)
    if missing == "mean":
        x = _filled(x, fitted)
    return _scaled_inputs(x, fitted)


def _kinds(
    table: Table, target: str, columns: list[str] | None, classes: bool | None
) -> dict[str, Any]:
    """Return the target and feature columns; for columns of words, with their distinct words."""
    chosen = table.names if columns is None else columns
    for name in (*chosen, target):
        table.place(name)
    features = {name: _words(table.column(name)) for name in chosen if name != target}
    if not features:
        raise DataError(
            f"{table.path}: expected columns besides the target {target!r}, got none. Add a column "
            "of inputs"
        )
    goal = table.column(target, target=True)
    labels = _words(goal, classes)
    if classes is False and labels is not None:
        raise ValueError(
            f"{table.path}: expected numbers in the target {target!r}, got words. Remove "
            "`classes: false`"
        )
    if classes and labels is None:
        labels = sorted((cell for cell in goal.different() if not is_missing(cell)), key=float)
    for name, words in features.items():
        if words is not None and len(words) > _MOST_WORDS:
            listed = ", ".join(map(repr, words[:3]))
            raise DataError(
                f"{table.path}, column {name!r}: expected at most {_MOST_WORDS} different words, each a "
                f"feature, got {len(words)} ({listed}, ...). Leave it out of `columns`"
            )
    return {
        "columns": {
            name: {} if words is None else {"one_of": words} for name, words in features.items()
        },
        "target": {"name": target, **({} if labels is None else {"classes": labels})},
    }


def _words(column: Column, classes: bool | None = None) -> list[str] | None:
    """Return the sorted distinct words of a column; `None` if it is a column of numbers.

    Raises:
        DataError: it holds some words among numbers, and `classes` is not True.
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
        raise column.wrong(int(np.argmax(words)), expected, remedy)
    return sorted(column.different())


def _check_same(
    fitted: Known, target: str, columns: list[str] | None, classes: bool | None, standardize: bool
) -> None:
    """Raise if the arguments of `csv` differ from those with which the preprocessing was fitted."""
    known, features = fitted["target"], fitted["columns"]
    former = next((name for name, one in features.items() if "words" in one), None)
    if former is not None:
        raise ValueError(
            f"saved preprocessing: expected a feature for each word in column {former!r}, got one "
            "feature for the whole column, as in an earlier version of ftrain. Begin a new run"
        )
    names = list(features)
    asked = names if columns is None else [name for name in columns if name != target]
    is_class = "classes" in known
    numbers = [one for one in features.values() if "one_of" not in one]
    numbers = numbers or ([] if is_class else [known])
    scaled = any("scale" in one for one in numbers) if numbers else standardize
    for name, now, was in (
        ("target", target, known["name"]),
        ("columns", asked, names),
        ("classes", is_class if classes is None else classes, is_class),
        ("standardize", standardize, scaled),
    ):
        if now != was:
            raise ValueError(
                f"{name}: expected {was!r}, as in the run that fitted the preprocessing, got {now!r}. "
                f"Set {name} to {was!r}, or begin a new run"
            )


def _width(column: Known) -> int:
    """Return the number of features of a column: the number of its words, or 1 for numbers."""
    return len(column["one_of"]) if "one_of" in column else 1


def _features(known: Known) -> list[str]:
    """Return the names of the features: `column` for numbers, `column=word` for each word."""
    return [
        feature
        for name, one in known["columns"].items()
        for feature in ([f"{name}={word}" for word in one["one_of"]] if "one_of" in one else [name])
    ]


def _encoded(table: Table, known: Known, missing: float | None) -> dict[str, Tensor]:
    """Return features `x` and target `y` of a table before standardization, in float64 or int64."""
    goal = known["target"]
    x = _inputs(table, known, missing)
    return {"x": x, "y": _values(table.column(goal["name"], target=True), goal.get("classes"))}


def _inputs(table: Table, known: Known, missing: float | None) -> Tensor:
    features = []
    for name, one in known["columns"].items():
        words = one.get("one_of")
        values = _values(table.column(name, missing), words)
        each = values[:, None] if words is None else one_hot(values, len(words))
        features.append(each.double())
    return torch.cat(features, dim=1)


def _values(column: Column, words: list[str] | None) -> Tensor:
    """Return the numbers of a column as float64, or the indices of its cells in `words` as int64."""
    if words is not None:
        empty = column.is_missing
        if not all(map(is_number, words)):  # a word such as "none" may be among them
            empty = empty & np.array([not cell for cell in column.cells.to_pylist()])
        column.check_present(empty, "a word")
        return column.categories(words, "Correct it, or delete the row")
    values = column.doubles("Correct it, or delete the row")
    remedy = "Correct it, or delete the row"
    column.check(np.isfinite(values) | column.is_missing, "a finite number", remedy)
    return torch.from_numpy(values)


def _fit(
    train: dict[str, Tensor], known: Known, standardize: bool, scale_target: bool, means: bool
) -> dict[str, Any]:
    """Fit the preprocessing (means, scales, words) on the training rows."""
    columns: dict[str, Any] = {}
    place = 0
    for name, one in known["columns"].items():
        if "one_of" in one:
            columns[name] = {"one_of": one["one_of"]}
        else:
            found = _moments(train["x"][:, place]) if standardize or means else {}
            columns[name] = found if standardize or not means else {"mean": found["mean"]}
        place += _width(one)
    goal = {key: known["target"][key] for key in ("name", "classes") if key in known["target"]}
    if scale_target and "classes" not in goal:
        goal |= _moments(train["y"])
    contents = sha256(train["x"], train["y"])
    return {"rows": len(train["y"]), "sha256": contents, "columns": columns, "target": goal}


def _check_means(table: Table, x: Tensor, names: list[str]) -> None:
    for name, empty in zip(names, x.isnan().all(0).tolist(), strict=True):
        if empty:
            raise DataError(
                f"{table.path}, column {name!r}: expected a number in the training rows, got "
                "none. Leave the column out of `columns`"
            )


def _filled(x: Tensor, used: Known) -> Tensor:
    """Replace missing numbers (NaN) by the fitted means of their columns."""
    means = []
    for name, one in used["columns"].items():
        if "one_of" not in one and "mean" not in one:
            raise ValueError(
                f"missing: expected the run to have fitted a mean of {name!r} for `missing: mean`, got "
                "none. Restore the run's value of `missing`, or begin a new run"
            )
        means += [one.get("mean", 0.0)] * _width(one)
    return torch.where(x.isnan(), torch.tensor(means, dtype=x.dtype), x)


def _moments(column: Tensor) -> dict[str, float]:
    """Return mean and standard deviation, with exact sums that do not depend on the order of rows."""
    values = column.numpy()
    values = values[~np.isnan(values)]  # missing numbers, under `missing: .nan`
    if not len(values) or values.min() == values.max():
        return {"mean": float(values.min()) if len(values) else 0.0, "scale": 1.0}
    mean = math.fsum(values.tolist()) / len(values)
    away = values - mean
    largest = float(abs(away).max())
    square = math.fsum(((away / largest) ** 2).tolist()) / len(values)
    return {"mean": mean, "scale": math.sqrt(square) * largest}


def _scaled(part: dict[str, Tensor], used: Known) -> dict[str, Tensor]:
    """Standardize `x` and a numeric `y` with the fitted means and scales; convert them to float32."""
    y, goal = part["y"], used["target"]
    if "classes" not in goal:
        y = (y - goal.get("mean", 0.0)) / goal.get("scale", 1.0)
        y = _to_float32([goal["name"]], y[:, None])[:, 0]
    return {"x": _scaled_inputs(part["x"], used), "y": y}


def _scaled_inputs(x: Tensor, used: Known) -> Tensor:
    columns = [one for one in used["columns"].values() for _ in range(_width(one))]
    columns = [one if "scale" in one else {} for one in columns]
    mean, scale = (
        torch.tensor([one.get(key, default) for one in columns], dtype=torch.float64)
        for key, default in (("mean", 0.0), ("scale", 1.0))
    )
    return _to_float32(_features(used), (x - mean) / scale)


def _to_float32(names: list[str], values: Tensor) -> Tensor:
    found = values.to(torch.float32)
    for name, infinite in zip(names, found.isinf().any(0).tolist(), strict=True):
        if infinite:
            raise DataError(
                f"column {name!r}: expected numbers within float32, got a larger one. Scale the column"
            )
    return found
