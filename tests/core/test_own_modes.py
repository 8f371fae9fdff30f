"""Test that steps are those of a loop that calls the model's own `train()` and `eval()`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.core._own_modes import set_flags

RATE = 0.1


class FrozenNorm(nn.Module):
    """BatchNorm that stays in evaluation mode, as in detection models."""

    def __init__(self, training: bool = True) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        if not training:
            self.eval()

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


class Outer(nn.Module):
    """Model with such a submodule, and a layer that its user froze."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = FrozenNorm(), nn.BatchNorm1d(2)
        self.train()
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x))


class Sets(nn.Module):
    """Attribute that depends on the mode."""

    factor = 5.0

    def __init__(self, training: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.train(training)

    def train(self, mode: bool = True) -> Sets:
        self.factor = 1.0 if mode else 2.0
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.factor


class AlwaysTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


class Merges(nn.Module):
    """Low-rank adapter that is merged into the weight in evaluation mode, as in loralib."""

    def __init__(self, training: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(2, 1))
        self.merged = False
        if not training:
            self.eval()

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if mode == self.merged:
            change = self.b.data @ self.a.data
            self.weight.data += -change if mode else change
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.linear(x, self.weight)
        return out if self.merged else out + x @ self.a.T @ self.b.T


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen norm": FrozenNorm,
    "frozen norm, in evaluation mode": lambda: FrozenNorm(training=False),
    "nested": Outer,
    "sets": Sets,
    "sets, in evaluation mode": lambda: Sets(training=False),
    "always training": AlwaysTraining,
    "merges": Merges,
    "merges, in evaluation mode": lambda: Merges(training=False),
}


def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - 1).square().mean()


def batches() -> list[torch.Tensor]:
    return [torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def by_hand(model: nn.Module, name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the tensors of a model after a loop, and its loss in evaluation mode."""
    frozen = [model.norm] if name == "nested" else []
    for x in batches():
        model.train()
        for module in frozen:
            module.eval()
        loss = loss_fn(model, x)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.copy_(p + p.grad * -RATE)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    after = {n: t.detach().clone() for n, t in named.items()}
    return after, loss_fn(model.eval(), batches()[0]).detach()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_steps_call_the_train_and_eval_methods_that_a_model_overrides(
    name: str, compiled: bool
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    torch.manual_seed(0)
    expected, expected_loss = by_hand(MODELS[name](), name)
    before = tree.digest(dict(model.named_parameters()))
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(RATE))
    train, evaluate = steps.train_step, steps.eval_step
    if compiled:
        train, evaluate = (ftrain.compile(fn, backend="eager") for fn in (train, evaluate))
    state = steps.init_state(0)
    for x in batches():
        evaluate(state, x)
        state, _ = train(state, x)
    for key, wanted in expected.items():
        found = {**state.params, **state.buffers}[key]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    loss = evaluate(state, batches()[0])["loss"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    exported = loss_fn(ftrain.export(state, model), batches()[0]).detach()
    torch.testing.assert_close(exported, expected_loss, rtol=1e-6, atol=1e-6)
    assert tree.digest(dict(model.named_parameters())) == before


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_a_model_function_call_the_train_and_eval_methods_of_the_built_model(
    name: str,
) -> None:
    steps = ftrain.make_steps(MODELS[name], loss_fn, optim.sgd(RATE))
    state = steps.init_state(0)
    model = MODELS[name]().train()
    if name == "nested":
        model.norm.eval()
    with torch.no_grad():
        for key, tensor in {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }.items():
            tensor.copy_({**state.params, **state.buffers}[key])
    expected, expected_loss = by_hand(model, name)
    for x in batches():
        state, _ = steps.train_step(state, x)
    for key, wanted in expected.items():
        found = {**state.params, **state.buffers}[key]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    loss = steps.eval_step(state, batches()[0])["loss"]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)


def test_flags_of_modules_are_set_even_if_a_module_computes_with_its_flag() -> None:
    class Counting(nn.Module):
        @property
        def training(self) -> bool:
            return self.modes[-1]

        @training.setter
        def training(self, mode: bool) -> None:
            self.__dict__.setdefault("modes", []).append(mode)

    plain, counting = nn.Linear(1, 1), Counting()
    set_flags([(plain, False), (counting, False)])
    assert (plain.training, counting.training) == (False, False)
    set_flags([(plain, True), (counting, True)])
    assert (plain.training, counting.training) == (True, True)
    assert counting.modes == [True, False, True]
