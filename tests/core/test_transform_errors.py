"""Code that torch's transforms refuse in a model raises with the user's line and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing

ROWS = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
LABELS = torch.tensor([0, 1, 2, 0])


@torch.library.custom_op("ftrain_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


twice.register_fake(torch.empty_like)
twice.register_autograd(lambda ctx, grad: grad * 2, setup_context=lambda ctx, inputs, output: None)


class Twice(torch.autograd.Function):
    """The form that the message advises: torch's transforms see its derivative and its rows."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return twice(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return Twice.apply(x), in_dims[0]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class WithCtx(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def by_requires_grad(x: Tensor) -> Tensor:
    point = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(point.square().sum(), point)
    return x * grad


def writes(x: Tensor) -> Tensor:
    total = torch.zeros(3)
    total += x.sum(0)
    return x + total


def assigns_data(x: Tensor) -> Tensor:
    y = x.clone()
    y.data = x * 2
    return y


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


CASES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "custom operator": (twice, r"custom operator(?s:.*)layer\(x\)(?s:.*)autograd\.Function"),
    "no rule": (Square.apply, r"no rule for torch\.vmap(?s:.*)generate_vmap_rule"),
    "with ctx": (WithCtx.apply, "takes `ctx`(?s:.*)setup_context staticmethod"),
    "requires_grad_": (by_requires_grad, r"point = (?s:.*)ftrain\.value_and_grad"),
    "assigned data": (assigns_data, r"x\.data cannot(?s:.*)\.data = x \* 2(?s:.*)a new tensor"),
    "write": (writes, r"total \+= (?s:.*)out-of-place"),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def mapped(function: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        value: Tensor = model(batch).square().mean()
        return value

    steps = ftrain.make_steps(lambda: Net(function), loss_fn, optim.sgd(0.1))
    return torch.vmap(steps.train_step, in_dims=(None, 0)), steps.init_state(0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CASES)
def test_code_that_torch_vmap_refuses_raises_with_its_line_and_a_remedy(
    name: str, compiled: bool
) -> None:
    function, message = CASES[name]
    step, state = mapped(function)
    if compiled:
        step = ftrain.compile(step, backend="eager")
    with pytest.raises(RuntimeError, match=message) as raised:
        step(state, ROWS)
    assert any("while computing" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Net(branches), r"value of a tensor(?s:.*)if x\.sum\(\) > 0(?s:.*)torch\.where"),
        (lambda: nn.BatchNorm1d(3, momentum=None), r"momentum=None(?s:.*)momentum=0\.1"),
    ],
    ids=["if", "batch norm without momentum"],
)
def test_model_that_reads_values_of_mapped_states_raises_with_the_remedy(
    model: Callable[[], nn.Module], message: str
) -> None:
    steps = ftrain.make_steps(model, lambda m, x: m(x).square().mean(), optim.sgd(0.1))
    states = torch.vmap(steps.init_state)(torch.arange(2))
    step = torch.vmap(steps.train_step, in_dims=(0, None))
    for each in (step, ftrain.compile(step, backend="eager")):
        with pytest.raises(RuntimeError, match=message):
            each(states, ROWS[0])


def test_error_names_a_custom_operator_that_two_nested_compiled_functions_call() -> None:
    inner = ftrain.compile(lambda x: twice(x).sum(), backend="eager")
    outer = ftrain.compile(torch.vmap(ftrain.value_and_grad(lambda x: inner(x))), backend="eager")
    with pytest.raises(RuntimeError, match=r"custom operator(?s:.*)twice\(x\)\.sum"):
        outer(torch.ones(2, 3))


def test_custom_operator_wrapped_as_the_error_message_suggests_runs_under_vmap() -> None:
    step, state = mapped(Twice.apply)
    expected = mapped(lambda x: x * 2)[0](state, ROWS)
    testing.assert_same_bits(step(state, ROWS), expected)
    testing.assert_same_bits(ftrain.compile(step, backend="eager")(state, ROWS), expected)


def test_second_derivative_of_flash_attention_names_the_math_kernel() -> None:
    """torch implements none on the CPU; its own message has no remedy."""
    q = torch.ones(1, 1, 3, 4)

    def attended(q: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    def penalized(q: Tensor) -> Tensor:
        return ftrain.value_and_grad(attended)(q)[1].square().sum()

    with pytest.raises(NotImplementedError, match=r"differentiated twice.*SDPBackend\.MATH"):
        ftrain.value_and_grad(penalized)(q)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        assert ftrain.value_and_grad(penalized)(q)[1].isfinite().all()


def test_evaluation_under_vmap_of_a_model_that_reads_data_raises_with_its_line_and_a_remedy() -> (
    None
):
    steps = ftrain.make_steps(
        lambda: Net(lambda x: x.data * 2), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
    )
    with pytest.raises(
        RuntimeError, match=r"x\.data cannot(?s:.*)x\.data \* 2(?s:.*)x\.detach\(\)"
    ):
        torch.vmap(steps.eval_step, in_dims=(None, 0))(steps.init_state(0), ROWS)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.cdist(x, x + 1), "_cdist_backward"),
        (lambda x: nn.functional.multi_margin_loss(x, LABELS), "multi_margin_loss_backward"),
    ],
    ids=["without a namespace", "with a namespace"],
)
def test_operator_without_a_second_derivative_is_named_with_a_remedy(
    function: Callable[[Tensor], Tensor], operator: str
) -> None:
    """Torch writes the names of some operators as 'name', those of others as aten::name."""

    def slope(x: Tensor) -> Tensor:
        return ftrain.value_and_grad(lambda x: function(x).square().sum())(x)[1].square().sum()

    message = (
        rf"no derivative of (aten::)?{operator}, an operator of .*Write this operation with others"
    )
    with pytest.raises(NotImplementedError, match=message):
        ftrain.value_and_grad(slope)(ROWS[0])


@pytest.mark.parametrize("error", [ValueError, RuntimeError], ids=["of a user", "of torch's class"])
def test_error_of_a_users_own_code_under_vmap_is_raised_unchanged(error: type[Exception]) -> None:
    def fails(x: Tensor) -> Tensor:
        raise error("vmap: this layer takes no .data and no .item")

    step, state = mapped(fails)
    with pytest.raises(error, match=r"^vmap: this layer takes no \.data and no \.item"):
        step(state, ROWS)


class Inner(nn.Module):
    """Model that differentiates a function in its forward pass."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros(3)
        return torch.func.grad(lambda y: self.function(self.layer(y), kept))(x)


def writes_captured(x: Tensor, kept: Tensor) -> Tensor:
    kept += x.sum(0)
    return kept.sum()


def test_write_to_a_tensor_outside_of_a_torch_func_grad_raises_with_its_line_and_a_remedy() -> None:
    steps = ftrain.make_steps(
        lambda: Inner(writes_captured), lambda m, x: m(x).square().mean(), optim.sgd(0.1)
    )
    message = r"outside of the differentiated(?s:.*)kept \+= (?s:.*)x = x \+ 1"
    with pytest.raises(RuntimeError, match=message):
        steps.train_step(steps.init_state(0), ROWS[0])
