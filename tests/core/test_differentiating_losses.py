"""Losses that compute gradients inside, and compiled functions in losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core import tree
from ftrain.core.evaluate import prediction
from tests.core.differences import MODES, assert_derivative, is_close, run


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def points(batch: Any) -> torch.Tensor:
    return batch["x"].clone().requires_grad_()


def wgan_gp(model: Any, batch: Any) -> torch.Tensor:
    x = points(batch)
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return model(batch["x"]).mean() + 10 * (grad.norm(dim=1) - 1).square().mean()


def r1(model: Any, batch: Any) -> torch.Tensor:
    grad = ftrain.value_and_grad(lambda x: model(x).sum())(batch["x"])[1]
    return F.softplus(-model(batch["x"])).mean() + grad.square().sum(1).mean()


def pinn(model: Any, batch: Any) -> torch.Tensor:
    """Return the squared residual of u_xx + u_yy = 1."""
    x = points(batch)
    (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    second = [
        torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)
    ]
    return (sum(second) - 1).square().mean()


def forces(model: Any, batch: Any) -> torch.Tensor:
    x = points(batch)
    energy = model(x)
    (grad,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return F.mse_loss(-grad, batch["y"]) + energy.square().mean()


def quantized(model: Any, batch: Any) -> torch.Tensor:
    """Return a loss with a straight-through estimator and a sum that starts from a leaf."""
    total = torch.tensor(0.0, requires_grad=True, dtype=torch.float64)
    z = model(batch["x"])
    straight = z + (z.round() - z).detach()
    return total + (straight - batch["y"][:, :1]).square().mean() + 0.25 * z.square().mean()


LOSSES = [wgan_gp, r1, pinn, forces, quantized]
BATCH = {
    "x": torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2),
    "y": torch.linspace(1, -1, 12, dtype=torch.float64).view(6, 2).square(),
}


@MODES
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_train_step_differentiates_losses_that_compute_gradients_themselves(
    loss_fn: Any, mode: str
) -> None:
    """Compare one SGD step with finite differences of the loss with respect to one layer."""
    init_state, train_step, _ = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    state = init_state(0)
    new, metrics = run(train_step, mode)(state, BATCH)
    model = net()

    def loss_at(weight: torch.Tensor) -> torch.Tensor:
        params = {**state.params, "0.weight": weight}
        value: torch.Tensor = torch.func.functional_call(
            _Loss(model, loss_fn), {f"model.{k}": v for k, v in params.items()}, (BATCH,)
        )
        return value.detach()

    if loss_fn is not quantized:  # whose gradient is not that of its value
        weight = state.params["0.weight"]
        assert_derivative(loss_at, weight, (weight - new.params["0.weight"]) / 0.1)
    assert is_close(metrics["loss"], loss_at(state.params["0.weight"]).float(), 1e-6)
    parts, _ = run(ftrain.make_steps(net, loss_fn, optim.sgd(0.1), accumulate=3).train_step, mode)(
        state, BATCH
    )
    assert is_close(parts.params, new.params)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> torch.Tensor:
        result: torch.Tensor = self.loss_fn(self.model, batch)
        return result


@MODES
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_eval_step_evaluates_losses_that_compute_gradients_themselves(
    loss_fn: Any, mode: str
) -> None:
    init_state, train_step, eval_step = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    state = init_state(0)
    with torch.no_grad():
        needy = state.replace(params=tree.map(lambda p: p.clone().requires_grad_(), state.params))
        metrics = [run(eval_step, mode)(each, BATCH) for each in (state, needy)]
    testing.assert_same_bits(*metrics)
    assert not metrics[0]["loss"].requires_grad
    assert is_close(metrics[0]["loss"], train_step(state, BATCH)[1]["loss"])


@MODES
def test_prediction_of_a_model_that_computes_gradients_matches_autograd(mode: str) -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.training)[0]

    loss_fn = lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"])  # noqa: E731
    state = ftrain.make_steps(Forces, loss_fn, optim.sgd(0.1)).init_state(0)
    found = run(prediction(Forces), mode)(state, BATCH["x"])
    energy = lambda x: net_at(state.params, x).sum()  # noqa: E731
    assert is_close(found, -ftrain.value_and_grad(energy)(BATCH["x"])[1])


def net_at(params: Any, x: torch.Tensor) -> torch.Tensor:
    values = {name.removeprefix("energy."): value for name, value in params.items()}
    result: torch.Tensor = torch.func.functional_call(net(), values, (x,))
    return result


@MODES
def test_loss_that_computes_gradients_and_uses_a_parameter_outside_the_state_raises(
    mode: str,
) -> None:
    outside = nn.Linear(2, 1).double()

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        x = points(batch)
        return (model(x) * outside(x)).mean()

    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match="is not in the state .float64.1, 2.."):
        run(steps.train_step, mode)(steps.init_state(0), BATCH)
    loss_fn = lambda model, batch: (model(batch["x"]) * outside(batch["x"])).mean()  # noqa: E731
    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    states = tree.map(lambda *rows: torch.stack(rows), *map(steps.init_state, range(2)))
    with pytest.raises(ValueError, match="is not in the state .float64.1, 2.."):
        run(torch.vmap(steps.train_step, in_dims=(0, None)), mode)(states, BATCH)


class InLists(nn.Module):
    """A parameter and a layer that Python's own containers hold."""

    def __init__(self, used: str) -> None:
        super().__init__()
        self.layer, self.used = nn.Linear(2, 1).double(), used
        self.scales = [nn.Parameter(torch.ones(1, dtype=torch.float64))]
        self.layers = {"last": nn.Linear(1, 1).double()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out * self.scales[0] if self.used == "scales" else self.layers["last"](out)


@MODES
@pytest.mark.parametrize(
    ("used", "path"), [("scales", r"scales\[0\]"), ("layers", r"layers\['last'\]\.weight")]
)
def test_parameter_in_a_python_list_of_the_model_raises_with_its_path(
    mode: str, used: str, path: str
) -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return model(batch["x"]).square().mean()

    message = (
        f"is not in the state(?s:.*)`{path}`, where it is not registered(?s:.*)nn.ParameterList"
    )
    for model in (lambda: InLists(used), InLists(used)):
        steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
        with pytest.raises(ValueError, match=message):
            run(steps.train_step, mode)(steps.init_state(0), BATCH)


def test_loss_may_set_requires_grad_on_a_view_of_the_batch() -> None:
    """Wav2Vec2 does so for gradient checkpointing."""

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        x = batch["x"][:, None]
        x.requires_grad = True
        return model(x).square().mean()

    steps = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    found = [run(steps.train_step, mode)(state, BATCH)[0] for mode in ("eager", "compiled")]
    testing.assert_same_bits(*found)
    assert not BATCH["x"].requires_grad


def test_loss_that_calls_a_compiled_function_has_the_bits_of_one_that_calls_the_plain_function() -> (
    None
):
    """Its random draws match as well, since they derive from the key of the step."""

    def twice(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x.tanh(), 0.5) * 2

    inner = ftrain.compile(twice, backend="eager")
    found = []
    for fn in (twice, inner):
        loss_fn = lambda model, batch, fn=fn: fn(model(batch["x"])).square().mean()  # noqa: E731
        init_state, train_step, eval_step = ftrain.make_steps(net, loss_fn, optim.sgd(0.1))
        state = init_state(0)
        for mode in ("eager", "compiled"):
            found.append((run(train_step, mode)(state, BATCH), eval_step(state, BATCH)))
    for other in found[1:]:
        testing.assert_same_bits(other, found[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_compiling_under_detect_anomaly_warns_and_matches_eager() -> None:
    init_state, train_step, _ = ftrain.make_steps(net, r1, optim.sgd(0.1))
    state = init_state(0)
    with torch.autograd.detect_anomaly():
        with pytest.warns(UserWarning, match="`train_step` is compiled inside torch.autograd"):
            found = run(train_step, "compiled")(state, BATCH)
        assert torch.is_anomaly_enabled()
    testing.assert_same_bits(found, train_step(state, BATCH))
