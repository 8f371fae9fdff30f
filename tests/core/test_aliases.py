"""Test modules that hold views of their own parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tree

RATE = 0.1


class Holds(nn.Module):
    """Weight with a view of it, which `place` stores in the module."""

    def __init__(self, place: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("sums", torch.zeros(4))
        self.views: list[torch.Tensor] = []
        place(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sums += x.detach().mean()
        return x @ self.weight + sum(view.sum() for view in self.views) * 0.1


def attribute(module: nn.Module) -> None:
    module.flat = module.weight.data.view(-1)
    module.views.append(module.flat)


def detached(module: nn.Module) -> None:
    module.views.append(module.weight.detach())


def column(module: nn.Module) -> None:
    module.views.append(module.weight.data[1:, 1])


def of_buffer(module: nn.Module) -> None:
    module.views.append(module.sums[1:3])


PLACES = {"attribute": attribute, "detached": detached, "column": column, "of a buffer": of_buffer}


def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - 1).square().mean()


def batches() -> list[torch.Tensor]:
    return [torch.randn(6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_views_of_weights_that_a_model_holds_follow_the_weights_of_the_state(
    place: str, compiled: bool
) -> None:
    torch.manual_seed(0)
    model = Holds(PLACES[place])
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(RATE))
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    state = steps.init_state(0)
    for x in batches():
        state, metrics = step(state, x)
        loss = loss_fn(model, x)
        (grad,) = torch.autograd.grad(loss, model.weight)
        with torch.no_grad():
            model.weight.add_(grad * -RATE)
        torch.testing.assert_close(metrics["loss"], loss.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(state.params["weight"], model.weight.detach())
        torch.testing.assert_close(state.buffers["sums"], model.sums)
    exported = ftrain.export(state, model)
    assert torch.equal(loss_fn(exported, batches()[0]), loss_fn(model, batches()[0]))


@pytest.mark.parametrize("place", PLACES)
def test_exported_module_of_a_model_function_holds_views_of_its_own_weights(place: str) -> None:
    build = lambda: Holds(PLACES[place])  # noqa: E731
    steps = ftrain.make_steps(build, loss_fn, optim.sgd(RATE))
    state, _ = steps.train_step(steps.init_state(0), batches()[0])
    exported = ftrain.export(state, build)
    expected = steps.eval_step(state, batches()[1])["loss"]
    assert torch.equal(loss_fn(exported, batches()[1]).detach(), expected)


def test_model_in_each_row_of_a_vmapped_step_holds_views_of_the_weights_of_that_row() -> None:
    steps = ftrain.make_steps(lambda: Holds(attribute), loss_fn, optim.sgd(RATE))
    states = torch.vmap(steps.init_state)(torch.arange(2))
    _, metrics = torch.vmap(steps.train_step, in_dims=(0, None))(states, batches()[0])
    for seed in range(2):
        _, single = steps.train_step(steps.init_state(seed), batches()[0])
        torch.testing.assert_close(metrics["loss"][seed], single["loss"])


def transposed(module: nn.Module) -> None:
    module.weight = nn.Parameter(torch.randn(2, 3).T)
    module.views.append(module.weight.data.T.view(-1)[:4])


def row_of_a_stack(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x + 1, x, x - 1])[1]


def slice_of_flat_memory(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.ones(5), x.flatten(), torch.ones(5)])[5:-5].view(x.shape)


def other_strides(x: torch.Tensor) -> torch.Tensor:
    return x.mT.contiguous().mT if x.ndim > 1 else torch.stack([x, x], 1)[:, 0]


LAYOUTS = [row_of_a_stack, slice_of_flat_memory, other_strides]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [*PLACES.values(), transposed])
def test_views_follow_tensors_anywhere_in_a_storage_and_with_any_strides(
    place: Callable[[nn.Module], None], layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    apply = ftrain.bind(lambda: Holds(place))
    params, buffers = apply.init(ftrain.random.key(0))
    x, key = batches()[0], ftrain.random.key(1)

    def loss(params: Any, buffers: Any) -> tuple[torch.Tensor, Any]:
        out, after = apply(params, buffers, key, x)
        return out.square().sum(), after

    gradients = ftrain.value_and_grad(loss, has_aux=True)
    expected = gradients(params, buffers)
    moved = gradients(tree.map(layout, params), tree.map(layout, buffers))
    mapped = torch.vmap(gradients)(
        *tree.map(lambda t: torch.stack([t + 1, t])[1:], (params, buffers))
    )
    for found in (moved, tree.map(lambda t: t[0], mapped)):
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a, b)


def test_writes_to_a_view_of_a_buffer_reach_a_buffer_of_other_strides() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2, 3))
            self.flat = self.table.view(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.flat[1] += x.sum()
            return self.flat

    apply, key = ftrain.bind(Counts), ftrain.random.key(0)
    table = torch.arange(6.0).view(2, 3)
    expected = apply({}, {"table": table}, key, torch.ones(4))
    found = apply({}, {"table": other_strides(table)}, key, torch.ones(4))
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert torch.equal(a, b)


def test_export_keeps_views_of_weights_that_have_other_strides() -> None:
    build = lambda: Holds(transposed)  # noqa: E731
    steps = ftrain.make_steps(build, loss_fn, optim.sgd(RATE))
    state = tree.map(lambda x: x[1], torch.vmap(steps.init_state)(torch.arange(2)))
    exported = ftrain.export(state, build)
    expected = steps.eval_step(steps.init_state(1), batches()[1])["loss"]
    torch.testing.assert_close(loss_fn(exported, batches()[1]).detach(), expected)
    with torch.no_grad():
        exported.weight.add_(1)
    assert torch.equal(exported.views[0], exported.weight.T.reshape(-1)[:4])


def array(module: nn.Module) -> None:
    module.array = module.weight.detach().numpy()


def wider(module: nn.Module) -> None:
    module.whole = torch.randn(10)
    module.weight = nn.Parameter(module.whole[:6].view(3, 2))


@pytest.mark.parametrize(("place", "path"), [(array, "array"), (wider, "whole")])
@pytest.mark.parametrize("built", [False, True])
def test_parameter_that_shares_memory_with_an_array_or_a_larger_tensor_is_refused(
    place: Callable[[nn.Module], None], path: str, built: bool
) -> None:
    build = lambda: Holds(place)  # noqa: E731
    with pytest.raises(ValueError, match=f"`{path}` shares memory with the parameter 'weight'"):
        ftrain.bind(build if built else build())


@pytest.mark.parametrize("built", [False, True])
def test_overlapping_registered_tensors_are_refused(built: bool) -> None:
    def registered(module: nn.Module) -> None:
        module.register_buffer("part", module.weight.data[:2])

    build = lambda: Holds(registered)  # noqa: E731
    with pytest.raises(ValueError, match="expected tensors in separate memory"):
        ftrain.bind(build if built else build())


def test_one_program_reads_the_views_of_weights_of_states_at_any_storage_offset() -> None:
    steps = ftrain.make_steps(Holds(attribute), loss_fn, optim.sgd(RATE))
    step = ftrain.compile(steps.train_step, backend="eager")
    states = [steps.init_state(0).replace(params={"weight": torch.randn(3, 2)}) for _ in range(3)]
    rows = tree.map(lambda *t: torch.stack(t), *states)
    for i, state in enumerate(states):
        (x, *_), row = batches(), tree.map(lambda t, i=i: t[i], rows)
        new, _ = step(row, x)
        expected, _ = steps.train_step(state, x)
        torch.testing.assert_close(new.params, expected.params)
    assert step.n_compiles == 1


def test_export_of_an_instance_with_a_view_that_has_gradients_raises() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2))
            self.flat = self.weight.view(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight + self.flat.sum()

    model, x = Viewed(), torch.randn(3, 2)
    state = ftrain.make_steps(model, loss_fn, optim.sgd(RATE)).init_state(0)
    with pytest.raises(ValueError, match="`flat` is a view of the parameter 'weight'"):
        ftrain.export(state, model)
    built = ftrain.export(state, Viewed)
    built(x).sum().backward()
    expected = x.sum(0).unsqueeze(-1).expand(2, 2) + x.shape[0] * 2
    torch.testing.assert_close(built.weight.grad, expected)
