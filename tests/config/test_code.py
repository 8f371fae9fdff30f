"""Test that code of a run runs only if allowed, and with a note if somebody else wrote the run."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

from ftrain.cli import main
from ftrain.config import ConfigError, load, load_run
from ftrain.config import _code as code
from ftrain.config.build import build
from ftrain.config.dump import dump
from ftrain.config.load import parse
from ftrain.core._terminal import printable

Captured = pytest.CaptureFixture[str]

CONFIG = """
model: {name: "model.py:Net"}
data: digits
epochs: 1
batch_size: 300
compile: false
progress: false
"""
MODEL = """
import pathlib, torch
pathlib.Path("executed").touch()
def Net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
BUILT_IN = CONFIG.replace('"model.py:Net"', "mlp, inputs: 64, outputs: 10")
ON_RUNS = (
    ["eval", "run"],
    ["resume", "run"],
    ["predict", "run", "data.path=x.csv"],
    ["train", "run/config.yaml", "--dry-run"],
    ["config", "run/config.yaml"],
)


@pytest.fixture
def folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Iterator[pathlib.Path]:
    """Change to a directory with `run`, which was trained with a model of the user; return it."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "own.yaml").write_text(CONFIG)
    (tmp_path / "built_in.yaml").write_text(BUILT_IN)
    (tmp_path / "model.py").write_text(MODEL)
    assert main(["train", "own.yaml", "output_dir=run"]) == 0
    forget(tmp_path, before)
    (tmp_path / "executed").unlink()
    capsys.readouterr()
    yield tmp_path
    forget(tmp_path, before)
    sys.path[:] = path


def forget(folder: pathlib.Path, before: set[str]) -> None:
    """Remove the imported modules of a directory, so that the next import runs them again."""
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def said(capsys: Captured, *arguments: str) -> str:
    main([*arguments])
    return capsys.readouterr().err


def test_code_in_a_run_of_the_same_user_causes_no_note(
    folder: pathlib.Path, capsys: Captured
) -> None:
    for arguments in ON_RUNS[:2]:
        assert "note:" not in said(capsys, *arguments)
    (folder / "run").rename(folder / "moved")
    assert "note:" not in said(capsys, "eval", "moved")
    assert "note:" not in said(capsys, "train", "own.yaml", "--dry-run")


def test_note_names_another_users_run_and_its_code_before_the_code_runs(
    folder: pathlib.Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(reason: str) -> None:
        found = said(capsys, "eval", "run")
        notes = [one for one in found.splitlines() if one.startswith("note: ")]
        expected = f"{reason}; its code runs now: ../model.py:Net (--no-code refuses it)"
        assert [one.removeprefix("note: ") for one in notes] == [expected]

    with monkeypatch.context() as patched:
        patched.setattr(code, "_machine", lambda: b"another")
        line("run was not written by you on this machine")
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: 12345)
        owner = os.stat("run/config.yaml").st_uid
        line(f"run/config.yaml belongs to user {owner}, not to you (user 12345)")
    (folder / "run/config.yaml").open("a").write("# changed\n")
    line("run/config.yaml was changed after the run wrote it")
    (folder / "run/.origin").unlink()
    line("run has no record that you wrote it on this machine")
    os.mkfifo(folder / "run/.origin")
    line("run/config.yaml: expected a regular file, got a pipe")
    (folder / "run/.origin").unlink()
    assert "note: run has no record" in said(capsys, "resume", "run", "epochs=2")
    assert "note:" not in said(capsys, "eval", "run")  # the resumed run is one's own


@pytest.mark.parametrize("arguments", ON_RUNS, ids=lambda arguments: arguments[0])
def test_option_no_code_refuses_each_key_that_names_code_and_runs_none(
    folder: pathlib.Path, capsys: Captured, arguments: list[str]
) -> None:
    (folder / "x.csv").write_text("a\n1\n")
    config = folder / "run/config.yaml"
    text = config.read_text().replace("imports: []", "imports: [../model.py, antigravity]")
    config.write_text(text.replace("callbacks: []", "callbacks: ['subprocess:getoutput']"))
    found = said(capsys, *arguments, "--no-code")
    for key, name in (
        ("model.name", "../model.py:Net"),
        ("imports.0", "../model.py"),
        ("imports.1", "antigravity"),
        ("callbacks.0.name", "subprocess:getoutput"),
    ):
        assert (
            f"{key}: expected a built-in name, because of --no-code (code=False), got '{name}'"
            in found
        )
    assert not (folder / "executed").exists()
    assert "note:" not in found
    assert "antigravity" not in sys.modules


def test_option_no_code_accepts_a_run_that_uses_only_built_in_names(
    folder: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "built_in.yaml", "output_dir=plain", "--no-code"]) == 0
    (folder / "plain/.origin").unlink()
    capsys.readouterr()
    for arguments in (["eval", "plain"], ["resume", "plain"], ["config", "plain/config.yaml"]):
        for flag in ([], ["--no-code"]):
            assert main([*arguments, *flag]) == 0
            assert not capsys.readouterr().err
    assert load_run("plain", code=False).config.model.name == "mlp"


def test_load_with_code_false_refuses_user_code_in_a_run_and_in_its_teachers_run(
    folder: pathlib.Path,
) -> None:
    with pytest.raises(ConfigError, match=r"model.name: expected a built-in name"):
        load_run("run", code=False)
    with pytest.raises(ConfigError, match=r"imports.0: expected a built-in name"):
        build(load("built_in.yaml", ["imports=[antigravity]"], code=False))
    loss = "loss={name: distillation, teacher: run}"
    build(load("built_in.yaml", [loss]))
    with pytest.raises(ConfigError, match=r"the teacher's run: .*expected a built-in name"):
        build(load("built_in.yaml", [loss], code=False))


def test_option_no_code_refuses_callbacks_that_write_outside_of_the_run(
    folder: pathlib.Path, capsys: Captured
) -> None:
    for path, allowed in (
        ("${run}/more.log", True),
        ("elsewhere.log", False),
        ("${run}/../x", False),
    ):
        callback = f"callbacks=[{{name: FileLogger, path: '{path}'}}]"
        arguments = ["train", "built_in.yaml", callback, f"output_dir=out{allowed}", "--no-code"]
        assert main([*arguments, "--overwrite"]) == (0 if allowed else 2)
        refused = (
            "callbacks.0.path: expected a path in the run's directory" in capsys.readouterr().err
        )
        assert refused != allowed
    assert (folder / "outTrue/more.log").exists()
    assert not (folder / "elsewhere.log").exists()


def test_code_named_on_the_command_line_causes_no_note(
    folder: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "built_in.yaml", "output_dir=plain"]) == 0
    (folder / "plain/.origin").unlink()
    assert "note:" not in said(capsys, "eval", "plain", "model=model.py:Net")


@pytest.mark.parametrize(
    "text", ["a\u202eb", "\ufeff\u2066x", "\x1b[2J", "a\tb\nc", "\x85", "\\u202e", "é→👩"]
)
def test_printed_configuration_has_no_control_characters_and_is_read_back_equal(text: str) -> None:
    content = {"model": {"name": "mlp", text: text, "list": [text]}, "data": "digits", "epochs": 1}
    printed = dump(load(content))
    assert printable(printed) == printed
    assert printed.replace("\n", "").isprintable()
    again = parse(printed, pathlib.Path("config.yaml"))
    assert again.model_dump() == load(content).model_dump()
