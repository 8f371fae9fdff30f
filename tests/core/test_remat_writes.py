"""Checkpointed regions of models that write to their tensors or attributes after a region started."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim, testing, tree
from ftrain.core._kept_buffers import Lost
from ftrain.core.errors import ImpureFunctionError


def counted(average: Tensor, weight: Tensor) -> None:
    with torch.no_grad():
        average.mul_(0.5).add_(weight, alpha=0.5)


def uncounted(average: Tensor, weight: Tensor) -> None:
    average.data.mul_(0.5).add_(weight.data, alpha=0.5)


def assigned(average: Tensor, weight: Tensor) -> None:
    average.data = average.data * 0.5 + weight.data * 0.5


class Momentum(nn.Module):
    """Encoder whose target is a momentum average of its own weights, as in BYOL and MoCo."""

    average: Tensor

    def __init__(self, size: int, frozen: bool, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(size, size), write
        start = torch.randn(size, size)
        if frozen:
            self.average = nn.Parameter(start, requires_grad=False)
        else:
            self.register_buffer("average", start)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.layer(x))
        return (out * torch.tanh(x @ self.average.detach())).square().mean()


def updating(model: Any, batch: Tensor) -> Tensor:
    value: Tensor = model(batch)
    model.write(model.average, model.layer.weight)
    return value


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("write", [counted, uncounted, assigned])
def test_region_is_recomputed_with_the_tensors_that_it_started_with(
    write: Callable[[Tensor, Tensor], None], frozen: bool, compiled: bool
) -> None:
    torch.manual_seed(0)
    model, x = Momentum(4, frozen, write), torch.randn(5, 4)
    results = []
    for each in (model, ftrain.remat(model)):
        steps = ftrain.make_steps(each, updating, optim.sgd(0.1))
        step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
        results.append(step(steps.init_state(0), x))
    testing.assert_same_bits(results[0], results[1])


@pytest.mark.parametrize("write", [counted, assigned])
def test_region_that_reads_a_large_tensor_written_since_then_raises(
    write: Callable[[Tensor, Tensor], None],
) -> None:
    model, x = Momentum(300, True, write), torch.randn(2, 300)
    steps = ftrain.make_steps(ftrain.remat(model), updating, optim.sgd(0.1))
    with pytest.raises(ImpureFunctionError, match="'average'"):
        steps.train_step(steps.init_state(0), x)


def test_region_may_leave_out_a_large_tensor_written_since_then() -> None:
    torch.manual_seed(0)
    model, x = Momentum(300, True, counted), torch.randn(2, 300)
    results = []
    for each in (model, ftrain.remat(model, "layer")):
        steps = ftrain.make_steps(each, updating, optim.sgd(0.1))
        results.append(steps.train_step(steps.init_state(0), x))
    testing.assert_same_bits(results[0], results[1])


class Conditioned(nn.Module):
    """Model that sets an attribute of a block with BatchNorm before it calls the block."""

    def __init__(self, saves: bool) -> None:
        super().__init__()
        self.block = Block()
        self.saves = saves

    def forward(self, x: Tensor) -> Tensor:
        self.block.scale = 3.0
        return checkpoint(self.block, x, use_reentrant=False) if self.saves else self.block(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.scale = nn.Linear(4, 4), nn.BatchNorm1d(4), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layer(x)) * self.scale)


def test_region_is_recomputed_with_the_attributes_that_the_model_set() -> None:
    grads = []
    x = torch.randn(5, 4)
    for saves in (False, True):
        torch.manual_seed(0)
        model = Conditioned(saves)

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            return model(batch)[:, 0].square().mean()  # type: ignore[no-any-return]

        state = ftrain.make_steps(model, loss, optim.sgd(0.1)).init_state(0)
        grads.append(ftrain.gradients(model, loss)(state, x).grads)
        apply = ftrain.bind(model)
        params, buffers = apply.init(ftrain.random.key(0))

        def value(p: Any, apply: Any = apply, buffers: Any = buffers) -> Tensor:
            return apply(p, buffers, ftrain.random.key(1), x)[0][:, 0].square().mean()  # type: ignore[no-any-return]

        grads.append(ftrain.value_and_grad(value)(params)[1])  # recomputed after the call has ended
    for each in grads[1:]:
        testing.assert_same_bits(grads[0], each)


class Queue(nn.Module):
    """Model whose region reads a queue, to which the model assigns a new tensor after the region."""

    queue: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)
        self.register_buffer("queue", torch.randn(size, size))

    def region(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) @ self.queue

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.region, x, use_reentrant=False)
        self.queue = torch.cat([y.detach(), self.queue])[: len(self.queue)]
        return y.square().mean()


@pytest.mark.parametrize("size", [4, 300])
def test_region_is_recomputed_with_the_buffer_from_before_an_assignment(size: int) -> None:
    torch.manual_seed(0)
    model, x = Queue(size), torch.randn(2, size)
    (expected,) = torch.autograd.grad(
        (torch.tanh(model.layer(x)) @ model.queue).square().mean(), model.layer.bias
    )

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)  # type: ignore[no-any-return]

    state = ftrain.make_steps(model, loss, optim.sgd(0.1)).init_state(0)
    found = ftrain.gradients(model, loss)(state, x).grads["layer.bias"]
    torch.testing.assert_close(found, expected)


class Viewing(nn.Module):
    """Model whose region reads a view of a transposed, frozen weight, and maybe a lost tensor's view."""

    lost: Tensor

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.layer, self.writes = nn.Linear(6, 6), writes
        self.weight = nn.Parameter(torch.randn(2, 3).T, requires_grad=False)
        self.view = self.weight.data.T.view(-1)
        self.register_buffer("lost", torch.randn(300, 300))
        self.row = self.lost[0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.outer, x, use_reentrant=False)
        if self.writes:
            self.lost.add_(1.0)
        return y.square().mean()

    def outer(self, x: Tensor) -> Tensor:
        inner = checkpoint(lambda x: torch.tanh(self.layer(x)) * self.view, x, use_reentrant=False)
        return torch.tanh(inner)  # type: ignore[no-any-return]


