"""Errors of `compile` name the cause, the line in the user's code and a remedy."""

from __future__ import annotations

import traceback

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import nn

import ftrain
from ftrain.core.compile import compile
from ftrain.core.errors import CompilerMissingError, ImpureFunctionError, TraceError
from ftrain.core.scan import scan

captured = torch.zeros(3)


def branches(x):
    if x.sum() > 0:  # here
        return x
    return -x


def loops(x):
    while x.sum() < 3:  # here
        x = x + 1
    return x


def takes_item(x):
    return x * x.sum().item()  # here


def takes_float(x):
    return x * float(x[0])  # here


def formats(x):
    return x, f"{x[0]:.3f}"  # here


def lists(x):
    return sum(x.tolist())  # here


def to_numpy(x):
    return torch.from_numpy(np.exp(x.numpy()))  # here


def masks(x):
    return x[x > 0].sum()  # here


def finds(x):
    return torch.nonzero(x).sum()  # here


def uniques(x):
    return torch.unique(x)  # here


def compares(x):
    return x * torch.equal(x, x + 1)  # here


def branches_in_vmap(x):
    return torch.func.vmap(lambda y: y if y > 0 else -y)(x)  # here


@pytest.mark.parametrize(
    ("fn", "remedy"),
    [
        (branches, "ftrain.cond(condition, true_fn, false_fn, x)"),
        (loops, "ftrain.while_loop(cond_fn, body_fn, x)"),
        (takes_item, "0-d tensors"),
        (takes_float, "0-d tensors"),
        (formats, "return it as an output"),
        (lists, "0-d tensors"),
        (to_numpy, "NumPy"),
        (masks, "torch.where(mask, x, fill)"),
        (finds, "argsort or topk"),
        (uniques, "Shapes are fixed"),
        (compares, "torch.where"),
        (branches_in_vmap, "ftrain.cond"),
    ],
)
def test_code_that_depends_on_tensor_values_raises_with_line_and_remedy(fn, remedy):
    with pytest.raises(TraceError) as error:
        compile(fn, backend="eager")(torch.ones(3))
    message = str(error.value)
    assert f"`{fn.__name__}`" in message
    assert f"{__file__}:" in message
    assert "# here" in message
    assert remedy in message
    assert error.value.__cause__ is not None


def writes(x):
    y = x.view(-1)
    y.add_(1)  # here
    return y


def writes_slice(x):
    x[0] = 3.0  # here
    return x.sum()


def writes_captured(x):
    captured.mul_(2)  # here
    return x


def writes_batch_norm(x):
    return torch.nn.functional.batch_norm(torch.ones(2, 3), x, captured, training=True)  # here


def writes_instance_norm(x):
    return torch.nn.functional.instance_norm(x.expand(2, 3, 3), captured, captured + 1)  # here


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (writes_instance_norm, "a tensor that it captures, float32[3]"),
        (writes, "its argument `x`"),
        (writes_slice, "its argument `x`"),
        (writes_captured, "a tensor that it captures, float32[3]"),
        (writes_batch_norm, "its argument `x`"),
    ],
)
def test_compiled_function_that_writes_to_inputs_or_captured_tensors_raises(fn, what):
    x = torch.ones(3)
    with pytest.raises(ImpureFunctionError) as error:
        compile(fn, backend="eager")(x)
    message = str(error.value)
    assert what in message
    assert "# here" in message
    assert x.tolist() == [1.0] * 3
    assert captured.tolist() == [0.0] * 3


def test_user_errors_in_a_compiled_function_propagate_with_a_note():
    def bad(x):
        return x @ x.reshape(2, 2)

    with pytest.raises(RuntimeError, match=r"shape '\[2, 2\]' is invalid") as error:
        compile(bad, backend="eager")(torch.ones(3))
    assert "while ftrain.compile traced `bad`" in "".join(traceback.format_exception(error.value))


