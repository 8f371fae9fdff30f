"""Test training on full disks, by a sample of the campaign in `full_disk.py`."""

from __future__ import annotations

import pathlib

import pytest

from tests.cli import full_disk

NO_MOUNT = "this process may not mount a tmpfs"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> full_disk.Project:
    return full_disk.Project(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("size", [4 << 10, 16 << 10, 60 << 10])
def test_run_on_a_full_disk_prints_an_error_of_one_sentence_and_can_be_resumed(
    project: full_disk.Project, size: int
) -> None:
    if not full_disk.can_mount():
        pytest.skip(NO_MOUNT)
    outcome, faults = project.on_disk_of(size)
    assert faults == []
    assert outcome.code


@pytest.mark.parametrize("sticky", [True, False], ids=["and all after it", "alone"])
def test_run_whose_write_fails_prints_an_error_of_one_sentence_and_can_be_resumed(
    project: full_disk.Project, sticky: bool
) -> None:
    count = full_disk.count(project.configuration, project.new())
    assert count > 150
    for k in range(7, count, 60):
        _, faults = project.with_failing_write(k, sticky)
        assert faults == [], f"write {k} of {count}"


@pytest.mark.parametrize("size", [100, 1500])
def test_run_beyond_a_file_size_limit_prints_an_error_of_one_sentence_and_can_be_resumed(
    project: full_disk.Project, size: int
) -> None:
    outcome, faults = project.with_limit(size)
    assert faults == []
    assert outcome.code


def test_checks_of_the_full_disk_tests_detect_repeated_notes_tracebacks_and_leftover_files(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / ".draft-0").touch()
    note = "\nnote: the checkpoint of step 1 could not be written"
    end = "\nftrain train: No space left on device. The disk is full: free 4 kB"
    assert full_disk.Outcome(1, note + end).faults(tmp_path) == [".draft-0 left"]
    assert "a repeated note" in full_disk.Outcome(1, 2 * note + end).faults(tmp_path)
    assert "a traceback" in full_disk.Outcome(1, f"Traceback{end}").faults(tmp_path)
    assert "2 closing sentences" in full_disk.Outcome(1, 2 * end).faults(tmp_path)
