"""Inputs and classes of `remat` regions: repeated tensors, writes in place, registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim, testing
from tests.core.differences import is_close


class SelfAttention(nn.Module):
    """Self-attention whose query, key and value are one tensor, given by position or by name."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by, self.first, self.attention = by, nn.Linear(4, 4), nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.by == "torch":
            return checkpoint(self.attention, x, x, x, use_reentrant=False)[0]
        if self.by == "position":
            return self.attention(x, x, x)[0]
        return self.attention(x, key=x, value=x)[0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("by", ["position", "name", "torch"])
def test_remat_region_that_is_given_one_tensor_several_times_is_recomputed(
    by: str, compiled: bool
) -> None:
    def stepped(model: Any) -> Any:
        steps = ftrain.make_steps(model, lambda m, x: m(x).square().sum(), optim.sgd(0.1))
        step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
        return step(steps.init_state(0), torch.linspace(-1, 1, 24).reshape(3, 2, 4))

    found = stepped(ftrain.remat(lambda: SelfAttention(by), "attention"))
    testing.assert_same_bits(found, stepped(lambda: SelfAttention("position")))


GIVEN: dict[str, Callable[..., Tensor]] = {
    "by position": lambda f, h: f(h, 1.0),
    "by name": lambda f, h: f(h=h, x=1.0),
    "in a list": lambda f, h: f([h], 1.0),
    "in a dict by name": lambda f, h: f(h={"h": [h]}, x=1.0),
}


def product(h: Any, x: float) -> Tensor:
    while not isinstance(h, Tensor):
        h = h["h"] if isinstance(h, dict) else h[0]
    return (h.sin() * x).sin()


@pytest.mark.parametrize("given", GIVEN)
def test_remat_region_whose_input_was_written_to_raises_in_the_backward_pass(given: str) -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    h = x * 1
    (found,) = torch.autograd.grad(GIVEN[given](ftrain.remat(product), h).sum(), x)
    assert is_close(found, h.sin().cos() * h.cos())
    h = x * 1
    value = GIVEN[given](ftrain.remat(product), h).sum()
    h.detach().mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace|written to in place"):
        torch.autograd.grad(value, x)


def test_remat_region_that_writes_to_its_input_raises_in_the_forward_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match=r"got one that writes to float32\[2, 3\] in place"):
        ftrain.remat(model, "*")(torch.ones(2, 3))

    def doubled(x: list[Tensor]) -> Tensor:
        return x[0].mul_(2).sin()

    with pytest.raises(RuntimeError, match=r"got one that writes to float32\[2\] in place"):
        ftrain.remat(doubled)([torch.ones(2)])


def test_remat_region_is_given_every_keyword_whatever_its_name() -> None:
    def scaled(x: Tensor, *, fn: float, debug: float = 1.0, use_reentrant: float = 1.0) -> Tensor:
        return x.sin() * fn * debug * use_reentrant

    x = torch.ones(2, requires_grad=True)
    found = ftrain.remat(scaled)(x, fn=2.0, debug=3.0, use_reentrant=5.0)
    assert torch.equal(found, x.sin() * 30)


class Registered(nn.Module):
    """Module whose class registers its subclasses under a name, and whose forward needs no module."""

    names: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, name: str) -> None:
        Registered.names.append(name)


class Sine(Registered, name="sine"):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()


def test_remat_adds_no_class_to_a_registry_of_the_model_and_accepts_a_static_forward() -> None:
    model = ftrain.remat(nn.Sequential(Sine()), "0")
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(model(x).sum(), x)
    assert is_close(found, x.cos())
    assert Registered.names == ["sine"]


def test_remat_region_can_be_traced_by_torch_compile() -> None:
    """Dynamo records the region itself, so that remat neither checks nor changes contexts there."""
    region = ftrain.remat(lambda x: x.sin().exp().sin())
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(region(x).sum(), x)
    compiled = torch.compile(region, backend="eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    testing.assert_same_bits(found, expected)


@pytest.mark.parametrize("backend", [None, "eager"], ids=["plain", "compiled"])
def test_gradient_of_torch_func_inside_a_region_raises_with_its_line_and_the_remedy(
    backend: str | None,
) -> None:
    """torch refuses transforms under saved-tensor hooks; `ftrain.value_and_grad` needs none."""

    def cube(x: Tensor) -> Tensor:
        return (x.sin() ** 3).sum()

    def total(inner: Any) -> Any:
        fn = ftrain.value_and_grad(lambda x: inner(x).square().sum())
        return fn if backend is None else ftrain.compile(fn, backend=backend)

    x = torch.linspace(-1, 1, 6)
    for transform in (torch.func.grad(cube), torch.func.jacrev(lambda x: x.sin())):
        with pytest.raises(RuntimeError, match=r"(?s)recomputes.*transform\(x\).*value_and_grad"):
            total(ftrain.remat(lambda x: transform(x)))(x)  # noqa: B023
    slope = lambda x: ftrain.value_and_grad(cube)(x)[1]  # noqa: E731
    testing.assert_same_bits(total(ftrain.remat(slope))(x), total(slope)(x))
