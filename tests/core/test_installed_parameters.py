"""Test what a loss function sees in the places of a model's parameters."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tree


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


KEY = ftrain.random.key(0)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def parameters_of(model: nn.Module) -> list[torch.Tensor]:
    found = [t for m in model.modules() for t in vars(m)["_parameters"].values()]
    return [t for t in found if isinstance(t, nn.Parameter)]


def penalized(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean() + sum(p.square().sum() for p in parameters_of(model))


@pytest.mark.parametrize("form", ["eager", "compiled", "mapped", "micro-batches"])
def test_parameters_that_a_loss_reads_from_the_model_are_instances_of_nn_parameter(
    form: str,
) -> None:
    model = Net()
    accumulate = 2 if form == "micro-batches" else 1
    steps = ftrain.make_steps(model, penalized, optim.sgd(0.1), accumulate=accumulate)
    state = steps.init_state(0)
    step, evaluate = steps.train_step, steps.eval_step
    if form == "compiled":
        step, evaluate = (ftrain.compile(fn, backend="eager") for fn in (step, evaluate))
    expected = penalized(model, X).detach()
    if form == "mapped":
        states = tree.map(lambda x: torch.stack([x, x]), state)
        new, metrics = torch.vmap(step, in_dims=(0, None))(states, X)
        torch.testing.assert_close(metrics["loss"], expected.expand(2))
    else:
        new, metrics = step(state, X)
        torch.testing.assert_close(metrics["loss"], expected)
        torch.testing.assert_close(evaluate(state, X)["loss"], expected)
    for each in (state, new):
        assert not any(isinstance(leaf, nn.Parameter) for leaf in tree.leaves(each))


def test_end_of_a_call_in_another_thread_leaves_the_parameters_of_a_running_call() -> None:
    started, finish = threading.Event(), threading.Event()

    class Waits(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            started.set()
            finish.wait(60)
            return super().forward(x)

    def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        finish.set()
        thread.join()
        return penalized(model, x)

    other = ftrain.bind(Waits())
    steps = ftrain.make_steps(Net(), loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    thread = threading.Thread(target=lambda: other(state.params, state.buffers, KEY, X))
    thread.start()
    started.wait(60)
    loss = steps.eval_step(state, X)["loss"]
    torch.testing.assert_close(loss, penalized(ftrain.export(state, Net()), X).detach())
    assert not any(isinstance(leaf, nn.Parameter) for leaf in tree.leaves(state))


def test_parameters_passed_to_a_bound_model_are_instances_of_parameter_after_the_call() -> None:
    model = Net()
    apply = ftrain.bind(model)
    params, buffers = apply.init(ftrain.random.key(0))
    params = {name: nn.Parameter(p) for name, p in params.items()}
    apply(params, buffers, ftrain.random.key(1), X)
    assert all(isinstance(p, nn.Parameter) for p in params.values())


def test_assigning_a_parameter_in_a_forward_pass_raises() -> None:
    class Assigns(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            self.last.bias = nn.Parameter(out.detach().mean(0))
            return out

    steps = ftrain.make_steps(Assigns(), lambda model, x: model(x).mean(), optim.sgd(0.1))
    said = r"the parameter 'last.bias': expected the same tensor .* which the model assigned"
    for run in (steps.train_step, steps.eval_step):
        with pytest.raises(ftrain.errors.ImpureFunctionError, match=said):
            run(steps.init_state(0), X)


def toggled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The gradient does not flow into the first layer, as a GAN's step does it."""
    for p in model.first.parameters():
        p.requires_grad_(False)
    loss = model(x).square().mean()
    model.first.weight.requires_grad_(True)
    return loss


def test_turning_requires_grad_off_and_on_in_a_loss_does_not_change_the_flags_of_the_state() -> (
    None
):
    steps = ftrain.make_steps(Net(), toggled, optim.sgd(0.1))
    state = steps.init_state(0)
    steps.eval_step(state, X)
    new, _ = steps.train_step(state, X)
    assert not any(leaf.requires_grad for each in (state, new) for leaf in tree.leaves(each))
    assert torch.equal(new.params["first.weight"], state.params["first.weight"])
    assert not torch.equal(new.params["last.weight"], state.params["last.weight"])
    steps.train_step(new, X)


def test_turning_requires_grad_off_in_a_loss_raises_with_a_remedy() -> None:
    def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        model.first.weight.requires_grad_(False)
        return model(x).square().mean()

    steps = ftrain.make_steps(Net(), loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match=r"turned off requires_grad .* ftrain.optim.freeze"):
        steps.train_step(steps.init_state(0), X)


def test_a_buffer_that_gets_its_shape_in_the_first_step_raises_with_a_remedy() -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            self.mean = out.detach().mean(0) if not len(self.mean) else self.mean
            return out

    loss_fn = lambda model, x: model(x).square().mean()  # noqa: E731
    model = Lazy()
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match=r"got \(2,\). It was empty: run one batch"):
        steps.train_step(steps.init_state(0), X)
    model(X)
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    steps.train_step(steps.init_state(0), X)
