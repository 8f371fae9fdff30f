"""Test that logs contain each row once, whatever interrupts the run."""

from __future__ import annotations

import csv
import json
import os
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.checkpoint import Store
from ftrain.core import _file_output
from ftrain.loop import BatchEnd, CallbackWarning, Log, Logged, Progress
from ftrain.loop.callbacks import CSVLogger, FileLogger, JSONLLogger, Throughput
from tests.campaign import examples
from tests.loop.runs import STEPS, Interrupts, eval_data, fit, train_data, trainer

CLOCKS = ("time", "duration", "steps_per_second", "samples_per_second", "tokens_per_second")
OPTIONS: dict[str, Any] = {"log_every": 3, "save_every": 4, "eval_every": 5}


def logged(folder: pathlib.Path, *more: Any, **options: Any) -> Any:
    logs = [JSONLLogger(folder / "metrics.jsonl"), CSVLogger(folder / "metrics.csv")]
    return trainer(*logs, Throughput(), *more, **{**OPTIONS, **options})


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in found]


def table(folder: pathlib.Path) -> list[dict[str, str]]:
    """Return the rows of the CSV log without times and empty cells."""
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in CLOCKS and v} for row in found]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    fit(logged(folder, store=folder / "checkpoints"), epochs=2)
    return folder


def test_json_and_csv_logs_contain_the_same_rows(uninterrupted: pathlib.Path) -> None:
    as_text = [{k: str(v) for k, v in row.items()} for row in rows(uninterrupted)]
    assert as_text == table(uninterrupted)
    steps = [(row["split"], row["step"]) for row in rows(uninterrupted)]
    assert len(steps) == len(set(steps))
    assert [step for split, step in steps if split == "train"] == [3, 6, 9, 12, 14]
    assert [step for split, step in steps if split == "eval"] == [5, 10, 14]
    assert [step for split, step in steps if split == "train_epoch"] == [7, 14]


@settings(max_examples=12, deadline=None)
@given(deaths=st.lists(st.integers(1, 40), min_size=1, max_size=3), torn=st.booleans())
def test_logs_of_a_killed_and_resumed_run_equal_uninterrupted_ones(
    uninterrupted: pathlib.Path, tmp_path_factory: Any, deaths: list[int], torn: bool
) -> None:
    """A killed process leaves its files as they are and saves nothing more."""
    folder = tmp_path_factory.mktemp("killed")
    for n in deaths:
        with Store(folder / "checkpoints") as store:
            events = logged(folder, store=store).events(
                STEPS.init_state(0), train_data(), eval_data(), epochs=2, resume="auto"
            )
            for i, _ in enumerate(events):
                if i == n:
                    break
            events.close()
        if torn:
            for name in ("metrics.jsonl", "metrics.csv"):
                with (folder / name).open("a") as file:
                    file.write('{"step": 3, "epo')
    fit(logged(folder, store=folder / "checkpoints"), epochs=2, resume="auto")
    assert rows(folder) == rows(uninterrupted)
    assert table(folder) == table(uninterrupted)


@pytest.mark.parametrize("kind", [BatchEnd, Logged])
@pytest.mark.parametrize("n", [2, 5])
def test_logs_of_an_interrupted_and_resumed_run_equal_uninterrupted_ones(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path, kind: Any, n: int
) -> None:
    import signal

    stop = Interrupts(signal.SIGINT, kind, n)
    fit(logged(tmp_path, stop, store=tmp_path / "checkpoints"), epochs=2)
    with pytest.warns(CallbackWarning, match="Interrupts"):
        fit(logged(tmp_path, store=tmp_path / "checkpoints"), epochs=2, resume=True)
    assert rows(tmp_path) == rows(uninterrupted)
    assert table(tmp_path) == table(uninterrupted)


