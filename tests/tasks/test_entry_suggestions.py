"""Test the entries that messages suggest for a missing input or missing labels of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ftrain import tasks
from ftrain.tasks import adapters

X, Y = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("names", "suggested"),
    [
        (("X", "labels"), "input: X, target: labels"),
        (("labels", "X"), "input: X, target: labels"),
        (("Features", "Label"), "input: Features, target: Label"),
        (("pixels", "kinds"), "input: ..., target: ..."),
        (("image", "kinds"), "input: image, target: kinds"),
    ],
)
def test_input_and_labels_both_missing_in_a_batch_are_named_in_one_error(
    names: tuple[str, str], suggested: str
) -> None:
    batch = dict.fromkeys(names, X)
    with pytest.raises(KeyError, match="expected the keys 'x' and 'y', got ") as found:
        tasks.cross_entropy(nn.Linear(3, 2), batch, input="x", target="y")
    assert f"loss: {{name: ..., {suggested}}}" in str(found.value)


@pytest.mark.parametrize(
    ("batch", "options", "suggested"),
    [
        ({"x": X, "classes": Y}, {"target": "y"}, "target: classes"),
        ({"x": X, "Y": Y}, {}, "target: Y"),
        ({"x": X, "a": Y, "b": Y}, {"target": "y"}, "target: ..."),
        ({"x": X}, {"target": "y"}, "target: ..."),
        ({"features": X, "y": Y}, {"input": "x"}, "input: features"),
        ({"a": X, "y": Y}, {}, "input: a"),
    ],
)
def test_suggested_entry_for_labels_is_never_the_input(
    batch: dict[str, Any], options: dict[str, Any], suggested: str
) -> None:
    with pytest.raises(KeyError) as found:
        adapters.output_and_labels(nn.Linear(3, 2), batch, **options)
    assert f"loss: {{name: ..., {suggested}}}" in str(found.value)


def test_float_labels_raise_with_the_conversion_for_arrays_and_for_a_csv() -> None:
    with pytest.raises(
        TypeError, match=r"y\.astype\('int64'\); for a csv, write `data.classes: true`"
    ):
        tasks.cross_entropy(nn.Linear(3, 2), {"x": X, "y": Y})
