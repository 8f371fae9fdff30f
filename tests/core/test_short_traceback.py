"""Tracebacks of errors in a step show the user's frames, not those of ftrain and of torch's tracer."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.core import _short_traceback

MODES = ["eager", "compiled", "vmapped", "compiled vmapped"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def loss_fn(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def fail(mode: str, loss: Any = loss_fn, **options: Any) -> Exception:
    """Return the error of a step."""
    steps = ftrain.make_steps(Net, loss, optim.sgd(0.1), **options)
    state, batch = steps.init_state(0), torch.ones(4, 3)
    step: Any = steps.train_step
    if "vmapped" in mode:
        step, batch = torch.vmap(step, in_dims=(None, 0)), batch.expand(2, 4, 3)
    if "compiled" in mode:
        step = ftrain.compile(step, backend="eager")
    try:
        step(state, batch)
    except Exception as error:
        return error
    raise AssertionError("the step did not raise")


def lines_of(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_traceback_of_a_shape_error_has_few_lines_and_shows_user_frames_and_the_layer(
    mode: str, accumulate: int
) -> None:
    shown = lines_of(fail(mode, accumulate=accumulate))
    assert shown.count("\n") <= 30
    for part in ("in loss_fn\n", "in forward\n    return self.second(self.first(x))", "linear.py"):
        assert part in shown
    assert "FTRAIN_TRACEBACK=full" in shown
    assert "keyed.py" not in shown


def test_traceback_of_an_error_raised_in_a_trace_is_short_and_shows_its_cause() -> None:
    def branches(model: Any, batch: Tensor) -> Tensor:
        return model.first(batch).sum() if batch.sum() > 0 else model.first(batch).mean()

    error = fail("compiled", branches)
    assert isinstance(error, ftrain.errors.TraceError)
    assert lines_of(error).count("\n") <= 40
    assert "in branches" in lines_of(error)


def test_traceback_of_an_error_in_a_model_constructor_is_short() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(3) @ torch.ones(4)

    with pytest.raises(RuntimeError, match="inconsistent tensor size") as raised:
        ftrain.bind(Wrong)
    assert lines_of(raised.value).count("\n") <= 30
    assert "torch.ones(3) @ torch.ones(4)" in lines_of(raised.value)


def test_environment_variable_ftrain_traceback_full_shows_the_full_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FTRAIN_TRACEBACK", "full")
    shown = lines_of(fail("eager"))
    assert "keyed.py" in shown
    assert "FTRAIN_TRACEBACK=full" not in shown


def test_frames_removed_from_a_traceback_keep_no_tensors_alive() -> None:
    held: list[weakref.ref[Tensor]] = []

    def loss(model: Any, batch: Tensor) -> Tensor:
        activation = model.first(batch)
        held.append(weakref.ref(activation))
        return model.second(activation)

    error = fail("eager", loss)
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    assert held[0]() is None


def test_locals_of_removed_frames_are_released_except_those_of_generators() -> None:
    def suspended() -> Iterator[int]:
        held = 1
        yield held
        yield held + 1

    def plain() -> None:
        held = 2
        raise ValueError(held)

    with pytest.raises(ValueError, match="2") as raised:
        plain()
    entry = raised.tb.tb_next
    assert entry is not None
    generator = suspended()
    next(generator)
    frame = SimpleNamespace(tb_frame=generator.gi_frame)
    _short_traceback._release([frame, entry])  # type: ignore[list-item]
    assert entry.tb_frame.f_locals == {}
    assert list(generator) == [2]
