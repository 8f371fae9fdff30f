"""Runs with a teacher from a configuration: another run, or the average of their own weights."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from typing import Any

import pytest
import torch

from ftrain import tasks
from ftrain.cli import main
from ftrain.config import ConfigError, load, load_run
from ftrain.config.run import train
from ftrain.core import tree
from ftrain.testing import assert_same_bits

MODEL = """
import torch
from torch import nn

def net(width: int = 4):
    found = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))
    found.predictor = nn.Linear(3, 3)
    return found

def rows(n: int = 24):
    x = torch.linspace(-1, 1, 2 * n).view(n, 2)
    return {"x": x, "y": torch.arange(n) % 3, "first": x, "second": 1.1 * x}

def own_loss(model, batch, extras, teacher, scale: float = 1.0):
    wanted = teacher(extras, batch["x"])
    return scale * (model(batch["x"]) - wanted).square().mean()
"""
RUN = """
model: {name: parts.py:net, width: 4}
data: {name: "parts.py:rows", held_out: 8}
epochs: 1
batch_size: 8
compile: false
progress: false
"""


@pytest.fixture(scope="module")
def with_teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a folder with a trained run, for all tests to copy."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "parts.py").write_text(MODEL)
    (folder / "run.yaml").write_text(RUN)
    with contextlib.chdir(folder):
        trained("output_dir=runs/large", "model.width=16", "epochs=1")
    return folder


@pytest.fixture
def folder(
    with_teacher: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    shutil.copytree(with_teacher, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(*overrides: str) -> Any:
    return train(load("run.yaml", list(overrides)))


STUDENT = (
    "loss={name: distillation, teacher: runs/large, temperature: 2}",
    "output_dir=runs/small",
)


def test_run_distils_the_best_weights_of_another_run(folder: pathlib.Path) -> None:
    large = load_run("runs/large")
    result = trained(*STUDENT)
    expected = {"params": large.state.params, "buffers": large.state.buffers}
    assert_same_bits(result.state.extras, {"teacher": expected})
    assert "agreement" in result.history[-1].metrics
    small = load_run("runs/small")
    assert small.predict(torch.zeros(1, 2)).shape == (1, 3)
    assert_same_bits(small.state.extras, {"teacher": expected})
    # The same loss, by hand.
    batch = small.parts.model, {"x": torch.ones(2, 2), "y": torch.tensor([0, 1])}
    teacher = tasks.Teacher(large.parts.model)
    extras = {"teacher": expected}
    by_hand, _ = tasks.distillation(
        small.module(), batch[1], extras, teacher=teacher, temperature=2.0
    )
    loss = small.steps.eval_step(small.state, batch[1])["loss"]
    torch.testing.assert_close(loss, by_hand.value)


def test_run_with_a_teacher_resumes_to_the_same_bits_and_may_be_moved(folder: pathlib.Path) -> None:
    whole = trained(*STUDENT, "epochs=2")
    trained(*STUDENT, "output_dir=runs/again")
    assert main(["resume", "runs/again", "epochs=2"]) == 0
    again = load_run("runs/again", "latest").state
    assert tree.digest(again) == tree.digest(whole.state)
    assert main(["eval", "runs/again"]) == 0
    assert main(["train", "run.yaml", *STUDENT, "--dry-run"]) == 0
    written = (folder / "runs/again/config.yaml").read_text()
    assert "teacher: ../large" in written  # relative to the run's directory


def test_loss_registered_in_a_user_file_receives_a_teacher(folder: pathlib.Path) -> None:
    register = (
        'from ftrain.config import Needs, register\nregister("loss", "own_of_teacher", '
        'Needs(teacher="teacher"))(own_loss)\n'
    )
    (folder / "parts.py").write_text(MODEL + register)
    result = trained(
        "imports=[parts.py]",
        "loss={name: own_of_teacher, teacher: runs/large}",
        "output_dir=runs/small",
    )
    assert result.state.extras.keys() == {"teacher"}


def test_configured_byol_run_learns_from_its_own_average_of_the_weights(
    folder: pathlib.Path,
) -> None:
    result = trained("ema=0.9", "loss=byol")
    assert result.state.extras == {}
    assert result.status == "completed"
    assert main(["train", "run.yaml", "ema=0.9", "loss=byol", "output_dir=x", "--dry-run"]) == 0


REFUSALS = {
    "no average": (("loss=byol",), r"ema: expected the decay of an average .* Write ema: 0\.99"),
    "no run": (
        ("loss={name: distillation, teacher: runs/none}",),
        r"loss\.teacher: the teacher's run: .*runs/none: directory not found",
    ),
    "extras written": (
        ("loss={name: distillation, extras: 3}",),
        r"loss\.extras: expected no value, because the run passes extras to distillation",
    ),
    "own teacher written": (
        ("loss={name: byol, teacher: runs/large}", "ema=0.9"),
        r"loss\.teacher: expected no value, because the run passes teacher to byol",
    ),
    "a number": (
        ("loss={name: distillation, teacher: 3}",),
        r"loss\.teacher: .*got 3",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_error_of_a_teacher_configuration_names_the_key_and_the_remedy(
    name: str, folder: pathlib.Path
) -> None:
    overrides, says = REFUSALS[name]
    with pytest.raises(ConfigError, match=says):
        trained(*overrides)
