"""Test `ftrain eval RUN data.path=new.csv`, which reuses the run's fitted preprocessing."""

from __future__ import annotations

import json
import pathlib
import random
import shutil

import pytest
import torch

from ftrain import data
from ftrain.cli import main

Captured = pytest.CaptureFixture[str]

NAMES = ["size", "colour", "weight", "kind"]
TABLE = """
model: {name: mlp, inputs: "${data.features}", outputs: "${data.classes}"}
data: {name: csv, path: pets.csv, target: kind, held_out: 0.25}
schedule: {name: warmup_cosine, warmup_steps: 6}
epochs: 2
batch_size: 8
compile: false
progress: false
"""


def rows() -> list[list[str]]:
    draw = random.Random(0)
    kinds = ["ant", "bee", "cat"]
    return [
        [
            f"{draw.gauss(n % 3, 1):.3f}",
            draw.choice(["red", "blue"]),
            f"{50 * (n % 3)}",
            kinds[n % 3],
        ]
        for n in range(48)
    ]


def write(path: pathlib.Path, cells: list[list[str]], names: list[str] = NAMES) -> None:
    path.write_text("\n".join(map(",".join, [names, *cells])) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a directory with a table, a configuration and its complete run."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "pets.csv", rows())
    (folder / "pets.yaml").write_text(TABLE)
    assert main(["train", str(folder / "pets.yaml"), f"output_dir={folder}/run"]) == 0
    return folder


@pytest.fixture
def project(
    trained: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> pathlib.Path:
    """Return a copy of the trained run's directory, which is the current directory."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    return folder


def evaluated(capsys: Captured, *arguments: str) -> tuple[int, dict[str, float]]:
    """Run `ftrain eval`; return the number of samples and the metrics, with all digits."""
    assert main(["eval", "run", "--json", *arguments]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    return found["samples"], found["metrics"]


def refused(capsys: Captured, *arguments: str) -> str:
    assert main([*arguments]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_evaluating_the_held_out_rows_copied_to_another_file_gives_the_same_metrics(
    project: pathlib.Path, capsys: Captured
) -> None:
    own = evaluated(capsys)
    _, held_out = data.split({"row": torch.arange(48)}, 0.25)
    cells = [rows()[n] for n in held_out["row"].tolist()]
    write(project / "new.csv", cells)
    assert evaluated(capsys, "data.path=new.csv") == own
    assert evaluated(capsys, "data.held_out=new.csv") == own
    # The columns have another order, one column is added, and the training table is deleted.
    write(project / "new.csv", [["?", *row[::-1]] for row in cells], ["more", *NAMES[::-1]])
    (project / "pets.csv").unlink()
    assert evaluated(capsys, "data.path=new.csv") == own
    shutil.move(project / "run", project / "moved")
    (project / "run").mkdir()
    shutil.move(project / "moved", project / "run" / "deeper")
    assert main(["eval", "run/deeper", "--json", "data.path=new.csv"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == own[1]


def test_class_indices_do_not_change_for_a_file_that_lacks_some_classes(
    project: pathlib.Path, capsys: Captured
) -> None:
    """The metrics of a file equal the weighted means of the metrics of its classes."""
    parts = {}
    for kind in ("ant", "bee", "cat"):
        write(project / "new.csv", [row for row in rows() if row[3] == kind])
        parts[kind] = evaluated(capsys, "data.path=new.csv")
    samples, whole = evaluated(capsys, "data.path=pets.csv")
    assert samples == 48 == sum(n for n, _ in parts.values())
    for name in ("loss", "accuracy"):
        mean = sum(n * metrics[name] for n, metrics in parts.values()) / 48
        assert mean == pytest.approx(whole[name], rel=1e-5)
    write(project / "new.csv", rows()[:1])  # fewer rows than a batch
    assert evaluated(capsys, "data.path=new.csv")[0] == 1


def test_mse_loss_refuses_class_targets(project: pathlib.Path, capsys: Captured) -> None:
    changes = ["loss=mse", "model.outputs=1", "output_dir=other"]
    assert main(["train", "pets.yaml", *changes]) == 1
    said = capsys.readouterr().err
    assert "mse: expected float32 numbers as batch['y']" in said


def test_table_that_does_not_match_the_run_is_refused(
    project: pathlib.Path, capsys: Captured
) -> None:
    write(project / "new.csv", [*rows()[:3], ["1", "red", "2", "dog"]])
    said = refused(capsys, "eval", "run", "data.path=new.csv")
    assert "new.csv, line 5, column 'kind': expected one of the categories ['ant', 'bee'" in said
    write(project / "new.csv", [row[:1] + row[2:] for row in rows()], ["size", "weight", "kind"])
    assert "new.csv: expected a column 'colour'" in refused(
        capsys, "eval", "run", "data.path=new.csv"
    )
    said = refused(capsys, "train", "pets.yaml", "data.held_out=none.csv")
    assert "'none.csv' was searched in the current directory" in said
    (project / "run/data.json").write_text('{"source": "csv"')
    assert "run/data.json: the file was changed after the run wrote it" in refused(
        capsys, "eval", "run"
    )
    (project / "run/data.json").write_text('{"source": "text", "fitted": {"alphabet": "ab"}}')
    assert "expected text, the data function whose fitted preprocessing" in refused(
        capsys, "resume", "run"
    )


def test_changed_training_data_are_refused_with_the_differences(
    project: pathlib.Path, capsys: Captured
) -> None:
    changed = [["9.5", *row[1:]] if n == 1 else row for n, row in enumerate(rows())]
    write(project / "pets.csv", changed[:44])
    for command in ("resume", "eval"):
        said = refused(capsys, command, "run")
        assert "the training data have changed since the run fitted its preprocessing" in said
        assert "rows: expected 36, got 33" in said
        assert "columns.size.mean: " in said
    assert "evaluate on all samples of a file: data.path=FILE" in said
    assert evaluated(capsys, "data.path=pets.csv")[0] == 44
    write(project / "pets.csv", [[*row[:3], "bee"] if row[3] == "cat" else row for row in rows()])
    said = refused(capsys, "resume", "run", "epochs=3")
    assert "sha256: the contents differ" in said
    assert "columns" not in said
    write(project / "pets.csv", rows())
    before = (project / "run/data.json").read_bytes()
    assert main(["resume", "run", "schedule=null", "epochs=3"]) == 0
    assert (project / "run/data.json").read_bytes() == before


def test_run_without_data_json_warns_and_refits_its_preprocessing(
    project: pathlib.Path, capsys: Captured
) -> None:
    own = evaluated(capsys)
    (project / "run/data.json").unlink()
    assert evaluated(capsys) == own
    write(project / "new.csv", rows()[:24])
    assert main(["eval", "run", "data.path=new.csv"]) == 0
    assert "run has no data.json, " in capsys.readouterr().err
    assert main(["resume", "run", "schedule=null", "epochs=3"]) == 0
    assert "note: run has no data.json, " in capsys.readouterr().err
    assert (project / "run/data.json").is_file()


def test_run_without_data_json_does_not_standardize_its_target(
    project: pathlib.Path, capsys: Captured
) -> None:
    changes = ["data.target=weight", "loss=mse", "model.outputs=1", "output_dir=run", "--overwrite"]
    # As in earlier versions, except that the columns are not standardized.
    assert main(["train", "pets.yaml", *changes, "data.standardize=false"]) == 0
    (project / "run/data.json").unlink()
    config = (project / "run/config.yaml").read_text()
    (project / "run/config.yaml").write_text(
        config.replace("standardize: false", "standardize: true")
    )
    capsys.readouterr()
    _, metrics = evaluated(capsys)
    # Weights range from 0 to 100; standardized weights would give a loss of about 1.
    assert metrics["loss"] > 100


def test_run_without_held_out_rows_evaluates_on_another_file(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "pets.yaml", "data.held_out=0", "output_dir=run", "--overwrite"]) == 0
    capsys.readouterr()
    assert json.loads((project / "run/data.json").read_text())["fitted"]["rows"] == 48
    assert "expected held-out data, got none from csv. Write data.held_out=0.2" in refused(
        capsys, "eval", "run"
    )
    assert evaluated(capsys, "data.path=pets.csv")[0] == 48
    assert main(["resume", "run", "schedule=null", "epochs=3"]) == 0


def test_user_data_function_receives_its_fitted_preprocessing(
    project: pathlib.Path, capsys: Captured
) -> None:
    (project / "own_source.py").write_text(
        "import pathlib, torch\n"
        "from ftrain import data\n"
        "from ftrain.data.sources import Data\n"
        "def pets(path: pathlib.Path, fitted=None):\n"
        "    found = data.csv(path, columns=['size', 'weight'], target='weight')\n"
        "    mean = fitted['mean'] if fitted else float(found['x'].mean())\n"
        "    return Data({'x': found['x'] - mean, 'y': found['y']}, fitted={'mean': mean})\n"
    )
    changes = ["loss=mse", "model={name: mlp, inputs: 1, outputs: 1}", "output_dir=run"]
    source = "data={name: own_source.py:pets, path: pets.csv, held_out: 0.25}"
    assert main(["train", "pets.yaml", source, *changes, "--overwrite"]) == 0
    capsys.readouterr()
    own = evaluated(capsys)
    assert own[0] == 12
    _, held_out = data.split({"row": torch.arange(48)}, 0.25)
    write(project / "new.csv", [rows()[n] for n in held_out["row"].tolist()])
    assert evaluated(capsys, "data.path=new.csv") == own
