"""`assert_pure` detects changes of global state and of a model's state."""

from __future__ import annotations

import random
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftrain import testing
from tests.core.hidden import REFUSED, RESTORED, Hides

X = torch.linspace(-1, 1, 8).view(2, 4)


@pytest.mark.parametrize("kind", [*RESTORED, *REFUSED], ids=lambda kind: kind.__name__)
def test_assert_pure_detects_changes_of_hidden_model_state(kind: type[Hides]) -> None:
    model = kind()
    with pytest.raises(
        AssertionError,
        match=r"of the model|the model itself|the model owns|the model's own|has advanced|a tensor of",
    ):
        testing.assert_pure(lambda x: model(x).detach(), X, model=model)


def test_assert_pure_accepts_a_model_without_hidden_state() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU())
    testing.assert_pure(lambda x: model(x).detach(), X, model=model)


def test_assert_pure_detects_changed_buffers_and_shared_memory() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(AssertionError, match=r"a tensor of the model changed: \['1\.\w+'\]"):
        testing.assert_pure(lambda x: model(x).detach(), X, model=model)
    with pytest.raises(AssertionError, match=r"shares memory with 0\.weight of the model"):
        testing.assert_pure(lambda: model[0].weight.detach(), model=model)


def set_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(
    ("change", "undo", "name"),
    [
        (lambda: torch.rand(1), lambda: None, "random state of torch"),
        (lambda: np.random.rand(), lambda: None, "random state of numpy"),
        (random.random, lambda: None, "random state of Python"),
        (
            lambda: torch.set_grad_enabled(False),
            lambda: torch.set_grad_enabled(True),
            "grad mode",
        ),
        (set_default_dtype, lambda: torch.set_default_dtype(torch.float32), "default dtype"),
        (
            lambda: torch.set_autocast_enabled("cpu", True),
            lambda: torch.set_autocast_enabled("cpu", False),
            "autocast",
        ),
        (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
            "deterministic algorithms",
        ),
        (
            lambda: torch.distributions.Distribution.set_default_validate_args(
                not torch.distributions.Distribution._validate_args
            ),
            lambda: torch.distributions.Distribution.set_default_validate_args(
                not torch.distributions.Distribution._validate_args
            ),
            "validation of torch.distributions",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_assert_pure_detects_changes_of_global_state(change: Any, undo: Any, name: str) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        change()
        return x + 1

    try:
        with pytest.raises(AssertionError, match=f"the call changed the {name}"):
            testing.assert_pure(fn, X)
    finally:
        undo()


def test_assert_pure_names_the_changed_path_in_a_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.config = SimpleNamespace(inner={"steps": [0]})

    def fn(x: torch.Tensor) -> torch.Tensor:
        model.config.inner["steps"].append(1)
        return x + 1

    with pytest.raises(AssertionError, match=r"changed config\.inner\['steps'\] of the model"):
        testing.assert_pure(fn, X, model=model)


def test_assert_pure_names_the_model_itself_if_a_model_dict_changes() -> None:
    model = {"calls": 0}

    def fn(x: torch.Tensor) -> torch.Tensor:
        model["calls"] += 1
        return x + 1

    with pytest.raises(AssertionError, match="^the call changed the model itself$"):
        testing.assert_pure(fn, X, model=model)


class Ticking(threading.Thread):
    """A thread that changes itself while other code runs, like the monitor of tqdm."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ticks, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(1e-4):
            self.ticks += 1


def test_assert_pure_ignores_a_running_thread_that_changes_itself() -> None:
    thread = Ticking()
    thread.start()

    def double(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return x * (2 if thread.daemon else 1)

    try:
        testing.assert_pure(double, torch.ones(3))
    finally:
        thread.stopped.set()
        thread.join()
