"""Test that the snippets of the guides run, and that the small examples work."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shlex
from typing import Any

import pytest

from examples import custom_callback, own_loop, resume
from ftrain.cli import main
from ftrain.config import load_run
from ftrain.config.keys import keys
from ftrain.core import tree
from ftrain.testing import assert_same_bits
from tests.examples import page

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_snippets_of_the_guide_for_users_of_other_libraries_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    snippets = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "coming_from.md").read_text(), re.S | re.M
    )
    assert len(snippets) == 12
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "coming_from"}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"coming_from.md, snippet {number}", "exec"), namespace)


def test_snippets_of_the_exporting_guide_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    page = (DOCS / "exporting.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    assert len(snippets) == 12
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "exporting"}
    for number, snippet in enumerate(snippets):
        if "onnxscript" in snippet and importlib.util.find_spec("onnxscript") is None:
            continue
        exec(compile(snippet, f"exporting.md, snippet {number}", "exec"), namespace)
    assert {"weights.pt", "model.safetensors", "tuned", "adapters", "probabilities.pt2"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_commands_of_the_configuration_guide_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of the guide are written unchanged before its commands run."""
    monkeypatch.chdir(tmp_path)
    guide = (DOCS / "configuration.md").read_text()
    for content, name in re.findall(r"^```\w+\n(# (\S+)\n.*?)^```", guide, re.S | re.M):
        (tmp_path / name).write_text(content)
    names = {"model.py", "own.py", "houses.py", "pretrained.py", "run.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = "".join(f"{i % 7},{i % 5},{'setosa' if i % 2 else 'virginica'}\n" for i in range(100))
    for name in ("irises.csv", "new.csv", "test.csv"):
        (tmp_path / name).write_text("length,width,species\n" + rows)
    (tmp_path / "houses.csv").write_text("rooms,price\n" + "".join(f"{i},{i}\n" for i in range(99)))
    namespace: dict[str, Any] = {"__name__": "configuration"}
    for kind, block in re.findall(r"^```(sh|python)\n(?!# \S+\n)(.*?)^```", guide, re.S | re.M):
        if kind == "python":
            exec(compile(block, "configuration.md", "exec"), namespace)
            continue
        for line in block.splitlines():
            assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert (tmp_path / "predictions.csv").read_text().startswith("species,p(setosa),p(virginica)\n")
    started = load_run("runs/tuned").parts.init_state()
    trained = namespace["run"].state.params
    assert_same_bits({f"layers.{name}": value for name, value in started.params.items()}, trained)
    assert not namespace["report"].missing
    assert ".params['layers.0.weight']" in namespace["report"].loaded
    commands = [
        "ftrain train run.yaml 'data={name: houses.py:houses, path: houses.csv, held_out: 9}' loss=mse "
        "'model={name: mlp, inputs: 1, outputs: 1}' output_dir=runs/houses",
        "ftrain eval runs/houses data.path=houses.csv",
        "ftrain train runs/houses/config.yaml imports=[own.py] loss=absolute schedule=sawtooth "
        "output_dir=runs/own",
    ]
    for line in commands:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert '"largest": 98.0' in (tmp_path / "runs/houses/data.json").read_text()
    capsys.readouterr()
    mistake = guide.partition("**Mistakes**")[2].partition("    run.yaml")[2].partition("\n")[0]
    line = (tmp_path / "run.yaml").read_text().partition("optimizer:")[0].count("\n") + 1
    config = (tmp_path / "run.yaml").read_text().replace("weight_decay", "weight_decy")
    (tmp_path / "run.yaml").write_text(config)
    assert main(["config", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"run.yaml{mistake}" in said
    assert f"run.yaml:{line}: " in said


def test_tables_of_the_configuration_guide_match_the_schema() -> None:
    """Regenerate the tables with `python -m tests.examples.page` if this fails."""
    text = page.PAGE.read_text()
    assert text == page.written(text)
    assert all(f"| `{key}` |" in text for key, _ in keys())


def test_custom_callback_example_stops_the_run() -> None:
    result = custom_callback.run()
    assert (result.status, result.reason) == ("stopped", "2 evaluations below 0.01")


def test_own_loop_example_with_and_without_events_ends_with_the_same_bits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tree.digest(own_loop.without_a_trainer(3)) == tree.digest(own_loop.with_its_events(3))


def test_resume_example_with_interruptions_ends_with_the_same_bits(tmp_path: pathlib.Path) -> None:
    assert resume.digest(tmp_path / "a", ()) == resume.digest(tmp_path / "b", (3, 7, 8))
