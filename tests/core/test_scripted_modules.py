"""Modules whose tensors TorchScript holds: refused in a model, watched in a loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
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