@pytest.mark.parametrize("writes", [False, True])
def test_nested_regions_recompute_views_of_weights_with_the_strides_of_a_stacked_state(
    writes: bool,
) -> None:
    torch.manual_seed(0)
    model, x = Viewing(writes), torch.randn(2, 6)
    value = torch.tanh(torch.tanh(model.layer(x)) * model.view).square().mean()
    (expected,) = torch.autograd.grad(value, model.layer.bias)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)  # type: ignore[no-any-return]

    state = ftrain.make_steps(model, loss, optim.sgd(0.1)).init_state(0)
    row = tree.map(lambda t: torch.stack([torch.zeros_like(t), t])[1], state)
    found = ftrain.gradients(model, loss)(row, x).grads["layer.bias"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("use", [lambda t: t != 0, lambda t: 1 + t, abs, lambda t: t.sum(), len])
def test_every_use_of_a_lost_tensor_raises(use: Callable[[Any], Any]) -> None:
    lost = Lost("mask", torch.ones(3))
    assert lost.shape == (3,)
    with pytest.raises(ImpureFunctionError, match="'mask'"):
        use(lost)


def test_attributes_that_hold_results_of_regions_do_not_keep_a_graph_alive() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.features = nn.Linear(4, 4), None

        def forward(self, x: Tensor) -> Tensor:
            self.features = checkpoint(self.layer, x, use_reentrant=False)
            return x.sum() * self.layer.bias.sum()

    apply = ftrain.bind(Keeps())
    params, buffers = apply.init(ftrain.random.key(0))
    params = {name: p.requires_grad_() for name, p in params.items()}
    refs = [weakref.ref(p) for p in params.values()]
    for _ in range(2):
        apply(params, buffers, ftrain.random.key(1), torch.randn(2, 4))
    del params
    gc.collect()
    assert all(ref() is None for ref in refs)
