"""Test that a resumed run keeps the seeds and the data of its checkpoint."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from ftrain.config import ConfigError
from ftrain.config.folders import run_config
from ftrain.config.run import train
from tests.config.tiny import trained

ITERABLE = """

class Rows:
    def __iter__(self):
        found = data()
        return iter([{"x": x, "y": y} for x, y in zip(found["x"], found["y"])])


def iterable():
    return Rows(), Rows()
"""


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def refusal(folder: pathlib.Path, *overrides: str) -> ConfigError:
    """Resume a run with changes that are refused; check that its files are unchanged."""
    before = contents(folder)
    with pytest.raises(ConfigError) as error:
        train(run_config(folder, ["epochs=4", *overrides]), resume=True)
    assert contents(folder) == before
    return error.value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "expected 0, because the checkpoint of .* got 1. Write seed=0"),
        ("data_seed=1", "expected 0, because the checkpoint of .* got 1. Write data_seed=0"),
    ],
)
def test_resuming_with_another_seed_is_refused(
    override: str, message: str, tmp_path: pathlib.Path
) -> None:
    """The seed had no effect, and `config.yaml` named it."""
    error = refusal(trained(tmp_path), override)
    assert error.key == override.partition("=")[0]
    assert re.search(message, str(error))


def test_a_run_without_a_checkpoint_resumes_with_another_seed(tmp_path: pathlib.Path) -> None:
    folder = trained(tmp_path)
    for path in (folder / "checkpoints").glob("step-*"):
        path.rename(tmp_path / path.name)
    assert train(run_config(folder, ["seed=1"]), resume=True).status == "completed"


def test_resuming_with_other_data_is_refused_and_leaves_the_run_as_it_was(
    tmp_path: pathlib.Path,
) -> None:
    """`config.yaml` named the other data, so that the next `ftrain resume` was refused as well."""
    folder = trained(tmp_path)
    error = refusal(folder, "data.n=40")
    assert error.key == "data"
    assert re.search(
        "the data of the checkpoint, 18 samples, got 30 samples. Restore the earlier data",
        str(error),
    )
    assert train(run_config(folder, ["epochs=4"]), resume=True).status == "completed"


def test_resuming_iterable_data_with_another_batch_size_names_the_key(
    tmp_path: pathlib.Path,
) -> None:
    project: Any = {"data": "project.py:iterable"}
    folder = trained(tmp_path, extra=ITERABLE, **project)
    error = refusal(folder, "batch_size=6")
    assert error.key == "batch_size"
    assert re.search(
        "expected 4, .* counts batches of iterable data, got 6. Write batch_size=4", str(error)
    )


def test_a_run_is_refused_another_output_dir(tmp_path: pathlib.Path) -> None:
    """It was ignored: the run was resumed in its own directory."""
    folder = trained(tmp_path)
    with pytest.raises(
        ConfigError, match="expected no other directory than that of the run"
    ) as error:
        run_config(folder, [f"output_dir={tmp_path / 'second'}"])
    assert error.value.key == "output_dir"
    assert run_config(folder, [f"output_dir={folder}"]).folder == folder
