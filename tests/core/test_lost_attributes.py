"""Warning about models that keep what their loss depends on in Python attributes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing


class Centred(nn.Module):
    """Normalization by a running mean in attributes, as speech toolkits have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count, self.mean = nn.Linear(3, 3), 0, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean + (x.mean(0) - self.mean) / self.count
        return self.layer(x - self.mean)  # type: ignore[no-any-return]


class Queue(nn.Module):
    """Memory of former outputs in a buffer, with the position of the next write in an attribute."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.position = nn.Linear(3, 3), 0
        self.register_buffer("memory", torch.zeros(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        self.memory[self.position : self.position + 4] = out.detach()
        self.position = (self.position + 4) % 8
        return out


class Remembering(nn.Module):
    """Model whose output depends on a list that each call extends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.mean(0))
        return self.layer(x - torch.stack(self.seen).mean(0))  # type: ignore[no-any-return]


class Recording(nn.Module):
    """Model that assigns a counter, a cache and its last output, on which no result depends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.calls = nn.Linear(3, 3), nn.Dropout(), 0
        self.cache: Tensor | None = None
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.cache is None:
            self.cache = torch.arange(3.0).cos()
        self.last = self.drop(self.layer(x * self.cache))
        return self.last


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()  # type: ignore[no-any-return]


def steps_of(model: Callable[[], nn.Module]) -> ftrain.Steps:
    torch.manual_seed(0)
    return ftrain.make_steps(model(), mean_square, optim.sgd(0.1))


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Centred, r"`count` \(0, then 1\), `mean`"),
        (Queue, r"`position` \(0, then 4\)"),
        (Remembering, "`seen`"),
    ],
)
def test_first_step_warns_of_attributes_that_the_next_step_would_need(
    model: Callable[[], nn.Module], named: str
) -> None:
    steps, x = steps_of(model), torch.arange(12.0).view(4, 3)
    state = steps.init_state(0)
    with pytest.warns(UserWarning, match=f"{named}.*register_buffer"):
        first = steps.train_step(state, x)
    with no_warning():
        second = steps.train_step(state, x)
    testing.assert_same_bits(first, second)


def test_first_step_does_not_warn_of_attributes_that_change_no_result() -> None:
    steps, x = steps_of(Recording), torch.arange(12.0).view(4, 3)
    with no_warning():
        steps.train_step(steps.init_state(0), x)


def test_first_step_does_not_warn_of_a_state_in_buffers() -> None:
    steps, x = steps_of(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))), torch.rand(4, 3)
    with no_warning():
        steps.train_step(steps.init_state(0), x)


def test_module_keeps_its_attributes_when_the_first_step_warns() -> None:
    torch.manual_seed(0)
    model = Centred()
    steps = ftrain.make_steps(model, mean_square, optim.sgd(0.1))
    with pytest.warns(UserWarning, match="count"):
        state, _ = steps.train_step(steps.init_state(0), torch.arange(12.0).view(4, 3))
    assert model.count == 0
    assert not model.mean.any()
    assert ftrain.export(state, model).count == 0
