"""Hooks on parameters and other tensors run on the gradient, as in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from tests.core.differences import is_close

MASK = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
X = torch.tensor([[0.3, 0.5], [0.1, -0.4]], dtype=torch.float64)


def masked() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(2, 2).double()
    module.weight.register_hook(lambda grad: grad * MASK * 3)
    return module


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", [masked, masked()], ids=["function", "module"])
def test_a_parameters_hook_changes_its_gradient(mode: str, accumulate: int, model: Any) -> None:
    steps = ftrain.make_steps(model, loss_fn, optim.sgd(1.0), accumulate=accumulate)
    state, step = steps.init_state(0), steps.train_step
    if mode == "vmapped":
        rows = ftrain.tree.map(lambda leaf: torch.stack([leaf, leaf]), state)
        step = torch.vmap(step, in_dims=(0, None))
        new = ftrain.tree.map(lambda leaf: leaf[1], step(rows, X)[0])
    else:
        new, _ = (ftrain.compile(step, backend="eager") if mode == "compiled" else step)(state, X)
    plain = masked()
    plain.load_state_dict(state.params)
    loss_fn(plain, X).backward()
    grads = {name: p.grad for name, p in plain.named_parameters()}
    assert is_close({k: state.params[k] - new.params[k] for k in grads}, grads)


def test_a_hook_after_accumulation_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.bias.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="'bias' has a hook of register_post_accumulate_grad_hook"):
        ftrain.bind(module)


def test_a_hook_on_the_argument_is_that_of_autograd() -> None:
    p = nn.Parameter(X[0].clone())
    p.register_hook(lambda grad: grad * 2)
    cube = lambda p: (p**3).sum()  # noqa: E731
    expected = torch.autograd.grad(cube(p), p)[0]
    assert is_close(ftrain.value_and_grad(cube)(p)[1].detach(), expected)
    with torch.no_grad():
        assert is_close(ftrain.value_and_grad(cube)(p)[1], expected)
        with pytest.raises(RuntimeError, match="`p` of `<lambda>` has a hook"):
            ftrain.compile(ftrain.value_and_grad(cube), backend="eager")(p)


def test_a_hook_on_a_captured_tensor_runs_once_for_a_loop() -> None:
    seen = []

    def f(w: torch.Tensor) -> torch.Tensor:
        h = w * 2
        h.register_hook(lambda grad: seen.append(grad.shape) or grad * 3)
        return ftrain.scan(lambda c, _: (c * h, c), w, length=4)[0].sum()

    expected = ftrain.value_and_grad(f)(X[0])
    assert len(seen) == 1
    assert is_close(ftrain.compile(ftrain.value_and_grad(f), backend="eager")(X[0]), expected)
    assert len(seen) == 2
