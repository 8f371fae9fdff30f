"""Modules of TorchScript: their tensors are refused or watched, their attributes are restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing
from ftrain.core._restored_objects import Owned
from ftrain.core.errors import ImpureFunctionError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def scripted() -> nn.Module:
    layers: nn.Module = torch.jit.script(nn.BatchNorm1d(3).requires_grad_(False))
    return layers


MODELS: dict[str, Callable[[], nn.Module]] = {
    "0": lambda: nn.Sequential(scripted(), nn.Linear(3, 2)),
    "model": scripted,
}


@pytest.mark.parametrize("name", MODELS)
def test_bind_refuses_scripted_modules_with_tensors(name: str) -> None:
    for model in (MODELS[name], MODELS[name]()):
        with pytest.raises(TypeError, match=f"^{name}: expected a module written in Python"):
            ftrain.bind(model)


def test_bind_accepts_scripted_modules_without_tensors() -> None:
    apply = ftrain.bind(nn.Sequential(nn.Linear(3, 2), torch.jit.script(nn.ReLU())))
    assert sorted(apply.init(ftrain.random.key(0))[0]) == ["0.bias", "0.weight"]


def test_loss_that_changes_a_captured_scripted_module_raises() -> None:
    teacher = scripted()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = (model(x) - teacher(x)).square().mean()
        return value

    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), loss, optim.sgd(0.1))
    with pytest.raises(ImpureFunctionError, match="teacher.num_batches_tracked"):
        steps.train_step(steps.init_state(0), torch.ones(4, 3))


class Counting(nn.Module):
    """Attributes of every kind that TorchScript lets a forward change."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Any = torch.jit.Attribute(0, int)
        self.rate: Any = torch.jit.Attribute(float("nan"), float)
        self.calls: Any = torch.jit.Attribute([0], list[int])
        self.named: Any = torch.jit.Attribute({"a": 1.0}, dict[str, float])
        self.last: Any = torch.jit.Attribute(None, Optional[Tensor])  # noqa: UP045  # TorchScript's
        self.seen: Any = torch.jit.Attribute([], list[Tensor])

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls.append(self.count)
        self.named["a"] = self.named["a"] * 2
        self.last = x
        self.seen.append(x)
        return x * self.count * self.named["a"] + len(self.calls) + len(self.seen)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("kind", [Counting, Nested])
def test_attributes_that_a_scripted_module_changes_are_restored(kind: type[nn.Module]) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), torch.jit.script(kind()))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value: Tensor = model(x).square().mean()
        return value

    for model in (make, make()):
        steps = ftrain.make_steps(model, loss, optim.sgd(0.1))
        state, x = steps.init_state(0), torch.ones(4, 3)
        expected = steps.train_step(state, x)
        testing.assert_same_bits(steps.train_step(state, x), expected)
        compiled = ftrain.compile(steps.train_step, backend="eager")
        testing.assert_same_bits(compiled(state, x), expected)
        testing.assert_same_bits(steps.train_step(state, x), expected)


def test_attribute_of_a_scripted_module_is_restored_if_an_equal_tensor_replaces_it() -> None:
    """Numbers are read from C++ as new objects each time; tensors are compared by identity."""
    model = torch.jit.script(Counting())
    zeros = torch.zeros(2)
    model.last = zeros
    owned = Owned([("model", model)])
    assert owned.restore() == ([], [])
    model.last = torch.zeros(2)
    (change,), refusals = owned.restore()
    assert (change.node, refusals) == (model, [])
    assert model.last is zeros


def test_assert_pure_names_a_scripted_module_that_changed() -> None:
    model = torch.jit.script(Counting())

    def impure(x: Tensor) -> Tensor:
        out: Tensor = model(x)
        return out

    with pytest.raises(AssertionError):
        testing.assert_pure(impure, torch.ones(2), model=model)
