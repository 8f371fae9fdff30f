"""A refused write into an input, a captured tensor or a parameter names the line that made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.core._write_line import WriteWatch, with_line, written
from ftrain.core.errors import ImpureFunctionError

BATCH = torch.ones(4, 3)
CAPTURED = torch.ones(3)


def counted(model: Any, batch: Tensor) -> Tensor:
    batch.add_(1)
    return model(batch).sum()


def in_a_view(model: Any, batch: Tensor) -> Tensor:
    flat = batch.view(-1)
    flat[0] = 3
    return model(batch).sum()


def by_data(model: Any, batch: Tensor) -> Tensor:
    batch.data.add_(1)
    return model(batch).sum()


def captured(model: Any, batch: Tensor) -> Tensor:
    CAPTURED.mul_(2)
    return (model(batch) * CAPTURED).sum()


def parameter(model: Any, batch: Tensor) -> Tensor:
    with torch.no_grad():
        model.weight.mul_(2)
    return model(batch).sum()


def after_a_draw(model: Any, batch: Tensor) -> Tensor:
    noise = torch.nn.functional.dropout(batch)
    batch.add_(noise)
    return model(batch).sum()


def by_out(model: Any, batch: Tensor) -> Tensor:
    torch.sin(batch, out=batch)
    return model(batch).sum()


LOSSES: dict[Callable[..., Tensor], str] = {
    counted: r"batch\.add_\(1\)",
    in_a_view: r"flat\[0\] = 3",
    by_data: r"batch\.data\.add_\(1\)",
    captured: r"CAPTURED\.mul_\(2\)",
    parameter: r"model\.weight\.mul_\(2\)",
    after_a_draw: r"batch\.add_\(noise\)",
    by_out: r"torch\.sin\(batch, out=batch\)",
}


@pytest.mark.parametrize("mode", ["eager", "compiled", "accumulated"])
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_error_for_a_write_to_an_input_names_the_line_of_the_write(
    loss_fn: Callable[..., Tensor], mode: str
) -> None:
    accumulate = 2 if mode == "accumulated" else 1
    steps = ftrain.make_steps(
        lambda: nn.Linear(3, 3), loss_fn, optim.sgd(0.1), accumulate=accumulate
    )
    step: Any = steps.train_step
    if mode == "compiled":
        step = ftrain.compile(step, backend="eager")
    for _ in range(2):
        with pytest.raises(ImpureFunctionError, match=f"here:(?s:.*){LOSSES[loss_fn]}") as raised:
            step(steps.init_state(0), BATCH.clone())
        assert f"in {loss_fn.__name__}" in str(raised.value)


def test_search_for_the_line_of_a_write_does_not_repeat_the_write() -> None:
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), counted, optim.sgd(0.1))
    batch = torch.zeros(4, 3)
    with pytest.raises(ImpureFunctionError):
        steps.train_step(steps.init_state(0), batch)
    assert torch.equal(batch, torch.ones(4, 3))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_writes_to_its_running_statistics_in_training_only(training: bool) -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    for statistics in ([mean, var], [None, None]):
        args = [BATCH, None, None, *statistics, training, 0.1, 1e-5]
        found = written(torch.ops.aten.native_batch_norm.default, args, {})
        expected = [x for x in statistics if x is not None and training]
        assert [id(x) for x in found] == [id(x) for x in expected]


aten = torch.ops.aten
A, B, C = torch.ones(3), torch.ones(3), torch.ones(3)


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "expected"),
    [
        (aten.add.Tensor, (A, B), {}, []),
        (aten.add_.Tensor, (A, B), {"alpha": 2}, [A]),
        (aten.add_.Tensor, (), {"self": A, "other": B}, [A]),
        (aten.add.out, (A, B), {"out": C}, [C]),
        (aten.sort.values, (A,), {"values": B, "indices": C}, [B, C]),
        (aten._foreach_add_.Scalar, ([A, B], 1), {}, [A, B]),
        (aten.view.default, (A, [3]), {}, []),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_tensors_that_an_operator_writes_to_are_found_among_its_arguments(
    operator: Any, args: Any, kwargs: Any, expected: list[Tensor]
) -> None:
    assert [id(x) for x in written(operator, args, kwargs)] == [id(x) for x in expected]


def test_error_that_is_not_about_a_write_is_returned_unchanged_without_a_second_run() -> None:
    def again() -> None:
        raise AssertionError("the function was run again")

    for error in (ValueError("bad"), ImpureFunctionError("no tensor")):
        assert with_line(error, again) is error


def test_first_write_to_one_of_the_watched_tensors_is_recorded_and_writes_to_others_are_not() -> (
    None
):
    watched, other = torch.ones(3), torch.ones(3)
    with WriteWatch([watched]) as watch:
        other.add_(1)
        assert watch.line == ""
        watched[1:].mul_(2)
        watched.add_(1)
        torch._foreach_add_([other, watched], 1)
    assert "watched[1:].mul_(2)" in watch.line
    assert watched.tolist() == [3.0, 4.0, 4.0]
