"""State that a model changes in its backward pass is restored afterwards, or refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core.errors import ImpureFunctionError
from tests.campaign import product
from tests.core.hidden_backward import BACKWARD, BACKWARD_REFUSED, BackwardModuleHook

BATCH = {"x": torch.linspace(-1, 1, 32).view(8, 4), "y": torch.linspace(1, -1, 24).view(8, 3)}


def mse(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def make(model: Any, loss_fn: Any = mse, **options: Any) -> ftrain.Steps:
    return ftrain.make_steps(model, loss_fn, optim.sgd(0.1), **options)


def graded(apply: Any) -> Any:
    """Return a function without arguments that calls `value_and_grad` on a model."""
    params, buffers = apply.init(ftrain.random.key(0))
    loss = lambda p: mse(lambda x: apply(p, buffers, ftrain.random.key(1), x)[0], BATCH)  # noqa: E731
    return lambda: ftrain.value_and_grad(loss)(params)


def stepped(apply: Any, **options: Any) -> Any:
    steps = make(apply, **options)
    state = steps.init_state(0)
    return lambda: steps.train_step(state, BATCH)


def nested(apply: Any) -> Any:
    params, buffers = apply.init(ftrain.random.key(0))

    def loss(p: Any) -> torch.Tensor:
        return mse(lambda x: apply(p, buffers, ftrain.random.key(1), x)[0], BATCH)

    def penalty(p: Any) -> torch.Tensor:
        return sum(g.square().sum() for g in ftrain.value_and_grad(loss)(p)[1].values())

    return lambda: ftrain.value_and_grad(penalty)(params)


def scanned(apply: Any) -> Any:
    params, buffers = apply.init(ftrain.random.key(0))

    def loss(p: Any) -> torch.Tensor:
        def body(c: Any, x: Any) -> Any:
            return c + apply(p, buffers, ftrain.random.key(1), x)[0].square().mean(), ()

        return ftrain.scan(body, torch.zeros(()), BATCH["x"].view(2, 4, 4))[0]

    return lambda: ftrain.value_and_grad(loss)(params)


def vmapped(apply: Any) -> Any:
    params, buffers = apply.init(ftrain.random.key(0))
    loss = lambda p: mse(lambda x: apply(p, buffers, ftrain.random.key(1), x)[0], BATCH)  # noqa: E731
    rows = ftrain.tree.map(lambda p: torch.stack([p, 2 * p]), params)
    return lambda: torch.vmap(ftrain.value_and_grad(loss))(rows)


def by_autograd(apply: Any) -> Any:
    params, buffers = apply.init(ftrain.random.key(0))
    params = {name: p.requires_grad_() for name, p in params.items()}
    loss = lambda p: mse(lambda x: apply(p, buffers, ftrain.random.key(1), x)[0], BATCH)  # noqa: E731
    return lambda: torch.autograd.grad(loss(params), list(params.values()))


def named(value: Any) -> str:
    return str(getattr(value, "__name__", value))


CALLS = {
    "step": stepped,
    "accumulate": lambda apply: stepped(apply, accumulate=2),
    "value_and_grad": graded,
    "nested": nested,
    "scan": scanned,
    "vmap": vmapped,
}


@pytest.mark.parametrize(
    ("kind", "call", "given"), product(BACKWARD, [*CALLS], [False, True]), ids=named
)
def test_module_state_changed_in_a_backward_pass_is_restored(
    kind: Any, call: str, given: bool
) -> None:
    if (kind, call) == (BackwardModuleHook, "vmap"):
        pytest.skip("torch has no full backward hooks under torch.func")
    apply = ftrain.bind(kind() if given else kind)
    run = CALLS[call](apply)
    before = apply.skeleton.module.counted()
    outs = [run() for _ in range(4)]
    for out in outs[1:]:
        testing.assert_same_bits(out, outs[0])
    assert apply.skeleton.module.counted() == before


@pytest.mark.parametrize("kind", BACKWARD, ids=lambda kind: kind.__name__)
def test_module_state_changed_in_a_backward_pass_is_restored_after_a_compiled_step(
    kind: Any,
) -> None:
    steps = make(kind)
    state = steps.init_state(0)
    step = ftrain.compile(steps.train_step, backend="eager")
    first = steps.train_step(state, BATCH)
    for call in (step, steps.train_step, step):
        testing.assert_same_bits(call(state, BATCH), first)


@pytest.mark.parametrize("kind", BACKWARD, ids=lambda kind: kind.__name__)
def test_module_state_changed_by_a_callers_backward_is_reset_at_the_next_call(kind: Any) -> None:
    run = by_autograd(ftrain.bind(kind))
    first = run()
    for _ in range(3):
        testing.assert_same_bits(run(), first)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", BACKWARD_REFUSED, ids=lambda kind: kind.__name__)
def test_write_in_a_backward_pass_that_cannot_be_undone_raises(kind: Any, call: str) -> None:
    with pytest.raises(ImpureFunctionError, match="tally"):
        CALLS[call](ftrain.bind(kind))()


def test_backward_hook_that_writes_to_a_captured_tensor_raises() -> None:
    tally = torch.zeros(())

    def loss(model: Any, batch: Any) -> torch.Tensor:
        out = model(batch["x"])
        out.register_hook(lambda grad: grad * tally.add_(1))
        return out.square().mean()

    steps = make(lambda: nn.Linear(4, 3), loss)
    with pytest.raises(ImpureFunctionError, match="captured tensor `tally` was changed"):
        steps.train_step(steps.init_state(0), BATCH)


def test_backward_hook_that_writes_to_the_batch_raises() -> None:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        out = model(batch["x"])
        y = batch["y"]

        def hook(grad: torch.Tensor) -> None:
            y.add_(1)

        out.register_hook(hook)
        return out.square().mean()

    steps = make(lambda: nn.Linear(4, 3), loss)
    batch = {name: x.clone() for name, x in BATCH.items()}
    with pytest.raises(ImpureFunctionError, match=r"input `batch\['y'\]` was changed"):
        steps.train_step(steps.init_state(0), batch)


def test_undoing_writes_of_a_backward_pass_keeps_changes_that_the_user_made() -> None:
    config = SimpleNamespace(scale=1.0, calls=0)

    class Configured(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x) * config.scale
            out.register_hook(self.count)
            return out

        def count(self, grad: torch.Tensor) -> None:
            self.config.calls += 1

    def build() -> nn.Module:
        model = Configured(4, 3)
        model.config = config
        return model

    run = graded(ftrain.bind(build))
    first, _ = run()
    config.scale = 2.0
    second, _ = run()
    assert float(first) != float(second)
    assert (config.scale, config.calls) == (2.0, 0)
