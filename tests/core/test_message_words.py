"""A message with alternative words uses each of them in the case that it describes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import _checks, _differentiate, _file_output, _graph_leaves, _model_calls, export
from ftrain.core._loss_notes import not_tensors
from ftrain.core._warning_notes import shown
from ftrain.core.accumulate import split_evenly
from ftrain.core.compile import _donate, _toolchain
from ftrain.core.errors import DonationError


def state_with(step: Any) -> ftrain.TrainState:
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(1, 1), lambda m, b: m(b).sum(), optim.sgd(0.1)
    )
    state = steps.init_state(0)
    object.__setattr__(state, "step", step)
    return state


def warned(text: str) -> str:
    """Return the name of an operator whose node shows a warning."""
    return _graph_leaves._named(lambda _: warnings.warn(text, stacklevel=1))


STATE = {"a": torch.zeros(2)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda: _model_calls._remedy(None, "w"), "A function captures the parameter 'w'"),
        (lambda: _model_calls._remedy("act", "w"), "A function in the model (`act`) captures"),
        (lambda: _model_calls._remedy(None, None), "Use the `model` argument instead"),
        (lambda: _model_calls._remedy("taps[0]", None), "The model holds it as `taps[0]`,"),
        (lambda: str([*not_tensors("y", [])]), "'a list of no entries'"),
        (lambda: str([*not_tensors("y", [(1,), 2])]), "'a list of tuples'"),
        (lambda: str([*not_tensors("y", "cat")]), "'a str'"),
        (lambda: str(_differentiate._writes("f")), "f writes into its argument. Write"),
        (
            lambda: str(_differentiate._writes("f", "model.py:1")),
            "argument, or into a captured tensor that requires a gradient",
        ),
        (lambda: str(_toolchain.no_compiler("", language="C")), "gcc; Fedora: dnf install gcc;"),
        (lambda: str(_toolchain.no_compiler("")), "g++; Fedora: dnf install gcc-c++;"),
        (lambda: f"[{warned('op: an autograd kernel was not registered')}]", "[ (op)]"),
        (lambda: f"[{warned('op: something else')}]", "[]"),
        (lambda: str(_file_output._irregular(Path("."))), "got a device, pipe or directory."),
    ],
)  # fmt: skip
def test_message_has_the_grammar_and_the_remedy_that_its_case_requires(
    text: Callable[[], str], words: str
) -> None:
    assert words in text()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: _checks.check_state(state_with(torch.tensor(1.0))), TypeError, "a torch.float32"),
        (lambda: _checks.check_state(state_with(3)), TypeError, "got 3. Write"),
        (lambda: split_evenly(torch.zeros(4), 3), ValueError, "a batch of 3 or 6 rows"),
        (lambda: split_evenly(torch.zeros(2), 3), ValueError, "a batch of 3 rows"),
        (lambda: split_evenly(torch.zeros(2), 3), ValueError, r"to one of \[1, 2\]"),
        (lambda: split_evenly(torch.zeros(0), 3), ValueError, r"a batch of 3 rows.*to one of \[1\]"),
        (lambda: _donate.check_fits("f", STATE, ({}, 1)), DonationError, "but its first output"),
        (lambda: _donate.check_fits("f", STATE, {}), DonationError, "but its output differs"),
        (lambda: _donate.check_fits("f", STATE, ()), DonationError, "but its output differs"),
        (
            lambda: export._require_names("params", {"bias_": 1, "bias": 1}, ["bias"], "Net"),  # type: ignore[arg-type]
            ValueError,
            r"params\['bias_'\].* got it in addition\. Did you mean 'bias'",
        ),
        (
            lambda: export._require_names("params", {}, ["bias"], "Net"),  # type: ignore[arg-type]
            ValueError,
            r"params\['bias'\].* got no such tensor\.",
        ),
    ],
)  # fmt: skip
def test_error_has_the_grammar_and_the_remedy_that_its_case_requires(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()


def test_note_names_a_file_by_its_shorter_path_or_by_its_whole_path_on_another_drive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "model.py")
    assert shown("slow", UserWarning, model, 3) == "note: slow (model.py:3)"
    assert shown("slow", UserWarning, "/a.py", 3) == "note: slow (/a.py:3)"

    def refuse(path: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    assert shown("slow", UserWarning, model, 3) == f"note: slow ({model}:3)"
