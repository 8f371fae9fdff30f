"""Test that `Trainer.fit` shows a progress bar in terminals and notebooks only, by default."""

from __future__ import annotations

import contextlib
import io
import pathlib
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftrain import checkpoint
from ftrain.loop import CallbackWarning, Trainer, callbacks
from ftrain.loop.callbacks import progress as progress_module
from tests.loop.callbacks.test_display import Terminal, last_line
from tests.loop.runs import STEPS, digest, fit, train_data, trainer


def shown_in_terminal(run: Callable[[], Any]) -> io.StringIO:
    with contextlib.redirect_stderr(Terminal()) as stream:
        run()
    return stream


def test_fit_shows_a_bar_in_a_terminal_by_default() -> None:
    line = last_line(shown_in_terminal(lambda: fit(trainer(), epochs=2)))
    assert line.startswith("epoch 2/2: 100%")
    assert "14/14" in line
    assert " train loss " in line
    assert ", eval loss " in line


def test_fit_prints_nothing_with_progress_false() -> None:
    stream = shown_in_terminal(lambda: fit(trainer(progress=False), epochs=2))
    assert stream.getvalue() == ""


def test_fit_prints_nothing_into_files_and_pipes(capfd: pytest.CaptureFixture[str]) -> None:
    fit(trainer(), epochs=2)
    assert capfd.readouterr() == ("", "")


def test_fit_trains_if_sys_stderr_is_none() -> None:
    with contextlib.redirect_stderr(None):  # as under pythonw, or with a closed stream
        assert fit(trainer(), epochs=1).status == "completed"


def test_fit_shows_no_default_bar_beside_a_progress_bar_callback() -> None:
    own = io.StringIO()
    bar = callbacks.ProgressBar(stream=own)
    assert shown_in_terminal(lambda: fit(trainer(bar), epochs=1)).getvalue() == ""
    assert own.getvalue()


def test_events_generator_shows_no_progress_bar() -> None:
    def consume() -> None:
        for _ in trainer().events(STEPS.init_state(0), train_data(), max_steps=2):
            pass

    assert shown_in_terminal(consume).getvalue() == ""


def test_default_bar_is_not_shown_on_ranks_other_than_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert shown_in_terminal(lambda: fit(trainer(), epochs=1)).getvalue() == ""


def test_default_bar_changes_neither_the_run_nor_its_checkpoints(
    tmp_path: pathlib.Path, recwarn: pytest.WarningsRecorder
) -> None:
    plain = fit(trainer(store=checkpoint.Store(tmp_path / "plain")), epochs=2)
    shown_in_terminal(
        lambda: fit(trainer(store=checkpoint.Store(tmp_path / "shown")), epochs=1),
    )
    resumed = fit(trainer(store=checkpoint.Store(tmp_path / "shown")), epochs=2, resume=True)
    assert digest(resumed) == digest(plain)
    assert not [each for each in recwarn if issubclass(each.category, CallbackWarning)]


def test_run_completes_with_one_warning_if_its_progress_bar_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setattr(callbacks.ProgressBar, "__call__", broken)
    with pytest.warns(CallbackWarning, match="the terminal is gone.*progress=False") as caught:
        shown_in_terminal(lambda: fit(trainer(), epochs=2))
    assert len(caught) == 1
    assert pathlib.Path(caught[0].filename).name == "runs.py"  # the file that calls `fit`


@pytest.mark.parametrize("progress", [True, False])
def test_default_bar_holds_no_reference_to_the_state_during_the_next_step(progress: bool) -> None:
    states: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def step(state: torch.Tensor, batch: Any) -> Any:
        alive.append(sum(each() is not None for each in states))
        states.append(weakref.ref(new := state + 1))
        return new, {"loss": torch.zeros(())}

    runs = Trainer(step, compile=False, progress=progress)
    batches = [torch.ones(4, 3)] * 4
    shown_in_terminal(lambda: runs.fit(torch.zeros(()), batches, epochs=1))
    assert alive == [0, 1, 1, 1]


def test_trainer_refuses_a_progress_that_is_not_a_bool() -> None:
    with pytest.raises(
        TypeError, match=r"progress: expected True or False, got 'bar'\. Write prog"
    ):
        trainer(progress="bar")


class Notebook:
    """Fake IPython shell, as in the kernel of a notebook."""

    @staticmethod
    def get_ipython() -> Any:
        return types.SimpleNamespace(config={"IPKernelApp": {}})


def shown_in_notebook(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> io.StringIO:
    monkeypatch.setitem(sys.modules, "IPython", Notebook)
    with contextlib.redirect_stderr(io.StringIO()) as stream:  # no terminal
        run()
    return stream


def test_default_bar_in_a_notebook_uses_tqdm_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm.auto import tqdm

    made: list[Any] = []
    chosen = progress_module._in_notebook

    def remembered() -> Any:
        made.append(chosen())
        return made[-1]

    monkeypatch.setattr(progress_module, "_in_notebook", remembered)
    stream = shown_in_notebook(monkeypatch, lambda: fit(trainer(), epochs=2))
    assert issubclass(made[0], tqdm)
    assert "14/14" in last_line(stream)
    assert ", eval loss " in last_line(stream)


def test_progress_bar_callback_draws_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = callbacks.ProgressBar()
    stream = shown_in_notebook(monkeypatch, lambda: fit(trainer(bar), epochs=1))
    assert "\r" in stream.getvalue()
    assert "7/7" in last_line(stream)
