"""Test `ftrain predict RUN data.path=new.csv`: rows in order, in the units of the table."""

from __future__ import annotations

import csv
import io
import json
import pathlib

import pytest
import torch

from ftrain.cli import main
from ftrain.config import load_run

Captured = pytest.CaptureFixture[str]

ROWS = [
    (
        f"{n % 7}.5",
        "red" if n % 3 else "blue",
        f"{100 * (n % 7) - 40 * (n % 3)}",
        "xyz"[n % 3],
        "ny"[n % 2],
    )
    for n in range(30)
]
NAMES = ["size", "colour", "price", "kind", "sold"]
CONFIG = """
model: {name: mlp, inputs: "${data.features}", outputs: 1}
data: {name: csv, path: table.csv, target: price, columns: [size, colour], held_out: 0.2}
loss: mse
epochs: 4
batch_size: 8
compile: false
progress: false
"""
TYPED = {
    "price": [],
    "kind": ["data.target=kind", "model.outputs=3", "loss=cross_entropy"],
    "sold": ["data.target=sold", "loss=binary_cross_entropy"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("predict")
    (folder / "table.csv").write_text("\n".join(map(",".join, [NAMES, *ROWS])) + "\n")
    (folder / "run.yaml").write_text(CONFIG)
    for name, typed in TYPED.items():
        arguments = ["train", f"{folder}/run.yaml", f"output_dir={folder}/{name}", *typed]
        assert main(arguments) == 0
    return folder


@pytest.fixture
def project(
    trained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> pathlib.Path:
    """Return the directory of the runs, after writing new rows to the current directory."""
    monkeypatch.chdir(tmp_path)
    # The columns have another order, one column is added, and the targets are missing.
    lines = ["colour,id,size", *(f"{row[1]},{n},{row[0]}" for n, row in enumerate(ROWS[::-1]))]
    (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    return trained


def predicted(capsys: Captured, *arguments: str) -> list[dict[str, str]]:
    assert main(["predict", *arguments]) == 0, capsys.readouterr().err
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def by_hand(folder: pathlib.Path) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the outputs of the trained module for the new rows, and the fitted target."""
    run = load_run(folder)
    learnt = json.loads((folder / "data.json").read_text())["fitted"]
    size = learnt["columns"]["size"]
    where = run.parts.facts["features"] - 1  # number of features from columns of words
    rows = []
    for row in ROWS[::-1]:
        words = [float(row[1] == word) for word in ("blue", "red")]
        assert where == 2
        rows.append([(float(row[0]) - size["mean"]) / size["scale"], *words])
    with torch.no_grad():
        return run.module()(torch.tensor(rows)).double(), learnt["target"]


def test_predicted_numbers_are_in_the_units_of_the_table(
    project: pathlib.Path, capsys: Captured
) -> None:
    found = predicted(capsys, f"{project}/price", "data.path=new.csv")
    assert list(found[0]) == ["price"]
    outputs, target = by_hand(project / "price")
    expected = outputs[:, 0] * target["scale"] + target["mean"]
    values = torch.tensor([float(row["price"]) for row in found], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5 * target["scale"])
    true = torch.tensor([float(row[2]) for row in ROWS[::-1]], dtype=torch.float64)
    assert (values - true).abs().mean() < 0.8 * (true - true.mean()).abs().mean()
    # Predictions depend neither on the column of the target nor on the batch size.
    again = predicted(capsys, f"{project}/price", f"data.path={project}/table.csv")[::-1]
    whole = predicted(capsys, f"{project}/price", "data.path=new.csv", "eval_batch_size=30")
    for others in (again, whole):
        same = torch.tensor([float(row["price"]) for row in others], dtype=torch.float64)
        torch.testing.assert_close(same, values, rtol=0, atol=1e-5 * target["scale"])


def test_predicted_classes_have_names_and_probabilities(
    project: pathlib.Path, capsys: Captured
) -> None:
    found = predicted(capsys, f"{project}/kind", "data.path=new.csv")
    assert list(found[0]) == ["kind", "p(x)", "p(y)", "p(z)"]
    outputs, _ = by_hand(project / "kind")
    assert [row["kind"] for row in found] == ["xyz"[place] for place in outputs.argmax(1)]
    shares = [[float(row[f"p({one})"]) for one in "xyz"] for row in found]
    torch.testing.assert_close(torch.tensor(shares).double(), outputs.softmax(1), rtol=0, atol=1e-6)
    found = predicted(capsys, f"{project}/sold", "data.path=new.csv", "--checkpoint", "latest")
    assert list(found[0]) == ["sold", "p(n)", "p(y)"]
    assert all((float(row["p(y)"]) > 0.5) == (row["sold"] == "y") for row in found)


def test_predict_option_out_writes_the_printed_table_to_a_file(
    project: pathlib.Path, tmp_path: pathlib.Path, capsys: Captured
) -> None:
    run = [f"{project}/price", "data.path=new.csv"]
    assert main(["predict", *run]) == 0
    printed = capsys.readouterr().out
    assert main(["predict", *run, "--out", "found.csv"]) == 0
    assert capsys.readouterr().out == "30 rows: found.csv\n"
    assert (tmp_path / "found.csv").read_text() == printed
    assert main(["predict", *run, "--out", "no/where.csv"]) == 2
    assert "--out no/where.csv: cannot be written to: No such file" in capsys.readouterr().err


def test_predict_refuses_rows_that_differ_from_the_table_of_the_run(
    project: pathlib.Path, tmp_path: pathlib.Path, capsys: Captured
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["predict", *arguments]) == 2
        return capsys.readouterr().err

    price = f"{project}/price"
    assert (
        "expected the file of the samples on the command line, got none. Write data.path=FILE"
        in refused(price)
    )
    assert "file not found" in refused(price, "data.path=nowhere.csv")
    assert "target: expected 'price'" in refused(price, "data.path=new.csv", "data.target=id")
    (tmp_path / "new.csv").write_text("colour,size\nred,1\ngreen,2\n")
    assert "new.csv, line 3, column 'colour': expected one of the categories" in refused(
        price, "data.path=new.csv"
    )
    (tmp_path / "new.csv").write_text("colour,size\nred,\nred,3\n")
    assert "new.csv, line 2, column 'size': expected a number, got ''" in refused(
        price, "data.path=new.csv"
    )
    size = json.loads((project / "price/data.json").read_text())["fitted"]["columns"]["size"]
    filled = predicted(capsys, price, "data.path=new.csv", "data.missing=mean")
    (tmp_path / "new.csv").write_text(f"colour,size\nred,{size['mean']}\nred,3\n")
    assert predicted(capsys, price, "data.path=new.csv") == filled
    (tmp_path / "new.csv").write_text("colour\nred\n")
    assert "new.csv: expected a column 'size'" in refused(price, "data.path=new.csv")
    config = ["model={name: mlp, inputs: 64, outputs: 10}", "loss=cross_entropy", "max_steps=1"]
    source = f"{project}/run.yaml"
    assert main(["train", source, *config, "data=digits", "output_dir=digits"]) == 0
    capsys.readouterr()
    assert (
        "data.name: expected data of a file (csv, images, arrays or text), got digits"
        in refused("digits")
    )
    (project / "price/data.json").write_text(
        '{"source": "csv", "facts": {"features": 3}, "fitted": {"a": 1}}'
    )
    said = refused(price, "data.path=new.csv")
    assert "data.json in the run's directory is damaged (KeyError: 'target')" in said
    two = ["model.outputs=2", "loss={name: model.py:loss_fn}"]
    (tmp_path / "model.py").write_text(
        "def loss_fn(model, batch): return model(batch['x']).square().mean()\n"
    )
    assert main(["train", source, *two, "max_steps=1", "output_dir=two"]) == 0
    capsys.readouterr()
    (tmp_path / "new.csv").write_text("colour,size\nred,1\n")
    said = refused("two", "data.path=new.csv")
    assert "expected one number per row, got shape (2,) per row" in said