def test_compile_refuses_unsupported_inputs_transforms_and_options():
    compiled = compile(lambda x: x * 2, backend="eager")
    with pytest.raises(RuntimeError, match=r"`x` .* requires a gradient"):
        compiled(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"`x\['a'\]` .* ndarray"):
        compiled({"a": np.ones(3)})
    with pytest.raises(RuntimeError, match=r"compile\(vmap\(<lambda>\)\), not vmap\(compile"):
        torch.func.vmap(compiled)(torch.ones(2))
    with pytest.raises(RuntimeError, match=r"inside torch.func.grad"):
        torch.func.grad(lambda x: compiled(x).sum())(torch.ones(2))
    with pytest.raises(TypeError, match="layout"):
        compiled(torch.ones(2, 2).to_sparse())
    with pytest.raises(TypeError, match="compile: expected a function"):
        compile(3)
    with pytest.raises(ValueError, match="backend"):
        compile(lambda x: x, backend="cuda")


def test_calling_a_compiled_function_inside_a_torch_function_mode_raises():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    compiled = compile(lambda x: x * 2, backend="eager")
    for _ in range(2):
        with Mode(), pytest.raises(RuntimeError, match="Write the `with` inside"):
            compiled(torch.ones(1))
        compiled(torch.ones(1))


def test_vmap_of_an_already_compiled_function_raises():
    compiled = compile(lambda x: x * 2, backend="eager")
    compiled(torch.ones(()))
    with pytest.raises(RuntimeError, match="not vmap"):
        torch.func.vmap(compiled)(torch.ones(2))


def test_missing_cpp_compiler_raises_one_error_with_remedies():
    def fn(x):
        return (x * 2).sin()

    none = {"cpp.cxx": ("no-such-compiler-anywhere",), "force_disable_caches": True}
    with torch._inductor.config.patch(none):
        with pytest.raises(
            CompilerMissingError, match=r"no C\+\+ compiler\. .*\. Install one"
        ) as caught:
            compile(fn)(torch.ones(3))
        assert compile(fn, backend="eager")(torch.zeros(3)).tolist() == [0, 0, 0]
    assert "backend='eager'" in str(caught.value)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x @ x,
        lambda x: torch.func.grad(lambda y: (y @ y).sum())(x),
        lambda x: scan(lambda c, y: (c @ x, y), x, x),
    ],
)
def test_wrong_shapes_in_a_compiled_function_raise_without_logging_or_printing(fn, capfd, caplog):
    with pytest.raises(RuntimeError, match="same reduction dim"):
        compile(fn, backend="eager")(torch.ones(2, 3))
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_dtype_error_in_a_running_program_has_a_note_with_the_arguments():
    """Fake tensors accept a product of two dtypes, so only the first run raises."""
    layer = torch.nn.Linear(3, 2).requires_grad_(False)
    product = compile(lambda batch: layer(batch["x"]), backend="eager")
    with pytest.raises(RuntimeError, match="dtype") as caught:
        product({"x": torch.ones(4, 3, dtype=torch.float64)})
    assert "batch['x']: float64[4, 3]" in "".join(caught.value.__notes__)


class WritesInForward(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.where = where

    def forward(self, x):
        if self.where == "weight":
            self.linear.weight.data.clamp_(-0.1, 0.1)  # here
        elif self.where == "batch":
            x.data.mul_(2)  # here
        else:
            captured.data.add_(1)  # here
        return self.linear(x)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("weight", "its argument `state.params['linear.weight']`"),
        ("batch", "its argument `batch`"),
        ("captured", "a tensor that it captures, float32[3]"),
    ],
)
def test_compiled_train_step_that_writes_to_its_inputs_raises_with_the_line(where, what):
    """A step holds a `cond` (the norm of the gradients), which the search for the line once refused."""
    steps = ftrain.make_steps(
        lambda: WritesInForward(where), lambda model, x: model(x).sum(), ftrain.optim.sgd(0.1)
    )
    with pytest.raises(ImpureFunctionError) as error:
        compile(steps.train_step, backend="eager")(steps.init_state(0), torch.ones(4, 3))
    assert what in str(error.value)
    assert "# here" in str(error.value)
