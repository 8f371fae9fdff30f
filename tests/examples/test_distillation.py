"""Test the distillation example: the teacher's outputs replace the labels."""

from __future__ import annotations

import pathlib

import pytest
import torch

from examples import digits, distillation
from ftrain import data
from ftrain.testing import assert_same_bits


def test_student_has_the_size_that_the_example_documents() -> None:
    small, large = (
        sum(p.numel() for p in model().parameters())
        for model in (distillation.Small, digits.LeNet5)
    )
    assert (small, large) == (666, 61706)


def test_student_without_labels_learns_from_the_teacher(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = distillation.main(["--epochs", "6", "--out", str(tmp_path)])
    # Six epochs with seeds 0 to 3: 95.6 to 96.4 %, 83.6 to 87.8 %, and 69.4 to 73.6 % of 100 labels.
    assert found["LeNet-5"] > 0.9
    assert found["the teacher"] > 0.8 > found["100 labels"]
    assert (tmp_path / "distillation.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert f"{found['the teacher']:.1%}" in said[0]
    assert str(tmp_path / "distillation.png") in said[1]


def test_training_keeps_the_teacher_unchanged_and_reads_no_label() -> None:
    teacher, _ = digits.train(1, compiled=False)
    student = distillation.students(teacher, 4)["the teacher"]
    state = student.init_state(0)
    images = {"image": digits.digits()[0]["image"]}
    for batch, _ in zip(data.Loader(images, 64), range(4), strict=False):
        assert batch.keys() == {"image"}
        state, metrics = student.train_step(state, batch)
    assert bool(torch.isfinite(metrics["loss"]))
    expected = {"teacher": {"params": teacher.params, "buffers": teacher.buffers}}
    assert_same_bits(state.extras, expected)
