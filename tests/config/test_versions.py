"""Test the choice of the directory of a new run, and numbered directories."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest

from ftrain.cli import main
from ftrain.config import ConfigError, load
from ftrain.config.run import train
from tests import preloaded
from tests.config.tiny import configured

Captured = pytest.CaptureFixture[str]


def start(folder: pathlib.Path, *overrides: str, **options: Any) -> Any:
    return train(load(folder / "tiny.yaml", [f"output_dir={folder}/run", *overrides]), **options)


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    configured(tmp_path)
    (tmp_path / "watch.py").write_text(
        "class Watch:\n    def on_epoch_ends(self, event):\n        pass\n"
    )
    return tmp_path


def test_run_that_never_began_leaves_its_directory_free(project: pathlib.Path) -> None:
    with pytest.raises(Exception, match="on_epoch_ends"):
        start(project, f"callbacks=[{{name: {project}/watch.py:Watch}}]")
    assert not (project / "run").exists()
    assert start(project).status == "completed"


@pytest.mark.parametrize("left", [["config.yaml"], ["config.yaml", "data.json"]])
def test_run_that_was_killed_before_its_first_event_leaves_its_directory_free(
    project: pathlib.Path, left: list[str]
) -> None:
    folder = project / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in (".lock", "checkpoints/.lock", *left):
        (folder / name).touch()
    assert start(project).status == "completed"


@pytest.mark.parametrize(
    "names",
    [
        ["config.yaml"],  # the user's own
        [".lock", "config.yaml", "train.log"],
        [".lock", "config.yaml", "metrics.jsonl"],
        [".lock", "config.yaml", "checkpoints/step-000000000003/manifest.json"],
        [".lock", "result.json", "checkpoints/step-000000000003/manifest.json"],
        [".lock", "result.json", "config.yaml"],
    ],
)
def test_directory_with_a_begun_run_or_a_configuration_is_refused(
    project: pathlib.Path, names: list[str]
) -> None:
    for name in names:
        path = project / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with pytest.raises(ConfigError, match="which holds a run") as error:
        start(project)
    assert "versions=true" in str(error.value)
    assert all((project / "run" / name).read_text() == "mine" for name in names)


def test_option_versions_numbers_the_directories_of_runs(
    project: pathlib.Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for seed in range(3):
        assert main(["train", "tiny.yaml", "versions=true", f"seed={seed}", "epochs=1"]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("run: ")] == [
        "run: runs/tiny",
        "run: runs/tiny-2",
        "run: runs/tiny-3",
    ]
    for name, seed in (("tiny", 0), ("tiny-2", 1), ("tiny-3", 2)):
        config = load(project / "runs" / name / "config.yaml")
        assert (config.seed, config.versions) == (seed, False)
    assert main(["resume", "runs/tiny-2", "epochs=2", "versions=true"]) == 0
    assert json.loads((project / "runs/tiny-2/result.json").read_text())["epoch"] == 2
    assert not (project / "runs" / "tiny-4").exists()


def test_runs_that_start_at_the_same_time_with_versions_use_different_directories(
    project: pathlib.Path,
) -> None:
    code = (
        "import sys; from ftrain.config import load; from ftrain.config.run import numbered; "
        "print(numbered(load(sys.argv[1], ['versions=true', f'output_dir={sys.argv[2]}'])).folder)"
    )
    command = ["-c", code, str(project / "tiny.yaml"), str(project / "run")]
    processes = [preloaded.start(*command, stdout=subprocess.PIPE) for _ in range(3)]
    found = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert found == [f"{project}/run", f"{project}/run-2", f"{project}/run-3"]


def test_option_versions_has_no_effect_with_overwrite_or_fast_dev_run(
    project: pathlib.Path,
) -> None:
    start(project, "epochs=1")
    start(project, "epochs=2", "versions=true", overwrite=True)
    start(project, "fast_dev_run=true", "versions=true")
    assert not list(project.glob("run-*"))
    assert json.loads((project / "run/result.json").read_text())["epoch"] == 2