def test_a_finished_run_resumed_with_a_later_end_continues_its_logs(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The row of a partial last window is replaced by that of the full one, without repetition."""
    store = tmp_path / "checkpoints"
    fit(logged(tmp_path, store=store, eval_every=None), max_steps=11)
    fit(logged(tmp_path, store=store), epochs=2, resume=True)
    ours = [row for row in rows(tmp_path) if row["split"] == "train"]
    assert ours == [row for row in rows(uninterrupted) if row["split"] == "train"]
    before = rows(tmp_path)
    fit(logged(tmp_path, store=store), epochs=2, resume=True)
    assert rows(tmp_path) == before


def test_times_in_the_log_of_a_resumed_run_increase(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "checkpoints"
    fit(logged(tmp_path, store=store), epochs=1)
    fit(logged(tmp_path, store=store), epochs=2, resume=True)
    times = [json.loads(line)["time"] for line in (tmp_path / "metrics.jsonl").open()]
    assert times == sorted(times)


def test_a_new_run_replaces_the_logs_of_an_earlier_one(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        fit(logged(tmp_path), max_steps=3)
    assert [row["step"] for row in rows(tmp_path) if row["split"] == "train"] == [3]
    assert len(rows(tmp_path)) == len(table(tmp_path))


def test_resumed_logger_starts_a_new_file_if_its_file_is_missing(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "checkpoints"
    fit(logged(tmp_path, store=store), epochs=1)
    for name in ("metrics.jsonl", "metrics.csv"):
        (tmp_path / name).unlink()
    for epochs in (2, 3):
        fit(logged(tmp_path, store=store), epochs=epochs, resume=True)
    steps = [row["step"] for row in rows(tmp_path) if row["split"] == "train_epoch"]
    assert steps == [14, 21]
    assert [row["step"] for row in table(tmp_path) if row["split"] == "train_epoch"] == ["14", "21"]


def row_of(**values: float) -> Logged:
    return Logged(Progress(), 1.0, None, "train", values)


def test_json_logger_writes_non_finite_numbers_as_null(tmp_path: pathlib.Path) -> None:
    logger = JSONLLogger(tmp_path / "log")
    logger(logger.init(), row_of(loss=float("nan"), norm=float("inf")))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    row = json.loads((tmp_path / "log").read_text(), parse_constant=refuse)
    assert row["loss"] is None
    assert row["norm"] is None


@pytest.mark.parametrize("kind", [JSONLLogger, CSVLogger, FileLogger])
def test_file_based_loggers_write_only_on_rank_0(
    kind: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    logger = kind(tmp_path / "log")
    state, _ = logger(logger.init(), row_of(loss=1.0))
    assert state in (None, {"rows": 1})  # the same state as on rank 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_partial_line_in_a_log(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    _file_output.append(path, "first")
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) < len("second\n"):
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        _file_output.append(path, "second")
    assert path.read_text() == "first\n"


def test_a_failing_logger_does_not_fail_the_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.warns(CallbackWarning, match="JSONLLogger raised IsADirectoryError"):
        result = fit(logged(tmp_path), epochs=1)
    assert result.status == "completed"
    assert table(tmp_path)


@settings(max_examples=examples(20, 50), deadline=None)
@given(
    lines=st.lists(st.text('ab," é', max_size=5), max_size=6),
    n=st.integers(0, 8),
    tail=st.text("xy", max_size=3),
)
def test_truncating_a_log_keeps_its_first_n_lines(
    tmp_path_factory: Any, lines: list[str], n: int, tail: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    path.write_text("".join(line + "\n" for line in lines) + tail)
    assert _file_output.keep(path, n) == lines[:n]
    assert path.read_text() == "".join(line + "\n" for line in lines[:n])


def test_json_logger_warns_if_its_path_is_a_device_file(tmp_path: pathlib.Path) -> None:
    """Reading `/dev/stdout` of a terminal waits for input, and `/dev/zero` has no end."""
    with pytest.warns(CallbackWarning, match="/dev/zero: expected a regular file"):
        result = fit(trainer(JSONLLogger("/dev/zero")), max_steps=1)
    assert result.status == "completed"


def test_logs_of_a_resumed_run_accept_metrics_of_any_name(tmp_path: pathlib.Path) -> None:
    """The names have quotes, commas and line ends; a resumed run continues after the same rows."""
    names = ('a,b"c', "two\nlines", "é\u2028x")

    class Logs:
        def on_batch_end(self, event: Any) -> Any:
            return Log(dict.fromkeys(names, 1.0)) if event.progress.step > 2 else None

    for steps in (4, 9):
        made = logged(tmp_path, Logs(), store=tmp_path / "checkpoints")
        fit(made, epochs=2, max_steps=steps, resume="auto")
    whole = tmp_path / "whole"
    fit(logged(whole, Logs()), epochs=2, max_steps=9)
    # The run that ended at step 4 and was resumed has one more row and evaluation, at that end.
    extra = [row for row in table(tmp_path) if row not in table(whole)]
    assert {row["step"] for row in extra} <= {"4"}
    assert [row for row in table(tmp_path) if row not in extra] == table(whole)
    assert len(table(tmp_path)) == len(rows(tmp_path))


def test_file_logger_keeps_the_lines_of_earlier_runs(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "train.log"
    store = tmp_path / "checkpoints"
    fit(trainer(FileLogger(path), store=store), epochs=1)
    fit(trainer(FileLogger(path), store=store), epochs=2, resume=True)
    text = path.read_text()
    assert "begins: to epoch 1\n" in text
    assert "resumes after step 7: to epoch 2\n" in text
    assert "completed at step 14, epoch 2: 2 epochs" in text
    assert text.count("saved ") == 2

    class Breaks:
        def on_batch_end(self, event: Any) -> None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(trainer(FileLogger(path), Breaks()), epochs=1)
    assert "failed (callback Breaks) after step 1:\nTraceback" in path.read_text()
