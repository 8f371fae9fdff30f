"""Test figures of sweeps: the hyper-parameters that they draw, and the kind of chart."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest

from ftrain import transforms
from ftrain.loop import plots


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ({"seed": range(3)}, ["seed"]),
        ({"learning_rate": [0.01, 0.1], "seed": range(2)}, ["learning rate"]),
        ({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, ["a", "b", "c"]),
        ({"learning_rate": [0.1], "decay": [0.0, 1.0]}, ["decay"]),
    ],
)
def test_a_sweep_is_drawn_over_the_hyperparameters_that_differ(
    axes: dict[str, Any], labels: list[str]
) -> None:
    members = transforms.grid(**axes)
    figure = plots.sweep_grid(members, [float(i) for i in range(len(members))])
    assert [ax.get_xlabel() for ax in figure.axes] == labels


def test_learning_rates_that_span_a_factor_of_ten_have_a_logarithmic_axis() -> None:
    members = transforms.grid(learning_rate=[1e-3, 1e-2], seed=range(2))
    (ax,) = plots.sweep_grid(members, [1.0, 3.0, math.nan, 4.0]).axes
    assert ax.get_xscale() == "log"
    assert list(ax.lines[0].get_ydata()) == [2.0, 4.0]


def test_sweep_of_two_hyperparameters_is_drawn_as_a_map_of_means_over_seeds(
    tmp_path: pathlib.Path,
) -> None:
    members = transforms.grid(decay=[0.0, 0.1], learning_rate=[0.01, 0.1, 1.0], seed=range(2))
    values = [float(i // 2) for i in range(12)]
    figure = plots.sweep_grid(members, values, tmp_path / "map.svg", metric="accuracy", dark=True)
    ax, bar = figure.axes
    assert ax.images[0].get_array().tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == (
        "learning rate",
        "decay",
        "accuracy",
    )
    assert (tmp_path / "map.svg").stat().st_size > 1000


def test_sweep_grid_requires_one_value_per_member() -> None:
    with pytest.raises(ValueError, match="got 1 for 2 members"):
        plots.sweep_grid(transforms.grid(seed=range(2)), [1.0])
