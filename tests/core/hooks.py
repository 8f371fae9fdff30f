"""Gradient hooks that count their calls, a model with such hooks, and ways to differentiate it."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import optim, tree

X = torch.tensor([[0.3, 0.5], [0.1, -0.4]], dtype=torch.float64)
KEY = ftrain.random.key(1)

Grads = dict[str, torch.Tensor]

CALLS: collections.Counter[str] = collections.Counter()  # global: a model does not own it


def counting(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a hook that counts calls and is affine, so that a sum and its parts give other results."""

    def hook(grad: torch.Tensor) -> torch.Tensor:
        CALLS[name] += 1
        return grad * 2 + 0.5

    return hook


class Net(nn.Module):
    """Model of two layers, which share a weight if they are tied."""

    def __init__(self, n_hooks: int, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
        if kind == "tied":
            self.b.weight = self.a.weight
        for name, parameter in self.named_parameters():
            parameter.data = (
                torch.linspace(-1, 1, parameter.numel()).double().view_as(parameter) + 0.3
            )
            for i in range(n_hooks):
                parameter.register_hook(counting(f"{name} {i}"))
        self.b.bias.requires_grad_(kind != "frozen")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def twice(model: Any, batch: Any) -> torch.Tensor:
    return loss_fn(model, batch) + model(batch * 2).pow(3).mean()


def plain(model: nn.Module, loss: Any) -> Grads:
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(params, torch.autograd.grad(loss(model, X), params.values()), strict=True))


def applied(
    make: Callable[[], nn.Module], loss: Any, own: bool = False
) -> tuple[Callable[[Grads], torch.Tensor], Grads]:
    """Return the loss as a function of params, built with `bind`, and the params."""
    model = make()
    apply = ftrain.bind(model if own else make)
    _, buffers = apply.init(KEY)
    params = {n: p if own else p.detach() for n, p in model.named_parameters() if p.requires_grad}
    buffers = {name: model.get_parameter(name).detach() for name in buffers}

    def call(params: Grads) -> torch.Tensor:
        return loss(lambda x: apply(params, buffers, KEY, x)[0], X)

    return call, dict(sorted(params.items()))


def step(
    loss: Any,
    make: Any,
    *,
    given: bool = False,
    how: Callable[[Any], Any] = lambda f: f,
    **options: Any,
) -> Grads:
    steps = ftrain.make_steps(make() if given else make, loss, optim.sgd(1.0), **options)
    state = steps.init_state(0)
    params = {name: make().get_parameter(name).detach() for name in state.params}
    buffers = {name: make().get_parameter(name).detach() for name in state.buffers}
    state = state.replace(params=params, buffers=buffers)
    new, _ = how(steps.train_step)(state, X)
    return {name: params[name] - new.params[name] for name in params}


def vmapped(fn: Any) -> Any:
    def call(x: Any, *args: Any) -> Any:
        rows = tree.map(lambda leaf: torch.stack([leaf, leaf]), x)
        out = torch.vmap(fn, in_dims=(0, *(None for _ in args)))(rows, *args)
        return tree.map(lambda leaf: leaf[1], out)

    return call


def compiled(fn: Any) -> Any:
    return ftrain.compile(fn, backend="eager")


def graded(loss: Any, make: Any, **options: Any) -> Grads:
    call, params = applied(make, loss)
    return ftrain.value_and_grad(call, **options)(params)[1]


