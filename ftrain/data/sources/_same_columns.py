"""Checks that the arguments of `csv`, and a later file, match the fitted preprocessing of a run."""

from __future__ import annotations

from collections.abc import Iterable

from ftrain.core.errors import DataError
from ftrain.data._csv_table import Table
from ftrain.data.sources._scaling import Known

__all__ = ["check_same", "check_target"]


def check_same(
    fitted: Known, target: str, columns: list[str] | None, classes: bool | None, standardize: bool
) -> None:
    """Raise if the arguments of `csv` differ from those with which the preprocessing was fitted."""
    known, features = fitted["target"], fitted["columns"]
    former = next((name for name, one in features.items() if "words" in one), None)
    if former is not None:
        raise ValueError(
            f"saved preprocessing: expected a feature for each word in column {former!r}, got one "
            "feature for the whole column, as in an earlier version of ftrain. Begin a new run."
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
                f"Set {name} to {was!r}, or begin a new run."
            )


def check_target(table: Table, target: str, features: Iterable[str]) -> None:
    """Raise if a table to train or evaluate on has all columns of features, but no target."""
    if target not in table.names and all(name in table.names for name in features):
        try:
            table.place(target)
        except DataError as error:
            raise DataError(f"{error} `ftrain predict` reads files without a target.") from None
