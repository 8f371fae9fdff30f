"""Test steps of modules that keep results of an earlier forward pass with their graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

import ftrain
from ftrain import optim, testing

X, Y = torch.randn(2, 6, 3).unbind()


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch) - Y[:, :1]).square().mean()


class Keeping(nn.Module):
    """Linear layer that keeps its last output, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.features: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.output = self.layer(x)
        self.features = [self.output]
        return self.output


class Derived(nn.Module):
    """Linear layer with a scale that is computed from a parameter once, when the layer is built."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.log_scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1))
        self.scale = self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


def _kept() -> nn.Module:
    model = Keeping()
    model(X).sum().backward()
    model.zero_grad()
    return model


def _pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def _normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="parametrizations"):
        return nn.Sequential(weight_norm(nn.Linear(3, 1)))


@pytest.mark.parametrize("build", [_kept, _pruned, _normed])
def test_model_that_keeps_results_with_a_graph_trains_like_the_module(
    build: Callable[[], nn.Module],
) -> None:
    model = build()
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    state, compiled = steps.init_state(0), ftrain.compile(steps.train_step, backend="eager")
    traced = state
    torch_optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        state, _ = steps.train_step(state, X)
        traced, _ = compiled(traced, X)
        torch_optimizer.zero_grad()
        loss_fn(model, X).backward()
        torch_optimizer.step()
    testing.assert_same_bits(traced, state)
    trained = dict(model.named_parameters())
    for name, value in state.params.items():
        torch.testing.assert_close(value, trained[name].detach())
    exported = ftrain.export(state, model)
    torch.testing.assert_close(exported(X), model(X))
    again = ftrain.make_steps(exported, loss_fn, optim.sgd(0.1))  # a forward pass of it was kept
    testing.assert_same_bits(again.init_state(0).params, state.params)


def test_model_that_reads_a_kept_result_before_it_is_computed_again_raises() -> None:
    steps = ftrain.make_steps(Derived(), loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match=r"never be trained.*holds it as `scale`"):
        steps.train_step(steps.init_state(0), X)
