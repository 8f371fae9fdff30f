"""Pure functions of ftrain inside `torch.func.linearize`, which traces and so reads no values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ftrain
from ftrain import optim, random, testing
from ftrain.core import tree
from ftrain.core.errors import NonFiniteError, TraceError

X = torch.linspace(-1, 1, 24).reshape(6, 4)
TANGENT = torch.linspace(0.5, -0.3, 24).reshape(6, 4)
MODEL = nn.Sequential(
    nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1)
)
#: In mixed precision, torch.func.jvp of a batch norm's gradient raises in torch itself.
PLAIN = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(3, 1))


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def step(**options: Any) -> Callable[[Tensor], Any]:
    """Return the new parameters and the loss after a step on the batch `x`."""
    optimizer = options.pop("optimizer", optim.sgd(0.1, 0.9))
    model = PLAIN if "precision" in options else MODEL
    steps = ftrain.make_steps(model, loss_fn, optimizer, **options)
    state = steps.init_state(0)

    def run(x: Tensor) -> Any:
        new, metrics = steps.train_step(state, x)
        return new.params, metrics["loss"]

    return run


def scanned(x: Tensor) -> Tensor:
    total: Tensor = ftrain.scan(lambda c, y: (c * y.sin() + x, ()), x, torch.ones(3, 6, 4))[0]
    return total


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "value_and_grad": ftrain.value_and_grad(lambda x: (x**3).sum()),
    "scan": scanned,
    "cond": lambda x: ftrain.cond(x.sum() > 0, torch.exp, torch.sin, x),
    "switch": lambda x: ftrain.switch((x[5, 3] > 0).long(), [torch.exp, torch.sin], x),
    "step": step(),
    "step that accumulates": step(accumulate=2),
    "step in bf16-mixed": step(precision="bf16-mixed"),
    "step with loss scaling": step(precision="16-mixed"),
    "step that raises": step(nonfinite="raise"),
    "step with clipped AdamW": step(
        optimizer=optim.chain(optim.clip_by_global_norm(0.1), optim.adamw(optim.cosine(0.1, 5)))
    ),
    "remat": ftrain.remat(lambda x: x.sin().exp()),
    "keyed dropout": lambda x: random.bernoulli(random.key(0), 0.5, x.shape) * x.sin(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_linearize_gives_the_values_and_tangents_of_jvp(name: str) -> None:
    output, tangents_of = torch.func.linearize(FUNCTIONS[name], X)
    expected, tangents = torch.func.jvp(FUNCTIONS[name], (X,), (TANGENT,))
    testing.assert_close_norm(output, expected, 1e-6)
    testing.assert_close_norm(tangents_of(TANGENT), tangents, 1e-5)


def test_linearized_step_skips_a_nonfinite_batch() -> None:
    bad = X.clone()
    bad[0, 0] = float("nan")
    (params, _), tangents_of = torch.func.linearize(FUNCTIONS["step"], bad)
    testing.assert_same_bits(params, step()(bad)[0])
    assert all(not t.any() for t in tree.leaves(tangents_of(TANGENT)[0]))
    with pytest.raises(NonFiniteError):
        torch.func.linearize(FUNCTIONS["step that raises"], bad)


def test_traced_cond_keeps_both_branches() -> None:
    graph = make_fx(lambda x: ftrain.cond(x.sum() > 0, torch.exp, torch.sin, x))(X - 1)
    testing.assert_same_bits(graph(X + 1), torch.exp(X + 1))
    testing.assert_same_bits(graph(X - 1), torch.sin(X - 1))


def test_while_loop_whose_condition_depends_on_the_point_refuses_linearize() -> None:
    def grown(x: Tensor) -> Tensor:
        found: Tensor = ftrain.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x)
        return found

    with pytest.raises(TraceError, match=r"while_loop: .*torch\.func\.jvp"):
        torch.func.linearize(grown, X)


def test_loss_that_branches_on_a_value_refuses_linearize_with_its_line() -> None:
    def branches(model: nn.Module, batch: Tensor) -> Tensor:
        out = model(batch).sum()
        return out if out > 0 else -out

    steps = ftrain.make_steps(MODEL, branches, optim.sgd(0.1))
    state = steps.init_state(0)
    with pytest.raises(RuntimeError, match=r"(?s)cannot be read.*if out > 0.*ftrain\.cond"):
        torch.func.linearize(lambda x: steps.train_step(state, x)[1]["loss"], X)
