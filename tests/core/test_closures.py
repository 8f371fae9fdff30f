"""`closures`: the loss and its gradient at other params, for the same batch and key."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.testing import assert_same_bits
from tests.campaign import long


class Net(nn.Module):
    """Model with dropout and BatchNorm, which depend on the key and on the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.b = nn.Linear(8, 1)

    def forward(self, x):
        return self.b(self.drop(self.norm(self.a(x)).tanh()))


def loss_fn(model, batch):
    error = (model(batch["x"])[:, 0] - batch["y"]).square() * batch["w"]
    return ftrain.Mean(error.sum(), batch["w"].sum())


def batch(n=8):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    return {"x": x, "y": x.sum(1), "w": torch.arange(float(n))}


def start(**options):
    optimizer = optim.sgd(0.1)
    init_state, _, _ = ftrain.make_steps(Net, loss_fn, optimizer, **options)
    state = init_state(0)
    if options.get("precision") == "16-mixed":  # the usual first scale overflows here
        state = state.replace(scaler=state.scaler._replace(scale=torch.tensor(8.0)))
    return state, ftrain.gradients(Net, loss_fn, **options)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_grad_fn_and_value_fn_at_the_current_params_return_the_gradients_and_loss_of_the_step(
    precision, accumulate
):
    state, gradients = start(precision=precision, accumulate=accumulate)
    result = gradients(state, batch())
    closures = gradients.closures(state, batch())
    assert_same_bits(closures["grad_fn"](state.params), result.grads)
    assert_same_bits(closures["value_fn"](state.params), result.metrics["loss"])
    assert result.grads["a.weight"].abs().sum() > 0


def test_gradient_of_value_fn_equals_grad_fn_at_params_other_than_those_of_the_state():
    state, gradients = start(accumulate=2)
    closures = gradients.closures(state, batch())
    params = tree.map(lambda p: p + 0.1, state.params)
    _, grads = ftrain.value_and_grad(closures["value_fn"])(params)
    for a, b in zip(tree.leaves(grads), tree.leaves(closures["grad_fn"](params)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert (grads["a.weight"] - closures["grad_fn"](state.params)["a.weight"]).abs().max() > 1e-4


def test_grad_fn_and_value_fn_ignore_the_callers_autocast():
    state, gradients = start()
    plain = gradients.closures(state, batch())["value_fn"](state.params)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients.closures(state, batch())["value_fn"](state.params)
    assert_same_bits(cast, plain)


def two_points():
    """Return an optimizer that averages the gradients here and one step ahead; its state is the loss."""

    def init(params):
        return {"value": torch.zeros(())}

    def update(grads, state, params=None, *, value_fn, grad_fn, **extra):
        ahead = tree.map(lambda p, g: p - 0.1 * g, params, grads)
        other = grad_fn(ahead)
        updates = tree.map(lambda g, h: -0.05 * (g + h), grads, other)
        return updates, {"value": value_fn(ahead)}

    return optim.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("backend", "accumulate"),
    [("eager", 1), ("eager", 2), pytest.param("inductor", 2, marks=[pytest.mark.inductor, long])],
)
def test_grad_fn_and_value_fn_compile_into_the_graph_of_a_step(backend, accumulate):
    init_state, train_step, _ = ftrain.make_steps(Net, loss_fn, two_points(), accumulate=accumulate)
    step = ftrain.compile(train_step, donate=True, backend=backend)
    plain = compiled = init_state(0)
    compiled = tree.map(torch.clone, plain)
    for _ in range(3):
        plain, _ = train_step(plain, batch())
        compiled, _ = step(compiled, batch())
    assert plain.opt_state["value"] > 0
    for a, b in zip(tree.leaves(plain), tree.leaves(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
