"""Derivatives that torch would silently drop are computed, or refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, random
from tests.core.differences import is_close

X = torch.tensor([0.3, 0.5], dtype=torch.float64)
LIBRARY = torch.library.Library("ftrain_tests", "DEF")
LIBRARY.define("opaque(Tensor x) -> Tensor")
LIBRARY.impl("opaque", lambda x: torch.from_numpy(np.asarray(np.sin(x.detach().numpy()))), "CPU")
LIBRARY.impl("opaque", torch.empty_like, "Meta")
opaque = torch.ops.ftrain_tests.opaque


@torch.library.custom_op("ftrain_tests::underived", mutates_args=())
def underived(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


underived.register_fake(torch.empty_like)


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * ctx.saved_tensors[0].cos()


class New(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * ctx.saved_tensors[0].cos()


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: ftrain.value_and_grad(f)(*args)[1]


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return ftrain.compile(f, backend="eager")


def looped(op: Any) -> Callable[..., Any]:
    return lambda x: ftrain.scan(lambda c, _: (op(c) * x, None), x, length=2)[0].sum()


def once(op: Any) -> Callable[..., Any]:
    return lambda x: (op(x) + x**3).sum()


def twice(op: Any) -> Callable[..., Any]:
    return lambda x: (gradient(once(op))(x) ** 2).sum()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence torch's warning that the first operator has no derivative and gets zeros."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    "run",
    [
        lambda op: gradient(once(op))(X),
        lambda op: gradient(looped(op))(X),
        lambda op: compiled(gradient(once(op)))(X),
        lambda op: compiled(gradient(looped(op)))(X),
        lambda op: torch.vmap(gradient(lambda x: op(x) * x))(X),
        lambda op: torch.func.grad(twice(op))(X),
        lambda op: torch.func.jvp(gradient(once(op)), (X,), (X,)),
    ],
    ids=["eager", "scan", "compiled", "compiled scan", "vmap", "func.grad", "jvp"],
)
def test_gradients_through_custom_operators_without_a_derivative_raise(run: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no derivative .ftrain_tests::opaque.: the gradient through it would"
    ):
        run(opaque)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered|setup_context"):
        run(underived)


@pytest.mark.parametrize("op", [Old, New])
@pytest.mark.parametrize(
    "run",
    [
        lambda op: gradient(twice(op))(X),
        lambda op: compiled(gradient(twice(op)))(X),
        lambda op: compiled(gradient(lambda x: (gradient(looped(op))(x) ** 2).sum()))(X),
        lambda op: torch.func.grad(twice(op))(X),
        lambda op: torch.vmap(torch.func.grad(twice(op)))(X[None]),
    ],
    ids=["eager", "compiled", "compiled scan", "func.grad", "vmap of func.grad"],
)
def test_second_derivative_of_a_once_differentiable_backward_raises(op: Any, run: Any) -> None:
    assert is_close(gradient(once(op.apply))(X), X.cos() + 3 * X**2)
    assert is_close(compiled(gradient(once(op.apply)))(X), X.cos() + 3 * X**2)
    with pytest.raises(
        (ValueError, RuntimeError), match="marked @once_differentiable|setup_context"
    ):
        run(op.apply)


def test_train_step_refuses_an_operator_without_a_derivative() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return opaque(model(batch)).square().mean() + model(batch).mean()

    steps = ftrain.make_steps(lambda: nn.Linear(2, 1).double(), loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    for step in (steps.train_step, compiled(steps.train_step)):
        with pytest.raises(ValueError, match="ftrain_tests::opaque"):
            step(state, X[None])


def test_backward_of_a_custom_autograd_function_may_read_attributes_of_its_class() -> None:
    class Scaled(torch.autograd.Function):
        scale = 3.0

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * Scaled.scale

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * Scaled.scale

    grad = ftrain.value_and_grad(lambda x: Scaled.apply(x).sum())(X)[1]
    assert is_close(grad, torch.full_like(X, 3.0))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: nn.functional.layer_norm(x, (3,)),
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: nn.functional.instance_norm(x[None])[0],
    ],
)
def test_third_derivative_of_a_normalization_is_refused(norm: Callable[[Any], Any]) -> None:
    """Torch treats the mean and the variance as constants in it (2.13), and returns a wrong number."""
    g = torch.Generator().manual_seed(0)
    x, slope, weight = torch.randn(3, 6, 3, generator=g, dtype=torch.float64).unbind()

    def value(t: torch.Tensor) -> torch.Tensor:
        return (norm(x + t * slope).tanh() * weight).sum()

    def first(t: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(value)(t)[1]

    def second(t: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(first)(t)[1]

    zero, h = torch.zeros((), dtype=torch.float64), 1e-5
    assert is_close(second(zero), (first(zero + h) - first(zero - h)) / (2 * h))
    with pytest.raises(ValueError, match=r"third derivative of Native(Batch|Layer)Norm"):
        ftrain.value_and_grad(second)(zero)


def test_third_derivative_of_batch_norm_in_evaluation_equals_finite_differences() -> None:
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x * X[None], mean, var).tanh().sum()

    def second(x: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(lambda x: ftrain.value_and_grad(value)(x)[1])(x)[1]

    one, h = torch.ones((), dtype=torch.float64), 1e-5
    expected = (second(one + h) - second(one - h)) / (2 * h)
    assert is_close(ftrain.value_and_grad(second)(one)[1], expected, rtol=1e-7)


def test_second_derivative_of_weight_norm_is_refused() -> None:
    """Torch treats the norm as a constant in it (2.13), and returns a wrong number."""
    g = torch.Generator().manual_seed(0)
    v, slope, x = torch.randn(3, 4, 4, generator=g, dtype=torch.float64).unbind()
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=False).double())
    apply = ftrain.bind(layer)
    params, buffers = apply.init(ftrain.random.key(0))
    (name,) = (name for name in params if name.endswith("original1"))

    def value(t: torch.Tensor) -> torch.Tensor:
        moved = {**params, name: v + t * slope}
        return apply(moved, buffers, ftrain.random.key(0), x)[0].tanh().sum()

    def first(t: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(value)(t)[1]

    zero, h = torch.zeros((), dtype=torch.float64), 1e-5
    assert is_close(first(zero), (value(zero + h) - value(zero - h)) / (2 * h))
    with pytest.raises(ValueError, match="second derivative of weight_norm incorrectly"):
        ftrain.value_and_grad(first)(zero)


class Holding(nn.Module):
    """A model that holds a tensor which its caller computed."""

    def __init__(self, kind: str, x: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(2, 2), kind
        if kind == "list":
            self.x, self.held = 1.0, [x]
        elif kind == "attribute":
            self.x = x
        else:
            self.register_buffer("x", x)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.layer(y) * self.x * (self.held[0] if self.kind == "list" else 1)


@pytest.mark.parametrize("kind", ["buffer", "attribute", "list"])
@pytest.mark.parametrize("is_built", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("of", [lambda x: x, lambda x: 2 * x], ids=["argument", "product"])
def test_model_that_holds_the_differentiated_argument_has_its_gradient_or_is_refused(
    kind: str, is_built: bool, of: Any
) -> None:
    def bound_inside(x: torch.Tensor) -> torch.Tensor:
        def build() -> nn.Module:
            return Holding(kind, of(x))

        apply = ftrain.bind(build if is_built else build())
        params, buffers = apply.init(random.key(0))
        ones = {name: torch.ones_like(p) for name, p in params.items()}
        y, _ = apply(ones, buffers, random.key(1), torch.ones(2))
        return y.sum() + 0 * x.sum()

    gradient = ftrain.value_and_grad(bound_inside)
    if is_built and kind != "buffer":
        assert torch.equal(gradient(torch.ones(2))[1], 3 * of(torch.ones(2)))
    else:
        with pytest.raises(ValueError, match=r"^bind: the model holds the tensor '.*detach"):
            gradient(torch.ones(2))


def test_model_that_holds_a_tensor_with_a_graph_of_its_own_is_bound_inside_a_gradient() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        model = nn.Linear(2, 1)
        model.cached = model.weight * 2
        apply = ftrain.bind(model)
        params, buffers = apply.init(random.key(0))
        return apply(params, buffers, random.key(1), x)[0].square().sum()

    assert ftrain.value_and_grad(loss)(torch.ones(2))[1].abs().sum() > 0
