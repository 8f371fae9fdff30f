"""Means and scales of the columns of a table: fitted on training rows, applied to any rows.

Read next: `table.py`, which reads the columns.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._csv_table import Table
from ftrain.data._error_collector import Problems
from ftrain.data.sources._data import sha256

__all__ = ["Known", "check_means", "feature_names", "filled", "fit", "scaled", "scaled_inputs"]

#: Fitted values of a column: its words as `one_of`, or its `classes`, or `mean` and `scale`.
Known = Mapping[str, Any]


def _width(column: Known) -> int:
    """Return the number of features of a column: the number of its words, or 1 for numbers."""
    return len(column["one_of"]) if "one_of" in column else 1


def feature_names(known: Known) -> list[str]:
    """Return the names of the features: `column` for numbers, `column=word` for each word."""
    return [
        feature
        for name, one in known["columns"].items()
        for feature in ([f"{name}={word}" for word in one["one_of"]] if "one_of" in one else [name])
    ]


def fit(
    train: dict[str, Tensor], known: Known, standardize: bool, scale_target: bool, means: bool
) -> dict[str, Any]:
    """Return the preprocessing (means, scales, words), fitted on the training rows."""
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


def check_means(table: Table, x: Tensor, names: list[str]) -> None:
    problems = Problems()
    for name, empty in zip(names, x.isnan().all(0).tolist(), strict=True):
        with problems:
            if empty:
                raise DataError(
                    f"{table.path}, column {name!r}: expected a number in the training rows, got "
                    "none. Leave the column out of `columns`."
                )
    problems.check()


def filled(x: Tensor, used: Known) -> Tensor:
    """Return features with missing numbers (NaN) replaced by the fitted means of their columns."""
    means = []
    for name, one in used["columns"].items():
        if "one_of" not in one and "mean" not in one:
            raise ValueError(
                f"missing: expected a mean of {name!r} fitted by the run, which `missing: mean` needs, "
                "got none. Restore the run's value of `missing`, or begin a new run."
            )
        means += [one.get("mean", 0.0)] * _width(one)
    return torch.where(x.isnan(), torch.tensor(means, dtype=x.dtype), x)


def _moments(column: Tensor) -> dict[str, float]:
    """Return mean and standard deviation, from exact sums, which do not depend on the order of rows."""
    values = column.numpy()
    values = values[~np.isnan(values)]  # NaN is a missing number with the option `missing: .nan`
    if not len(values) or values.min() == values.max():
        return {"mean": float(values.min()) if len(values) else 0.0, "scale": 1.0}
    mean = math.fsum(values.tolist()) / len(values)
    away = values - mean
    largest = float(abs(away).max())
    square = math.fsum(((away / largest) ** 2).tolist()) / len(values)
    return {"mean": mean, "scale": math.sqrt(square) * largest}


def scaled(part: dict[str, Tensor], used: Known, path: pathlib.Path) -> dict[str, Tensor]:
    """Return `x` and a numeric `y` standardized with the fitted means and scales, as float32."""
    y, goal = part["y"], used["target"]
    if "classes" not in goal:
        y = (y - goal.get("mean", 0.0)) / goal.get("scale", 1.0)
        y = _to_float32(path, [goal["name"]], y[:, None])[:, 0]
    return {"x": scaled_inputs(part["x"], used, path), "y": y}


def scaled_inputs(x: Tensor, used: Known, path: pathlib.Path) -> Tensor:
    """Return `x` standardized with the fitted means and scales, as float32."""
    columns = [one for one in used["columns"].values() for _ in range(_width(one))]
    columns = [one if "scale" in one else {} for one in columns]
    mean, scale = (
        torch.tensor([one.get(key, default) for one in columns], dtype=torch.float64)
        for key, default in (("mean", 0.0), ("scale", 1.0))
    )
    return _to_float32(path, feature_names(used), (x - mean) / scale)


def _to_float32(path: pathlib.Path, names: list[str], values: Tensor) -> Tensor:
    found = values.to(torch.float32)
    problems = Problems()
    for name, infinite in zip(names, found.isinf().any(0).tolist(), strict=True):
        with problems:
            if infinite:
                raise DataError(
                    f"{path}, column {name!r}: expected numbers within float32, got a larger one. "
                    "Scale the column."
                )
    problems.check()
    return found
