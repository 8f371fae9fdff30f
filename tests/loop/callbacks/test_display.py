"""Test what a run prints and draws: progress bar, console, files, pictures and profiles."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pathlib
import signal
import struct
import termios
from typing import Any

import pytest
import torch
from PIL import Image

from ftrain.loop import (
    CallbackWarning,
    Event,
    FitResult,
    Logged,
    LoopWarning,
    Notice,
    Plan,
    Progress,
    TrainBegin,
    TrainEnd,
    Trainer,
    callbacks,
)
from ftrain.loop.callbacks import console as console_module
from tests.loop.runs import STEPS, fit, trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def last_line(stream: io.StringIO) -> str:
    return stream.getvalue().replace("\n", "\r").strip("\r").split("\r")[-1]


def test_progress_bar_shows_epoch_evaluation_and_loss() -> None:
    stream = Terminal()
    fit(trainer(callbacks.ProgressBar(refresh=0, stream=stream)), epochs=2)
    text = stream.getvalue()
    assert "epoch 1/2:" in text
    assert "evaluating" in text
    assert "7/14" in text
    line = last_line(stream)
    assert line.startswith("epoch 2/2: 100%")
    assert "14/14" in line
    assert " train loss " in line
    assert ", eval loss " in line


def test_progress_bar_refreshes_at_most_once_per_interval() -> None:
    stream = Terminal()
    fit(trainer(callbacks.ProgressBar(refresh=1e9, stream=stream)), epochs=3)
    # Drawn at the start and the end of the run, and before and after each of three evaluations.
    assert stream.getvalue().count("\r") <= 2 * (2 + 2 * 3)


def test_progress_bar_prints_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    fit(trainer(callbacks.ProgressBar(every=0, stream=stream)), epochs=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 7 + 1
    assert lines[0].startswith("epoch 1/1  step 1/7 (14%)  ")
    assert lines[0].endswith("left")
    assert "step 7/7 (100%)  train loss " in lines[-1]
    assert "  eval loss " in lines[-1]
    assert lines[-1].endswith("done")
    assert "\r" not in stream.getvalue()
    stream = io.StringIO()
    fit(trainer(callbacks.ProgressBar(stream=stream)), epochs=0)
    assert stream.getvalue() == "epoch 0/0  step 0  0:00 done\n"  # without a speed


def test_progress_bar_of_a_resumed_run_starts_at_the_step_it_resumes_from(
    tmp_path: pathlib.Path,
) -> None:
    fit(trainer(store=tmp_path), epochs=1)
    stream = Terminal()
    bar = callbacks.ProgressBar(refresh=1e9, stream=stream)
    fit(trainer(bar, store=tmp_path), epochs=2, resume=True)
    assert "50%" in stream.getvalue().split("\r")[1]


def test_progress_bar_and_console_print_nothing_on_ranks_other_than_0(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("RANK", "3")
    stream = Terminal()
    fit(trainer(callbacks.ProgressBar(stream=stream), callbacks.ConsoleLogger(None)), epochs=1)
    assert not stream.getvalue()
    assert capfd.readouterr() == ("", "")


def test_console_rows_are_printed_above_the_progress_bar() -> None:
    """Each row ends before the progress bar is drawn again."""
    stream = Terminal()
    fit(
        trainer(
            callbacks.ConsoleLogger(None, every=0, stream=stream),
            callbacks.ProgressBar(refresh=0, stream=stream),
        ),
        epochs=1,
    )
    rows = [line for line in stream.getvalue().split("\n") if "  step " in line]
    assert len(rows) == 5  # of three windows, of the epoch and of its evaluation
    for row in rows:
        assert row.split("\r")[-1].startswith("epoch 1 ")


def send(console: callbacks.ConsoleLogger, *events: Event) -> None:
    """Call a console logger with events."""
    for event in events:
        assert console(None, event) == (None, ())


def logged(step: int, seconds: float, split: str = "train_epoch", **values: float) -> Logged:
    return Logged(Progress(step, step), seconds, None, split, {"loss": 0.5, **values})


def ended(seconds: float) -> TrainEnd:
    return TrainEnd(Progress(9, 9), seconds, None, FitResult(None, (), "completed"))


def test_console_logger_omits_rows_until_its_interval_has_passed() -> None:
    stream = io.StringIO()
    console = callbacks.ConsoleLogger(every=5.0, stream=stream)
    begin = TrainBegin(Progress(), 0.0, None, Plan(9, None, 1, 50, None))
    for _ in range(2):  # a second run prints the same lines
        stream.truncate(0)
        # The first evaluation takes 4.9 s; later steps take 1 s each.
        send(console, begin, logged(1, 40.0), logged(1, 44.9, "eval"))
        for step in range(2, 6):
            send(console, logged(step, 44.0 + step), logged(step, 44.5 + step, "eval"))
        send(console, Notice(Progress(), 50.5, None, "message"), ended(51.0))
        lines = stream.getvalue().strip("\0").splitlines()
        assert [line[:30].split() for line in lines[:-2]] == [
            ["epoch", n, "step", n, split]
            for n, split in [(n, s) for n in "125" for s in ("train", "eval")][:4]
        ] + [["note:", "message"]]
        assert [line.split()[1] for line in lines[-2:]] == ["5", "5"]
    send(console, begin, logged(1, 0.0))
    stream.truncate(0)
    send(console, ended(0.1))
    assert not stream.getvalue().strip("\0")  # the last row was printed before
    with pytest.raises(ValueError, match="every: expected a number of seconds"):
        callbacks.ConsoleLogger(every=-1)


def test_console_rows_fit_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"accuracy": 0.25, "grad_norm": 1.0, "learning_rate": 1e-3, "duration": 1.0}
    long = values | {"samples_per_second": 2e4}
    for columns, there, gone in (
        (200, "learning_rate grad_norm samples/s accuracy 1.0", ""),
        (120, "grad_norm samples/s accuracy", "learning_rate 1.0"),
        (80, "loss accuracy", "grad_norm learning_rate samples/s"),
        (20, "loss accuracy", "grad_norm"),
    ):
        monkeypatch.setattr(console_module, "_width", lambda stream, n=columns: n)
        stream = io.StringIO()
        send(callbacks.ConsoleLogger(stream=stream), logged(1, 0.0, **long))
        line = stream.getvalue().rstrip("\n")
        assert all(word in line for word in there.split())
        assert not any(word in line for word in gone.split())
        assert columns == 20 or len(line) <= columns


def test_console_prints_notices_and_the_step_at_which_a_run_resumes(tmp_path: pathlib.Path) -> None:
    def out_of_memory(state: Any, batch: Any) -> Any:
        if len(batch["y"] if isinstance(batch, dict) else batch.batches[0]["y"]) > 4:
            raise torch.OutOfMemoryError("told so")
        return STEPS.train_step(state, batch)

    stream = io.StringIO()
    console = callbacks.ConsoleLogger(stream=stream)
    made = Trainer((out_of_memory, STEPS.eval_step), [console], compile=False, store=tmp_path)
    fit(made, epochs=1)
    assert "note: out of memory at step 1" in stream.getvalue()
    fit(made, epochs=2, resume=True)
    assert "resuming after step 7, epoch 1" in stream.getvalue()


def test_image_grid_text_samples_and_curves_write_their_files(tmp_path: pathlib.Path) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 8, 6, generator=g)
    made = trainer(
        callbacks.ImageGrid(lambda state: images, tmp_path / "images"),
        callbacks.ImageGrid(lambda state: (images[:1, :1], ["7"]), tmp_path / "titled", every=3),
        callbacks.TextSamples(lambda state: f"at {int(state.step)}", tmp_path / "texts", every=3),
        callbacks.JSONLLogger(tmp_path / "metrics.jsonl"),
        callbacks.Curves(tmp_path / "curves.png", every=0),
    )
    fit(made, epochs=1)
    assert (tmp_path / "texts" / "step-00000003.txt").read_text() == "at 3\n"
    names = ["images/step-00000007.png", "titled/step-00000006.png", "curves.png"]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 2
    assert not list(tmp_path.rglob("*.new*"))
    with pytest.warns(CallbackWarning, match=r"images: expected shape.*got \(5, 8\)"):
        fit(trainer(callbacks.ImageGrid(lambda state: images[:, 0, :, 0], tmp_path)), epochs=1)


@pytest.mark.parametrize("first", [True, False])
def test_curves_callback_draws_all_rows_at_any_position_in_the_callback_list(
    first: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from ftrain.loop import plots
    from ftrain.loop.callbacks import curves

    drawn: list[list[tuple[int, str]]] = []

    def draw(log: pathlib.Path, out: pathlib.Path) -> None:
        rows = map(json.loads, log.read_text().splitlines())
        drawn.append([(row["step"], row["split"]) for row in rows])
        out.touch()

    monkeypatch.setattr(plots, "curves", draw)
    monkeypatch.setattr(curves, "_SHARE", float("inf"))
    logs = [
        callbacks.JSONLLogger(tmp_path / "metrics.jsonl"),
        callbacks.Curves(tmp_path / "curves.png", every=0),
    ]
    fit(trainer(*(reversed(logs) if first else logs)), epochs=2)
    train, epoch, held_out = "train", "train_epoch", "eval"
    rows = [(3, train), (6, train), (7, epoch), (7, held_out), (9, train), (12, train)]
    last = [(14, epoch), (14, held_out), (14, train)]
    whole = [*rows, *last]
    assert drawn == [whole[:n] for n in (1, 4, 4, 5, 8, 9)]


def test_curves_without_a_log_warns_about_the_missing_logger(tmp_path: pathlib.Path) -> None:
    with pytest.warns(CallbackWarning, match="expected a log of JSONLLogger"):
        fit(trainer(callbacks.Curves(tmp_path / "curves.png")), epochs=1)


@pytest.mark.filterwarnings("error::ftrain.loop.CallbackWarning")
def test_curves_draws_nothing_for_a_run_without_rows(tmp_path: pathlib.Path) -> None:
    class Interrupts:
        def on_batch_end(self, event: Any) -> None:
            signal.raise_signal(signal.SIGINT)

    seen = [
        callbacks.JSONLLogger(tmp_path / "metrics.jsonl"),
        callbacks.Curves(tmp_path / "curves.png"),
    ]
    assert fit(trainer(*seen), epochs=0).status == "completed"
    result = fit(trainer(*seen, Interrupts()), epochs=1)
    assert (result.status, result.step) == ("interrupted", 1)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.filterwarnings("ignore::ftrain.core.errors.RecompileWarning")
def test_compilation_is_announced_before_and_after_the_first_call(tmp_path: pathlib.Path) -> None:
    stream, terminal = io.StringIO(), Terminal()
    shown = [
        callbacks.ConsoleLogger(stream=stream),
        callbacks.FileLogger(tmp_path / "train.log"),
        callbacks.ProgressBar(refresh=1e9, stream=terminal),
    ]
    made = trainer(*shown, compile={"backend": "eager"})
    fit(made, epochs=1)
    lines = stream.getvalue().splitlines()
    said = [line for line in lines if "compil" in line]
    assert [line.partition(" in ")[0] for line in said] == [
        "compiling the training step ...",
        "compiled the training step",
        "compiling the evaluation step ...",
        "compiled the evaluation step",
    ]
    assert lines.index(said[1]) < next(i for i, line in enumerate(lines) if "(epoch mean)" in line)
    assert "compiling: " in terminal.getvalue()
    assert "compiled the training step in " in (tmp_path / "train.log").read_text()
    stream.truncate(0)
    fit(made, epochs=1)  # the programs are compiled already
    assert "compil" not in stream.getvalue()


def test_profiler_writes_its_trace_if_the_run_ends_before_the_last_traced_step(
    tmp_path: pathlib.Path,
) -> None:
    profiler = callbacks.Profiler(tmp_path, start=6, steps=100, memory=True)
    fit(trainer(profiler, callbacks.PhaseTimes()), epochs=1)
    assert "aten::addmm" in (tmp_path / "trace-step-7.json").read_text()
    assert "aten::addmm" in (tmp_path / "trace-step-7.txt").read_text()


def test_phase_times_sum_to_the_time_of_the_run() -> None:
    from ftrain.loop import WindowEnd

    class Sums:
        def __init__(self) -> None:
            self.total, self.ended = 0.0, 0.0

        def on_window_end(self, event: WindowEnd) -> None:
            self.ended = event.seconds

        def on_logged(self, event: Logged) -> None:
            self.total += sum(v for name, v in event.values.items() if name.startswith("time/"))

    sums = Sums()
    fit(trainer(callbacks.PhaseTimes(), sums), epochs=2)
    # The last row covers everything but TrainEnd. The machine may run other processes between two
    # phases: up to 6 % of the time was missing.
    assert sums.total == pytest.approx(sums.ended, rel=0.2)


def test_gradient_monitor_names_vanishing_and_exploding_layers() -> None:
    from ftrain.loop import Notify, Progress, WindowEnd

    monitor, state, said = callbacks.GradientMonitor(), None, []
    state = monitor.init()
    norms = [(1.0, 1.0), (1.0, 1e-9), (1.0, 1e-9), (1.0, 1.0), (900.0, 1.0), (float("nan"), 1.0)]
    for step, (a, b) in enumerate(norms):
        values = {"grad_norm/enc.0": a, "grad_norm/head": b, "loss": 1.0}
        event = WindowEnd(Progress(step=step), 0.0, None, values, 1, 1, 0, None)
        state, asked = monitor(state, event)
        said += [note.message for note in asked if isinstance(note, Notify)]
    assert [each.split(":")[:2] for each in said] == [
        ["step 1", " vanishing gradient in layer head"],
        ["step 4", " exploding gradient in layer enc.0"],
    ]
    # A layer that vanishes and recovers again and again is not reported each time, and several
    # layers are reported in one notice.
    for step in range(6, 26):
        norm = 1e-9 if step % 2 else 1.0
        values = {f"grad_norm/{i}": norm for i in range(9)} | {"grad_norm/enc": 1.0}
        event = WindowEnd(Progress(step=step), 0.0, None, values, 1, 1, 0, None)
        state, asked = monitor(state, event)
        said += [note.message for note in asked]
    assert len(said) == 3
    assert said[2].count("vanishing") == 5
    assert said[2].endswith("and 4 layers more")
    with pytest.warns(CallbackWarning, match="monitored_steps"):
        fit(trainer(callbacks.GradientMonitor()), epochs=1)


def test_gradient_monitor_reports_are_in_the_log_and_on_the_console(
    tmp_path: pathlib.Path,
) -> None:
    def step(state: Any, batch: Any) -> Any:
        return state, {"loss": 1.0, "grad_norm/head": 0.0, "grad_norm/body.0": 1.0}

    stream = io.StringIO()
    seen = [callbacks.ConsoleLogger(stream=stream), callbacks.FileLogger(tmp_path / "train.log")]
    monitored = Trainer(step, [callbacks.GradientMonitor(), *seen], compile=False, log_every=1)
    monitored.fit(None, [torch.ones(2)], epochs=1)
    for text in (stream.getvalue(), (tmp_path / "train.log").read_text()):
        assert "note: step 1: vanishing gradient in layer head: its norm is 0" in text
    with pytest.warns(LoopWarning, match="vanishing gradient in layer head"):
        Trainer(step, [callbacks.GradientMonitor()], compile=False, log_every=1).fit(
            None, [torch.ones(2)], epochs=1
        )


def bar_on_a_terminal(rows: int, columns: int) -> str:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        fit(trainer(callbacks.ProgressBar(refresh=1e9, stream=stream)), epochs=1)
        stream.flush()
        os.set_blocking(ours, False)
        shown = b""
        with contextlib.suppress(BlockingIOError):
            while True:  # a read returns part of the terminal's output
                shown += os.read(ours, 1 << 16)
    os.close(ours)
    return shown.decode()


def test_progress_bar_works_in_a_terminal_that_reports_a_size_of_zero() -> None:
    shown = bar_on_a_terminal(0, 0)
    assert "epoch 1/1: 100%" in shown
    assert "7/7" in shown


@pytest.mark.parametrize("columns", [80, 120])
def test_progress_bar_shows_the_losses_at_any_width(columns: int) -> None:
    line = bar_on_a_terminal(24, columns).rstrip().split("\r")[-1].strip()
    assert len(line) <= columns
    assert ", eval loss " in line
    assert line.endswith("]")
    assert ("steps/s" in line) == (columns == 120)