def required(params: Grads) -> Grads:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def by_backward(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    params = required(params)
    call(params).backward()
    return {name: p.grad for name, p in params.items()}


def by_backward_of_its_own(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss, own=True)
    call(params).backward()
    return {name: p.grad for name, p in params.items()}


def of_its_own(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss, own=True)
    return ftrain.value_and_grad(call)(params)[1]


def without_graph(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    with torch.no_grad():
        return ftrain.value_and_grad(call)(required(params))[1]


def later(loss: Any, make: Any) -> Grads:
    """Return the gradient, by a later autograd call, of the value that `value_and_grad` returns."""
    call, params = applied(make, loss)
    params = required(params)
    value, _ = ftrain.value_and_grad(call)(params)
    CALLS.clear()
    return dict(zip(params, torch.autograd.grad(value, params.values()), strict=True))


def inner(loss: Any, make: Any) -> Grads:
    """Return the gradient of a value returned by `value_and_grad`."""
    call, params = applied(make, loss)

    def value(params: Grads) -> torch.Tensor:
        out = ftrain.value_and_grad(call)(params)[0]
        CALLS.clear()
        return out

    return ftrain.value_and_grad(value)(params)[1]


def by_func(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    return torch.func.grad(call)(params)


def by_vjp(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    value, pull = torch.func.vjp(call, params)
    return pull(torch.ones_like(value))[0]


def inner_by_func(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)

    def value(params: Grads) -> torch.Tensor:
        out = ftrain.value_and_grad(call)(params)[0]
        CALLS.clear()
        return out

    return torch.func.grad(value)(params)


def in_vmap(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    return vmapped(lambda params: ftrain.value_and_grad(call)(params)[1])(params)


def around_vmap(loss: Any, make: Any) -> Grads:
    call, params = applied(make, loss)
    rows = {name: torch.stack([p, p]).requires_grad_() for name, p in params.items()}
    torch.vmap(call)(rows).sum().backward()
    return {name: row.grad[1] for name, row in rows.items()}


def scanned(call: Callable[[Grads], torch.Tensor]) -> Callable[[Grads], torch.Tensor]:
    def total(params: Grads) -> torch.Tensor:
        start = torch.zeros((), dtype=torch.float64)
        return ftrain.scan(lambda c, _: (c + call(params) / 3, ()), start, length=3)[0]

    return total


def chosen(call: Callable[[Grads], torch.Tensor]) -> Callable[[Grads], torch.Tensor]:
    return lambda params: ftrain.cond(
        torch.tensor(True), lambda: call(params), lambda: call(params) * 0
    )


def inside(around: Any, grad: Callable[[Any, Grads], Grads]) -> Callable[[Any, Any], Grads]:
    """Return a function that computes the gradient of the loss inside an ftrain construct."""

    def way(loss: Any, make: Any) -> Grads:
        call, params = applied(make, loss)
        return grad(around(call), params)

    return way


def graded_of(call: Any, params: Grads) -> Grads:
    return ftrain.value_and_grad(call)(params)[1]


def autograd_of(call: Any, params: Grads) -> Grads:
    params = required(params)
    return dict(zip(params, torch.autograd.grad(call(params), params.values()), strict=True))


WAYS: dict[str, Callable[[Any, Any], Grads]] = {
    "step": step,
    "step of a given module": lambda loss, make: step(loss, make, given=True),
    "step, compiled": lambda loss, make: step(loss, make, how=compiled),
    "step, vmapped": lambda loss, make: step(loss, make, how=vmapped),
    "value_and_grad": graded,
    "value_and_grad, differentiable": lambda loss, make: graded(loss, make, differentiable=True),
    "value_and_grad, own parameters": of_its_own,
    "value_and_grad, no_grad": without_graph,
    "value_and_grad, value": later,
    "value_and_grad, nested": inner,
    "value_and_grad in vmap": in_vmap,
    "value_and_grad in torch.func.grad": inner_by_func,
    "value_and_grad of scan": inside(scanned, graded_of),
    "value_and_grad of cond": inside(chosen, graded_of),
    "autograd.grad of scan": inside(scanned, autograd_of),
    "autograd.grad of cond": inside(chosen, autograd_of),
    "autograd.grad": inside(lambda call: call, autograd_of),
    "backward": by_backward,
    "backward, own parameters": by_backward_of_its_own,
    "autograd.grad around vmap": around_vmap,
    "torch.func.grad": by_func,
    "torch.func.vjp": by_vjp,
}
