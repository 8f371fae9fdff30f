"""Test that a failed step names the size of the model that differs from the data's."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from ftrain.config import load
from ftrain.config.run import train

LINES = ["a,b,kind", *(f"{n % 7},{n % 5},{'xyz'[n % 3]}" for n in range(48))]


def notes_of(folder: pathlib.Path, **model: Any) -> tuple[str, ...]:
    (folder / "rows.csv").write_text("\n".join(LINES) + "\n")
    options = {"inputs": "${data.features}", "outputs": "${data.classes}", **model}
    config = {
        "model": {"name": "mlp", **options},
        "data": {"name": "csv", "path": str(folder / "rows.csv"), "target": "kind"},
        "epochs": 1,
        "batch_size": 8,
        "progress": False,
        "output_dir": str(folder / "run"),
    }
    with pytest.raises((RuntimeError, ValueError)) as error:
        train(load(config, ["compile=false"]))
    return tuple(error.value.__notes__)


def test_error_for_a_label_out_of_range_names_the_number_of_outputs(tmp_path: pathlib.Path) -> None:
    expected = (
        "model.outputs is 2 (the configuration), but data.classes is 3: write 3, or ${data.classes}"
    )
    assert expected in notes_of(tmp_path, outputs=2)


def test_error_for_a_wrong_number_of_inputs_names_the_number_of_features(
    tmp_path: pathlib.Path,
) -> None:
    (advice,) = [each for each in notes_of(tmp_path, inputs=5) if "model." in each]
    assert advice.startswith(
        "model.inputs is 5 (the configuration), but data.features is 2: write 2"
    )


def test_errors_that_are_not_about_sizes_get_no_advice_about_sizes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.Linear.forward", lambda *_: 1 / 0)
    config = {
        "model": {"name": "mlp", "inputs": 64, "outputs": 11},
        "data": "digits",
        "epochs": 1,
        "compile": False,
        "output_dir": str(tmp_path / "run"),
    }
    with pytest.raises(ZeroDivisionError) as error:
        train(load(config))
    assert "model.outputs" not in "\n".join(error.value.__notes__)
