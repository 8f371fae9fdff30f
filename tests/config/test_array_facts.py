"""Facts of array files: the numbers of features and of classes, for the model's arguments."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from ftrain.data import sources

X = np.zeros((6, 2, 3))


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        ({"x": X, "y": np.array([0, 2, 1, 0, 1, 2])}, {"features": 6, "classes": 3}),
        (
            {"pixels": X, "label": np.array([4, 0, 0, 0, 0, 0], np.uint8)},
            {"features": 6, "classes": 5},
        ),
        ({"x": X, "y": np.zeros(6)}, {"features": 6}),
        ({"x": X, "y": np.array([-1, 0, 1, 0, 1, 0])}, {"features": 6}),
        ({"x": X, "y": np.zeros((6, 2), np.int64)}, {"features": 6}),
        ({"a": X, "b": X, "y": np.zeros(6, np.int64)}, {"classes": 1}),
        ({"x": X[:, 0, 0]}, {"features": 1}),
        ({"x": X, "y": np.zeros(6, bool)}, {"features": 6}),
    ],
)
def test_array_file_gives_the_numbers_of_features_and_classes(
    arrays: dict[str, Any], facts: dict[str, int], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    found = sources.arrays(path, held_out=2)
    assert found.facts == facts
    assert sources.arrays(path, held_out=0, fitted=found.fitted).facts == facts
