"""Each gradient hook on a parameter or tensor runs once, as in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import _hooks
from tests.campaign import product
from tests.core.differences import is_close
from tests.core.hooks import (
    CALLS,
    WAYS,
    Net,
    X,
    applied,
    compiled,
    counting,
    loss_fn,
    plain,
    required,
    scanned,
    step,
    twice,
    vmapped,
)  # fmt: skip

MASK = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "kind", "n_hooks", "way"),
    product([loss_fn, twice], ["apart", "tied", "frozen"], [1, 2], [*WAYS]),
)
def test_each_parameter_hook_runs_once_per_gradient(
    way: str, n_hooks: int, kind: str, loss: Any
) -> None:
    make = lambda: Net(n_hooks, kind)  # noqa: E731
    CALLS.clear()
    expected = plain(make(), loss)
    calls = CALLS.copy()
    CALLS.clear()
    grads = WAYS[way](loss, make)
    assert is_close(dict(sorted(grads.items())), dict(sorted(expected.items())))
    assert calls == CALLS


def masked() -> nn.Module:
    module = nn.Linear(2, 2).double()
    module.weight.register_hook(lambda grad: grad * MASK * 3)
    return module


@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", [masked, masked()], ids=["function", "module"])
def test_parameter_hook_may_change_the_gradient_of_its_parameter(
    mode: str, accumulate: int, model: Any
) -> None:
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(1.0), accumulate=accumulate)
    state = steps.init_state(0)
    how = {"eager": lambda step: step, "compiled": compiled, "vmapped": vmapped}[mode]
    new, _ = how(steps.train_step)(state, X)
    reference = masked()
    reference.load_state_dict(state.params)
    assert is_close(
        {k: state.params[k] - new.params[k] for k in state.params}, plain(reference, loss_fn)
    )


def test_parameter_hooks_run_once_per_micro_batch() -> None:
    CALLS.clear()
    grads = step(loss_fn, lambda: Net(1, "apart"), accumulate=2)
    assert set(CALLS.values()) == {2}
    assert is_close(grads, dict(sorted(plain(Net(1, "apart"), loss_fn).items())))


def test_hook_of_a_frozen_parameter_does_not_run() -> None:
    CALLS.clear()
    step(loss_fn, lambda: Net(1, "frozen"))
    assert "b.bias 0" not in CALLS


def penalized(call: Callable[[Any], torch.Tensor], first: Callable[[Any], Any]) -> Any:
    def total(params: Any) -> torch.Tensor:
        return call(params) + sum(g.square().sum() for g in first(params))

    return total


@pytest.mark.parametrize("n_hooks", [1, 2])
@pytest.mark.parametrize("around", [lambda f: f, vmapped], ids=["autograd", "vmap"])
@pytest.mark.parametrize("construct", [lambda f: f, scanned], ids=["call", "scan"])
def test_parameter_hooks_in_a_gradient_penalty_run_as_often_as_in_autograd(
    n_hooks: int, around: Any, construct: Any
) -> None:
    make = lambda: Net(n_hooks, "apart")  # noqa: E731
    CALLS.clear()
    model = make()
    params = dict(sorted(model.named_parameters()))
    value = loss_fn(model, X)
    first = torch.autograd.grad(value, params.values(), create_graph=True)
    value = value + sum(g.square().sum() for g in first)
    expected = dict(zip(params, torch.autograd.grad(value, params.values()), strict=True))
    calls = CALLS.copy()
    CALLS.clear()
    call, params = applied(make, loss_fn)
    call = construct(call)
    total = penalized(call, lambda p: ftrain.value_and_grad(call)(p)[1].values())
    grads = around(lambda p: ftrain.value_and_grad(total)(p)[1])(params)
    assert is_close(grads, expected)
    assert calls == CALLS


def cube(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum()


def hooked(n_hooks: int) -> torch.Tensor:
    x = X[0].clone().requires_grad_()
    for i in range(n_hooks):
        x.register_hook(counting(str(i)))
    return x


def torch_grad(fn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = fn(x)
    return value, torch.autograd.grad(value, x, create_graph=True)[0]


def ours(fn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ftrain.value_and_grad(fn)(x)


def ours_in_vmap(fn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.vmap(lambda _: ftrain.value_and_grad(fn)(x))(torch.zeros(1))
    return out[0][0], out[1][0]


def ours_differentiable(fn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return ftrain.value_and_grad(fn, differentiable=True)(x)


def ours_of_a_sum(fn: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value, (grad,) = ftrain.value_and_grad(lambda xs: fn(xs[0]) + 0 * x.sum())([x])
    return value, grad


THEN: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "first": lambda grad, x: grad(cube, x)[1],
    "second": lambda grad, x: torch.autograd.grad(grad(cube, x)[1].sum(), x)[0],
    "value": lambda grad, x: torch.autograd.grad(grad(cube, x)[0], x)[0],
    "nested": lambda grad, x: grad(lambda x: grad(cube, x)[1].sum(), x)[1],
    "third": lambda grad, x: torch.autograd.grad(
        grad(lambda x: grad(cube, x)[1].square().sum(), x)[1].sum(), x
    )[0],
    "penalty": lambda grad, x: grad(penalized(cube, lambda x: [grad(cube, x)[1]]), x)[1],
    "twice": lambda grad, x: torch.autograd.grad(grad(cube, x)[0] + grad(cube, x)[1].sum(), x)[0],
}


@pytest.mark.parametrize(
    ("n_hooks", "then", "ours"),
    product([0, 1, 2], [*THEN], [ours, ours_in_vmap, ours_differentiable, ours_of_a_sum]),
)
def test_hooks_of_a_value_and_grad_argument_run_as_often_as_in_autograd(
    n_hooks: int, then: str, ours: Any
) -> None:
    CALLS.clear()
    expected = THEN[then](torch_grad, hooked(n_hooks))
    calls = CALLS.copy()
    CALLS.clear()
    x = hooked(n_hooks)
    assert is_close(THEN[then](ours, x), expected)
    assert calls == CALLS
    assert len(x._backward_hooks or ()) == n_hooks


def test_parameter_hooks_on_the_callers_tensors_are_removed_when_the_graph_is_freed() -> None:
    call, params = applied(lambda: Net(1, "apart"), loss_fn)
    params = required(params)
    value = call(params)
    assert all(p._backward_hooks for p in params.values())
    CALLS.clear()
    sum(p.sum() for p in params.values()).backward()
    assert not CALLS  # this gradient has not come through the model
    value.backward(retain_graph=True)
    sum(p.sum() for p in params.values()).backward()
    assert set(CALLS.values()) == {1}
    value.backward()
    assert set(CALLS.values()) == {2}
    del value
    assert not any(p._backward_hooks for p in params.values())


def linear(*hooks: Callable[[torch.Tensor], Any]) -> nn.Module:
    module = nn.Linear(2, 2).double()
    module.weight.data, module.bias.data = X + 1, X[0] * 2
    for hook in hooks:
        module.weight.register_hook(hook)
    return module


def test_hooks_of_two_models_called_with_the_same_parameters_all_run() -> None:
    hooks = counting("first"), counting("second")
    calls = [applied(lambda hook=hook: linear(hook), loss_fn)[0] for hook in hooks]
    params = required(applied(linear, loss_fn)[1])
    params["weight"].register_hook(counting("own"))
    CALLS.clear()
    sum(call(params) for call in calls for _ in range(2)).backward()
    assert CALLS == {"first": 1, "second": 1, "own": 1}


def test_parameter_hooks_do_not_run_for_a_call_of_the_model_under_no_grad() -> None:
    call, params = applied(lambda: Net(1, "apart"), loss_fn)

    def total(params: Any) -> torch.Tensor:
        with torch.no_grad():
            call(params)
        return sum(p.sum() for p in params.values())

    CALLS.clear()
    grads = ftrain.value_and_grad(total)(params)[1]
    assert not CALLS
    assert is_close(grads, {name: torch.ones_like(p) for name, p in params.items()})


def normalized(grad: torch.Tensor) -> torch.Tensor:
    return grad / grad.norm()


@pytest.mark.parametrize("in_dim", [0, 1])
def test_parameter_hook_gets_the_gradient_of_each_row_of_mapped_parameters(in_dim: int) -> None:
    call, params = applied(lambda: linear(normalized), loss_fn)
    rows = required({k: torch.stack([p, p * 2], min(in_dim, p.ndim)) for k, p in params.items()})
    torch.vmap(call, in_dims=(in_dim,))(rows).sum().backward()
    for index in range(2):
        reference = linear(normalized)
        reference.load_state_dict({name: p * (1 + index) for name, p in params.items()})
        row = {name: stack.grad.select(in_dim, index) for name, stack in rows.items()}
        assert is_close(row, plain(reference, loss_fn))


def test_parameter_hooks_run_in_the_second_of_two_gradients_by_transforms_and_autograd() -> None:
    def second(call: Any, params: Any, first: Any) -> Any:
        CALLS.clear()
        params = required(params)
        sum(g.square().sum() for g in first(call, params).values()).backward()
        return {name: p.grad for name, p in params.items()}, CALLS.copy()

    def by_autograd(call: Any, params: Any) -> Any:
        grads = torch.autograd.grad(call(params), params.values(), create_graph=True)
        return dict(zip(params, grads, strict=True))

    call, params = applied(lambda: Net(2, "apart"), loss_fn)
    found = second(call, params, lambda call, params: torch.func.grad(call)(params))
    expected = second(call, params, by_autograd)
    assert is_close(found[0], expected[0])
    assert found[1] == expected[1]


def test_tensors_are_replaced_only_if_hooks_are_missing_on_them() -> None:
    hook = counting("w")
    plain, tracked, has = X.clone(), X.clone().requires_grad_(), X.clone().requires_grad_()
    has.register_hook(hook)
    for tensor, is_replaced in ((plain, False), (tracked, True), (has, False)):
        found = _hooks.hooked({"w": tensor, "other": tracked}, {"w": (hook,)})
        assert (found["w"] is not tensor) == is_replaced
        assert found["other"] is tracked
        assert torch.equal(found["w"], X)


def test_inputs_of_a_gradient_are_in_progress_until_it_ends() -> None:
    def f(x: torch.Tensor, fails: bool) -> torch.Tensor:
        assert [each is x for each in _hooks.inputs_in_progress()] == [True]
        if fails:
            raise ZeroDivisionError
        return cube(x)

    ftrain.value_and_grad(f)(X[0], False)
    assert _hooks.inputs_in_progress() == []
    with pytest.raises(ZeroDivisionError):
        ftrain.value_and_grad(f)(X[0], True)
    assert _hooks.inputs_in_progress() == []


def test_parameter_hooks_registered_after_bind_do_not_run() -> None:
    model = Net(0, "apart")
    apply = ftrain.bind(model)
    model.a.weight.register_hook(counting("late"))
    steps = ftrain.make_steps(apply, loss_fn, optim.sgd(1.0))
    CALLS.clear()
    steps.train_step(steps.init_state(0), X)
    assert not CALLS


def test_parameter_hook_that_captures_its_parameter_reads_the_value_in_the_state() -> None:
    def decayed() -> nn.Module:
        module = nn.Linear(2, 2).double()
        weight = module.weight
        weight.register_hook(lambda grad: grad + weight.detach())
        return module

    steps = ftrain.make_steps(decayed, loss_fn, optim.sgd(0.1))
    state, reference = steps.init_state(0), decayed()
    for _ in range(2):
        reference.load_state_dict(state.params)
        new, _ = steps.train_step(state, X)
        grads = dict(sorted(plain(reference, loss_fn).items()))
        assert is_close({k: (state.params[k] - new.params[k]) / 0.1 for k in grads}, grads)
        state = new
    with pytest.raises(ValueError, match=r"hook of the parameter 'weight' captures .*\(`weight`\)"):
        ftrain.bind(decayed())


def test_bind_refuses_a_post_accumulate_grad_hook() -> None:
    module = nn.Linear(2, 2)
    module.bias.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="'bias' has a hook of register_post_accumulate_grad_hook"):
        ftrain.bind(module)


def test_tensor_hook_of_an_argument_runs_under_no_grad_but_raises_in_a_compiled_function() -> None:
    p = nn.Parameter(X[0].clone())
    p.register_hook(lambda grad: grad * 2)
    expected = torch.autograd.grad(cube(p), p)[0]
    with torch.no_grad():
        assert is_close(ftrain.value_and_grad(cube)(p)[1], expected)
        with pytest.raises(RuntimeError, match="`x` of `cube` has a hook"):
            ftrain.compile(ftrain.value_and_grad(cube), backend="eager")(p)


def test_hook_on_a_tensor_captured_by_scan_runs_once() -> None:
    seen = []

    def f(w: torch.Tensor) -> torch.Tensor:
        h = w * 2
        h.register_hook(lambda grad: seen.append(grad.shape) or grad * 3)
        return ftrain.scan(lambda c, _: (c * h, c), w, length=4)[0].sum()

    expected = ftrain.value_and_grad(f)(X[0])
    assert len(seen) == 1
    assert is_close(ftrain.compile(ftrain.value_and_grad(f), backend="eager")(X[0]), expected)
    assert len(seen) == 2
