"""Test that a run changes nothing outside of its directory, whatever links the directory holds."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from ftrain.checkpoint import Store
from ftrain.cli import main
from ftrain.config import ConfigError, load
from ftrain.config._directory import FILES
from ftrain.config.run import train
from ftrain.loop import CallbackWarning
from tests.config.tiny import trained


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return the directory of a run of 12 steps."""
    return trained(tmp_path)


def content(folder: pathlib.Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def again(folder: pathlib.Path, *overrides: str, **options: Any) -> Any:
    return train(load(folder / "config.yaml", [f"output_dir={folder}", *overrides]), **options)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_run_does_not_change_the_targets_of_links_in_its_directory(
    folder: pathlib.Path, link: Callable[[Any, Any], None], how: str
) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    earlier = ["result.json.new", ".curves.png.new.png", "config.yaml.new"]  # drafts' former names
    for name in earlier:
        (folder / name).write_text("mine")
    for name in (*earlier, *(each for each in FILES if each != "data.json")):
        (folder / name).rename(outside / name)
        link(outside / name, folder / name)
    before = content(outside)
    logs = how == "resume" and link is os.symlink
    match = "expected a regular file, got a symbolic link"
    with pytest.warns(CallbackWarning, match=match) if logs else contextlib.nullcontext():
        result = again(folder, "epochs=5", **{how: True})
    assert result.status == "completed"
    assert content(outside) == before


def test_resuming_a_run_does_not_change_its_hard_linked_copy(folder: pathlib.Path) -> None:
    copy = folder.parent / "copy"
    subprocess.run(["cp", "-al", folder, copy], check=True)
    before = content(copy)
    again(folder, "epochs=6", resume=True)
    assert content(copy) == before
    assert b'"step": 24' in (folder / "metrics.jsonl").read_bytes()
    again(copy, "epochs=6", resume=True)
    assert (folder / "metrics.csv").read_text().count("\n") == (
        (copy / "metrics.csv").read_text().count("\n")
    )


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_linked_checkpoints_are_refused_before_anything_is_deleted(
    folder: pathlib.Path, how: str
) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "checkpoints").rename(elsewhere)
    (folder / "checkpoints").symlink_to(elsewhere)
    before = content(folder), content(elsewhere)
    with pytest.raises(ConfigError, match="expected a directory, got the symbolic link") as error:
        again(folder, "epochs=5", **{how: True})
    assert error.value.key == "output_dir"
    assert (content(folder), content(elsewhere)) == before


def test_overwrite_refuses_a_directory_among_the_files_of_a_run(folder: pathlib.Path) -> None:
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").mkdir()
    before = content(folder)
    with pytest.raises(ConfigError, match=r"got the directory .*metrics\.csv"):
        again(folder, overwrite=True)
    assert content(folder) == before


def test_overwrite_reports_a_checkpoint_that_cannot_be_deleted(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}

    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"):
        again(folder, overwrite=True)
    assert before.items() <= content(folder).items()


def test_overwrite_refuses_checkpoints_that_another_process_writes(folder: pathlib.Path) -> None:
    before = content(folder)
    with Store(folder / "checkpoints") as store:
        store.lock()
        with pytest.raises(ConfigError, match="is locked by another process") as error:
            again(folder, overwrite=True)
        assert error.value.key == "output_dir"
    assert content(folder) == before


def test_plot_command_replaces_a_link_instead_of_its_target(folder: pathlib.Path) -> None:
    victim = folder.parent / "victim.png"
    victim.write_text("mine")
    (folder / "curves.png").unlink(missing_ok=True)
    (folder / "curves.png").symlink_to(victim)
    assert main(["plot", str(folder)]) == 0
    assert victim.read_text() == "mine"
    assert not (folder / "curves.png").is_symlink()
