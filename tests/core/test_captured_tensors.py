"""A loss that writes to a captured tensor raises, however it reached the tensor; kept buffers too."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, random
from ftrain.core.errors import ImpureFunctionError

BATCH = {"x": torch.linspace(-1, 1, 32).view(8, 4), "y": torch.linspace(1, -1, 24).view(8, 3)}
TOTAL = torch.zeros(())
BOX: dict[str, Any] = {"totals": [torch.zeros(())]}
TEACHER = nn.BatchNorm1d(4).requires_grad_(False)


def mse(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def adds_to_global(model, batch):
    return mse(model, batch) + TOTAL.add_(1)


def helper():
    return TOTAL.add_(1)


def adds_in_helper(model, batch):
    return mse(model, batch) + helper()


def adds_in_inner(model, batch):
    def inner():
        return TOTAL.add_(1)

    return mse(model, batch) + inner()


def adds_in_container(model, batch):
    return mse(model, batch) + BOX["totals"][0].add_(1)


def adds_to_default(model, batch, total=torch.zeros(())):  # noqa: B008
    return mse(model, batch) + total.add_(1)


def adds_to_keyword(model, batch, *, total=torch.zeros(())):  # noqa: B008
    return mse(model, batch) + total.add_(1)


def steps_teacher(model, batch):
    return mse(model, batch) + TEACHER(batch["x"]).mean()


def adds(total, model, batch):
    return mse(model, batch) + total.add_(1)


def closure():
    held = {"deep": (torch.zeros(()),)}
    return lambda model, batch: mse(model, batch) + held["deep"][0].add_(1)


class Object:
    def __init__(self):
        self.box = SimpleNamespace(total=torch.zeros(()))

    def loss(self, model, batch):
        return mse(model, batch) + self.box.total.add_(1)

    def __call__(self, model, batch):
        return self.loss(model, batch)


class Through:
    """Object that reads a global variable in a property."""

    @property
    def total(self):
        return TOTAL

    def __call__(self, model, batch):
        return mse(model, batch) + self.total.add_(1)


WRITERS = {
    "global": adds_to_global,
    "helper": adds_in_helper,
    "inner": adds_in_inner,
    "container": adds_in_container,
    "default": adds_to_default,
    "keyword": adds_to_keyword,
    "teacher": steps_teacher,
    "partial": functools.partial(adds, torch.zeros(())),
    "closure": closure(),
    "method": Object().loss,
    "object": Object(),
    "property": Through(),
}


def make(loss_fn: Any) -> ftrain.Steps:
    return ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.1))


@pytest.mark.parametrize("name", WRITERS)
def test_loss_that_writes_to_a_captured_tensor_raises(name: str) -> None:
    steps = make(WRITERS[name])
    state = steps.init_state(0)
    for call in (
        steps.train_step,
        steps.eval_step,
        ftrain.compile(steps.train_step, backend="eager"),
    ):
        with pytest.raises(ImpureFunctionError, match=r"captured tensor|a tensor that it captures"):
            call(state, BATCH)


def test_loss_write_to_a_captured_tensor_that_was_replaced_after_the_first_step_raises() -> None:
    box = {"total": torch.zeros(()), "write": False}

    def loss_fn(model, batch):
        return mse(model, batch) + (box["total"].add_(1) if box["write"] else box["total"])

    steps = make(loss_fn)
    state = steps.init_state(0)
    steps.train_step(state, BATCH)
    box["total"], box["write"] = torch.zeros(()), True
    with pytest.raises(ImpureFunctionError, match=r"captured tensor `box\['total'\]` was changed"):
        steps.train_step(state, BATCH)


def test_steps_read_the_current_values_of_captured_tensors() -> None:
    scale = torch.ones(())
    steps = make(lambda model, batch: mse(model, batch) * scale)
    state = steps.init_state(0)
    _, first = steps.train_step(state, BATCH)
    scale.fill_(2.0)
    _, second = steps.train_step(state, BATCH)
    assert float(second["loss"]) == 2 * float(first["loss"])


ARRAY = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
VIEWED = {"x": torch.from_numpy(ARRAY), "y": torch.zeros(8, 3)}


def writes_numpy_view(model, batch):
    loss = mse(model, batch)
    batch["x"].numpy()[0, 0] += 1
    return loss


def writes_array_of_batch(model, batch):
    loss = mse(model, batch)
    ARRAY[:] = ARRAY[::-1].copy()  # the same words in another order
    return loss


def writes_data(model, batch):
    loss = mse(model, batch)
    batch["x"].data.mul_(2)
    return loss


def writes_parameter_data(model, batch):
    loss = mse(model, batch)
    model.weight.data.clamp_(-0.01, 0.01)
    return loss


def writes_captured_data(model, batch):
    TEACHER.weight.data.mul_(0.5)
    return mse(model, batch)


@pytest.mark.parametrize(
    ("loss_fn", "what"),
    [
        (writes_numpy_view, r"input `batch\['x'\]`"),
        (writes_array_of_batch, r"input `batch\['x'\]`"),
        (writes_data, r"input `batch\['x'\]`"),
        (writes_parameter_data, "parameter `weight`"),
        (writes_captured_data, r"captured tensor `TEACHER\.weight`"),
    ],
)
@pytest.mark.parametrize("kind", ["train_step", "eval_step"])
def test_loss_write_that_bypasses_the_version_counter_raises(
    loss_fn: Any, what: str, kind: str
) -> None:
    steps = make(loss_fn)
    with pytest.raises(ImpureFunctionError, match=what + " was changed in place"):
        getattr(steps, kind)(steps.init_state(0), VIEWED)


def test_model_that_writes_to_its_input_in_prediction_raises() -> None:
    class Writes(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            x.numpy()[:] = 0
            return out

    from ftrain.core.evaluate import prediction

    steps = ftrain.make_steps(lambda: Writes(4, 3), mse, optim.sgd(0.1))
    with pytest.raises(ImpureFunctionError, match="input `batch` was changed in place"):
        prediction(lambda: Writes(4, 3))(steps.init_state(0), torch.ones(2, 4))


class Capturing(nn.Module):
    """A module whose method has one of its own buffers as a default argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2))
        own = self.scale

        def scaled(x: torch.Tensor, scale: torch.Tensor = own) -> torch.Tensor:
            return x * scale

        self.scaled = scaled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(x)


@pytest.mark.parametrize("model", [Capturing, Capturing()], ids=["class", "module"])
def test_bind_refuses_a_module_whose_attribute_is_a_function_that_captures_a_buffer(
    model: Any,
) -> None:
    with pytest.raises(
        ValueError, match="own 'scale' where the state's tensor cannot take its place"
    ):
        ftrain.bind(model).init(random.key(0))
