"""Test that commands print warnings as notes, and that Python programs receive warnings."""

from __future__ import annotations

import json
import pathlib
import sys
import warnings

import pytest
import torch

from ftrain.cli import main
from ftrain.cli._print_warnings import notes
from ftrain.config import load, load_run
from ftrain.config.run import train
from ftrain.core._warning_notes import shown
from ftrain.loop import CallbackWarning, LoopWarning
from tests import preloaded

Captured = pytest.CaptureFixture[str]

TABLE = """
model: {name: mlp, inputs: "${data.features}", outputs: "${data.classes}"}
data: {name: csv, path: rows.csv, target: kind, held_out: 0.25}
schedule: {name: warmup_cosine, warmup_steps: 0.1}
epochs: 2
batch_size: 8
compile: false
progress: false
"""


@pytest.fixture
def project(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    x = torch.arange(48) % 3
    lines = [f"{n + k},{n % 5},{'abc'[k]}" for n, k in enumerate(x.tolist())]
    (tmp_path / "rows.csv").write_text("\n".join(["size,age,kind", *lines]) + "\n")
    (tmp_path / "pets.yaml").write_text(TABLE)
    return tmp_path


def test_printed_warning_names_a_line_of_user_code_or_the_package_that_warned() -> None:
    with notes():
        pass
    ours = shown("no gradient", CallbackWarning, "/anywhere/x.py", 3)
    assert ours == "note: no gradient"
    assert shown("odd", UserWarning, torch.nn.__file__, 3) == "note: odd (torch)"
    assert shown("odd", UserWarning, warnings.__file__, 3) == "note: odd"
    here = pathlib.Path("model.py").absolute()
    assert shown("odd", UserWarning, str(here), 3) == "note: odd (model.py:3)"


def test_command_prints_each_warning_as_a_note_once_and_restores_warnings(capsys: Captured) -> None:
    before = warnings.showwarning
    with notes():
        for _ in range(3):
            warnings.warn("twice", LoopWarning, stacklevel=1)
        warnings.warn("once", LoopWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: twice\nnote: once\n"
    assert warnings.showwarning is before


def test_notes_of_several_lines_print_a_repeated_remedy_once(capsys: Captured) -> None:
    with notes():
        for n in (2, 3):
            text = f"compiled again (program {n})\n  x: {n}\nPad the batches."
            warnings.warn(text, LoopWarning, stacklevel=1)
    first = "note: compiled again (program 2)\n  x: 2\nPad the batches.\n"
    assert capsys.readouterr().err == f"{first}note: compiled again (program 3)\n"


def test_python_warning_filters_apply_to_warnings_printed_as_notes(capsys: Captured) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LoopWarning)
        with notes(), pytest.raises(LoopWarning):
            warnings.warn("an error", LoopWarning, stacklevel=1)
        warnings.simplefilter("ignore", LoopWarning)
        with notes():
            warnings.warn("nothing", LoopWarning, stacklevel=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closed", [None, "closed"])
def test_printing_notes_does_not_fail_if_standard_error_is_missing(
    closed: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    stream = None
    if closed:
        stream = (tmp_path / "err").open("w")
        stream.close()
    with monkeypatch.context() as patched, notes():
        patched.setattr(sys, "stderr", stream)
        warnings.warn("unheard", LoopWarning, stacklevel=1)


def test_command_prints_no_source_line_of_ftrain(project: pathlib.Path) -> None:
    """The command runs in another process, because pytest records the warnings of this one."""
    (project / "net.py").write_text(
        "import torch, warnings\n"
        "def net(inputs, outputs):\n"
        "    warnings.warn('a small net')\n"
        "    return torch.nn.Linear(inputs, outputs)\n"
    )

    def command(*arguments: str) -> str:
        return preloaded.run("-m", "ftrain", *arguments).stderr

    assert "note: a small net (net.py:3)\n" in command(
        "train", "pets.yaml", "model.name=net.py:net", "threads=1"
    )
    said = command("resume", "runs/pets", "threads=2", "epochs=4")
    assert "note: resuming from " in said
    assert "  threads: 1 when saved, 2 now\n" in said
    assert "note: the schedule warmup_cosine is stretched from 8 to 16 steps: " in said
    assert "Warning" not in said
    assert "stacklevel" not in said
    assert ".py:" not in said.replace("net.py:3", "")


def test_each_note_on_the_terminal_is_in_the_log_of_the_run(project: pathlib.Path) -> None:
    """The warnings come from building the model, from a callback, and from loading a checkpoint."""
    (project / "net.py").write_text(
        "import torch, warnings\n"
        "def net(inputs, outputs):\n"
        "    warnings.warn('a small net')\n"
        "    return torch.nn.Linear(inputs, outputs)\n"
        "class Warns:\n"
        "    def on_epoch_end(self, event):\n"
        "        warnings.warn(f'epoch {event.result.epoch} was slow')\n"
    )

    def notes_of(*arguments: str) -> list[str]:
        said = preloaded.run("-m", "ftrain", *arguments).stderr
        return [line for line in said.splitlines() if line.startswith("note: ")]

    own = ("model.name=net.py:net", "callbacks=[net.py:Warns]", "threads=1")
    first = notes_of("train", "pets.yaml", *own)
    assert [note.partition(" (")[0] for note in first] == [
        "note: a small net",
        "note: epoch 1 was slow",
        "note: epoch 2 was slow",
    ]
    second = notes_of("resume", "runs/pets", "threads=2", "epochs=4")
    assert {"resuming from", "the schedule"} <= {" ".join(n.split()[1:3]) for n in second}
    log = (project / "runs/pets/train.log").read_text()
    for note in (*first, *second):
        assert f"  {note}\n" in log, note


def test_resuming_with_more_epochs_warns_that_the_schedule_is_stretched(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "pets.yaml"]) == 0
    capsys.readouterr()
    assert main(["resume", "runs/pets"]) == 0
    assert "schedule" not in capsys.readouterr().err  # the schedule has the same length
    expected = (
        "note: the schedule warmup_cosine is stretched from 8 to 16 steps: the learning rate after "
        r"step 8 is 0\.000\d+, not 0\. The result is not that of a run of 16 steps from the start"
    )
    with pytest.warns(LoopWarning, match=expected.removeprefix("note: ")):
        train(load("runs/pets/config.yaml", ["epochs=4", "output_dir=runs/pets"]), resume=True)
    assert main(["resume", "runs/pets", "schedule=null", "epochs=5"]) == 0
    assert "schedule" not in capsys.readouterr().err  # without a schedule
    # The earlier learning rate was constant, not that of a shorter cosine.
    assert main(["resume", "runs/pets", "schedule=cosine", "epochs=6"]) == 0
    assert "stretched" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("schedule", "written"),
    [
        ("{name: cosine}", "schedule.steps=20"),
        (
            "{name: warmup_cosine, warmup_steps: 0.5}",
            "schedule.warmup_steps=10 schedule.total_steps=20",
        ),
        (
            "{name: warmup_stable_decay, warmup_steps: 2, decay_steps: 0.25}",
            "schedule.decay_steps=5 schedule.stable_steps=13",
        ),
    ],
)
def test_resume_with_another_batch_size_asks_for_the_steps_at_which_the_run_ends(
    project: pathlib.Path, capsys: Captured, schedule: str, written: str
) -> None:
    assert main(["train", "pets.yaml", f"schedule={schedule}", "max_steps=6", "epochs=3"]) == 0
    before = (project / "runs/pets/config.yaml").read_bytes()
    capsys.readouterr()
    # Of 36 rows, 16 are used in epoch 2. Five batches of 4 remain, and nine in epoch 3.
    resume = ["resume", "runs/pets", "batch_size=4", "max_steps=null"]
    assert main(resume) == 2
    said = capsys.readouterr().err
    assert "batch_size: expected 8, the earlier value, because the schedule" in said
    assert f"the run ends at step 20. Write {written}, or" in said
    assert (project / "runs/pets/config.yaml").read_bytes() == before
    assert main([*resume, *written.split()]) == 0
    result = json.loads((project / "runs/pets/result.json").read_text())
    assert result["step"] == 20
    rates = [row["metrics"].get("learning_rate", 1.0) for row in result["history"]]
    assert 0 <= min(rates) < 2.5e-4  # the last step of the schedule, of a peak of 1e-3


def test_resume_with_another_batch_size_keeps_schedules_that_have_their_own_end(
    project: pathlib.Path, capsys: Captured
) -> None:
    arguments = ["schedule={name: cosine, steps: 6}", "max_steps=5", "epochs=3"]
    assert main(["train", "pets.yaml", *arguments]) == 0
    assert main(["resume", "runs/pets", "batch_size=4", "max_steps=null"]) == 0
    assert main(["resume", "runs/pets", "schedule=cosine", "max_steps=21", "epochs=9"]) == 0
    capsys.readouterr()
    # The run ends at `max_steps`, whatever the batch size is: the schedule is as long as the run.
    assert main(["resume", "runs/pets", "batch_size=8", "max_steps=25", "epochs=30"]) == 0
    assert "stretched from 21 to 25 steps" in capsys.readouterr().err


def test_resume_with_another_batch_size_refuses_fractional_epochs(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "pets.yaml", "schedule=null", "epochs=1"]) == 0
    assert main(["resume", "runs/pets", "batch_size=4", "epochs=1.5"]) == 2
    assert "Write a whole number of epochs, or max_steps" in capsys.readouterr().err
    assert main(["resume", "runs/pets", "batch_size=4", "epochs=2"]) == 0


def test_load_run_warns_if_data_json_is_missing(project: pathlib.Path) -> None:
    assert main(["train", "pets.yaml"]) == 0
    (project / "runs/pets/data.json").unlink()
    with pytest.warns(LoopWarning, match=r"has no data\.json"):
        load_run("runs/pets")
