"""Test activation checkpointing under `keyed`: recomputation repeats the draws of the forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from ftrain.core.errors import UnkeyedRandomError
from tests.compile.cases import same_bytes

KEY = random.key(3)
X = torch.linspace(-1, 1, 24).view(4, 6)


class Block(nn.Module):
    """Residual block whose body runs as `checkpointed` says."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.dropout, self.inner = nn.Linear(6, 6), nn.Dropout(0.4), inner
        self.options: dict[str, Any] | None = None

    def body(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.linear(self.dropout(x)))
        if self.inner is not None:
            x = self.inner(x)
        return x + F.dropout(x, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.options is None or not self.training:
            return self.body(x)
        return checkpoint(self.body, x, **self.options)


def net(options: list[dict[str, Any] | None], deep: int = 0) -> nn.Module:
    """Return a model of one block per entry, each with `deep` nested blocks; one is called twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = []
        for each in options:
            block = Block()
            block.options = each
            for _ in range(deep):
                block = Block(block)
                block.options = each
            blocks.append(block)
        return nn.Sequential(*blocks, nn.Dropout(0.5), *blocks[:1])


def gradients(model: nn.Module, key: Tensor = KEY) -> Any:
    """Return loss and gradients of a bound model, whose `keyed` ends before the backward pass."""
    apply = ftrain.bind(model)
    params, buffers = apply.init(KEY)

    def loss(params: Any) -> Tensor:
        return apply(params, buffers, key, X)[0].square().sum()

    return ftrain.value_and_grad(loss)(params)


def in_step(model: nn.Module, key: Tensor = KEY) -> Any:
    """Return gradients as a train step does, with the backward pass under the same `keyed`."""
    gradients = ftrain.gradients(model, lambda model, x: model(x).square().sum())
    params, buffers = ftrain.bind(model).init(KEY)
    state = ftrain.TrainState(torch.tensor(0), params, buffers, (), (), key, {})
    return gradients(state, X).grads


PLAIN = {"use_reentrant": False}
FORMS: dict[str, dict[str, Any]] = {
    "non-reentrant": PLAIN,
    "reentrant": {"use_reentrant": True},
    "no early stop": {"use_reentrant": False, "early_stop": False},
    "selective": {
        "use_reentrant": False,
        "context_fn": lambda: create_selective_checkpoint_contexts([torch.ops.aten.addmm.default]),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("deep", [0, 2])
@pytest.mark.parametrize("take", [gradients, in_step])
def test_gradients_with_activation_checkpointing_equal_those_without(
    form: str, deep: int, take: Callable[..., Any]
) -> None:
    expected = take(net([None, None], deep))
    assert same_bytes(take(net([FORMS[form]] * 2, deep)), expected)
    assert not same_bytes(take(net([None, None], deep), key=random.key(4)), expected)


@given(
    st.lists(st.sampled_from([None, *FORMS.values()]), min_size=1, max_size=3),
    st.integers(0, 1),
    st.booleans(),
)
@settings(max_examples=12)
def test_any_mix_of_activation_checkpointed_regions_gives_the_plain_gradients(
    options: list[Any], deep: int, early_stop: bool
) -> None:
    expected = in_step(net([None] * len(options), deep))
    with set_checkpoint_early_stop(early_stop):
        assert same_bytes(in_step(net(options, deep)), expected)


@pytest.mark.parametrize("mode", ["compiled", "vmapped", "compiled vmapped"])
@pytest.mark.parametrize("form", ["non-reentrant", "reentrant"])
def test_train_steps_with_activation_checkpointing_equal_plain_steps(mode: str, form: str) -> None:
    def train(model: nn.Module) -> Any:
        steps = ftrain.make_steps(model, lambda model, x: model(x).square().mean(), optim.sgd(0.1))
        state, step = steps.init_state(0), steps.train_step
        if "vmapped" in mode:
            keys = random.split(KEY, 2)
            state = tree.map(lambda leaf: torch.stack([leaf, leaf]), state).replace(rng=keys)
            step = torch.vmap(step, (0, None))
        if "compiled" in mode:
            step = ftrain.compile(step, backend="eager")
        for i in range(2):
            state, _ = step(state, X * (i + 1))
        return state

    assert same_bytes(train(net([FORMS[form]] * 2, 1)), train(net([None, None], 1)))


def test_backward_pass_outside_keyed_recomputes_with_the_draws_of_the_forward_pass() -> None:
    plain, model = net([None, None], 1), net([PLAIN, PLAIN], 1)
    before = torch.get_rng_state()

    def loss(module: nn.Module) -> Tensor:
        with random.keyed(KEY):
            return module(X).square().sum()

    expected = list(torch.autograd.grad(loss(plain), list(plain.parameters())))
    value, weights = loss(model), list(model.parameters())
    for context in (contextlib.nullcontext(), random.keyed(random.key(9))):
        with context:
            assert same_bytes(
                list(torch.autograd.grad(value, weights, retain_graph=True)), expected
            )
    loss(net([FORMS["reentrant"]] * 2, 1)).backward()
    assert torch.get_rng_state().equal(before)


def test_second_backward_through_a_retained_graph_equals_the_first() -> None:
    model = net([PLAIN, PLAIN], 1)
    weights = list(model.parameters())
    with random.keyed(KEY):
        value = model(X).square().sum()
        torch.rand(5)  # draws between the forward and the backward pass
        first = torch.autograd.grad(value, weights, retain_graph=True)
        second = torch.autograd.grad(value, weights)
        after = torch.rand(5)
    assert same_bytes(list(first), list(second))
    with random.keyed(KEY):
        model(X)
        torch.rand(5)
        assert after.equal(torch.rand(5))


def test_gradient_penalty_with_checkpointing_equals_the_plain_one() -> None:
    def penalty(model: nn.Module) -> list[Tensor]:
        x = X.clone().requires_grad_()
        with random.keyed(KEY):
            value = model(x).square().sum()
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            return list(torch.autograd.grad(slope.square().sum(), list(model.parameters())))

    assert same_bytes(penalty(net([PLAIN, PLAIN])), penalty(net([None, None])))


def test_gradient_taken_inside_a_checkpointed_region_repeats_the_draws_of_the_region() -> None:
    def with_inner_gradient(x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return F.dropout(checkpoint(torch.tanh, F.dropout(y), use_reentrant=False)).sum()

        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(inner(y), y)
        return F.dropout(torch.exp(x)) * slope

    def run(form: dict[str, Any] | None) -> list[Tensor]:
        x = X.clone().requires_grad_()
        with random.keyed(KEY):
            y = (
                with_inner_gradient(x)
                if form is None
                else checkpoint(with_inner_gradient, x, **form)
            )
            return [y, *torch.autograd.grad(y.square().sum(), x)]

    for form in (FORMS["no early stop"], PLAIN):
        assert same_bytes(run(form), run(None))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_module_built_in_a_checkpointed_region_has_the_same_weights_when_recomputed(
    checkpointed: bool,
) -> None:
    def body(x: Tensor) -> Tensor:
        layer = nn.Linear(6, 6)
        return torch.tanh(F.dropout(layer(torch.tanh(layer(x)))))

    def run(x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        with random.keyed(KEY):
            nn.Linear(6, 6)(x)
            y = checkpoint(body, x, use_reentrant=False) if checkpointed else body(x)
            return [y, *torch.autograd.grad((y + nn.Linear(6, 6)(x)).square().sum(), x)]

    with random.keyed(KEY):
        nn.Linear(6, 6)
        layer = nn.Linear(6, 6)
        last = nn.Linear(6, 6)
    x = X.clone().requires_grad_()
    with random.keyed(KEY):
        y = torch.tanh(F.dropout(layer(torch.tanh(layer(x)))))
    expected = [y, *torch.autograd.grad((y + last(x)).square().sum(), x)]
    assert same_bytes(run(X), expected)


def test_checkpoint_sequential_equals_plain_sequential() -> None:
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*layers)

    def run(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = X.clone().requires_grad_()
        with random.keyed(KEY, model):
            y = forward(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]

    def sequential(x: Tensor) -> Tensor:
        return checkpoint_sequential(model, 2, x, use_reentrant=False)

    assert same_bytes(run(sequential), run(model))


class Normalized(nn.Module):
    """Model that reads buffers that it writes in the same forward pass."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.norm, self.dropout = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.register_buffer("calls", torch.ones(()))
        self.checkpointed = checkpointed

    def body(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.dropout(self.norm(self.linear(x)))) * self.calls.clone()

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            x = checkpoint(self.body, x, use_reentrant=False)
            return checkpoint(self.body, x, use_reentrant=False)
        return self.body(self.body(x))


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_recomputation_of_a_checkpointed_region_reads_the_buffers_of_its_forward_pass(
    mode: str,
) -> None:
    def train(model: nn.Module) -> Any:
        steps = ftrain.make_steps(model, lambda model, x: model(x).square().mean(), optim.sgd(0.1))
        step = steps.train_step
        if mode == "compiled":
            step = ftrain.compile(step, backend="eager")
        state = steps.init_state(0)
        for i in range(3):
            state, _ = step(state, X * (i + 1))
        return state

    assert same_bytes(train(Normalized(True)), train(Normalized(False)))


def test_writing_a_large_buffer_after_a_checkpointed_region_raises() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("large", torch.zeros(70_000))

        def forward(self, x: Tensor) -> Tensor:
            y = checkpoint(
                lambda x: torch.tanh(self.linear(x) + self.large[0]), x, use_reentrant=False
            )
            self.large += 1
            return y

    with pytest.raises(ftrain.errors.ImpureFunctionError, match="buffer 'large'.*65536 elements"):
        in_step(Memory())


class NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g + torch.randn_like(g)


def test_draw_in_a_custom_backward_in_a_checkpointed_region_raises() -> None:
    x = X.clone().requires_grad_()
    with random.keyed(KEY):
        y = checkpoint(
            lambda x: NoisyGradient.apply(torch.tanh(F.dropout(x))), x, use_reentrant=False
        )
        with pytest.raises(UnkeyedRandomError, match="in a backward pass"):
            torch.autograd.grad(y.sum(), x)


def test_activation_checkpointing_outside_keyed_behaves_as_in_torch() -> None:
    with random.keyed(KEY):  # torch's classes are extended from here on
        pass
    x = X.clone().requires_grad_()
    y = checkpoint(torch.tanh, x, use_reentrant=True)
    assert type(y.grad_fn).__name__ == "CheckpointFunctionBackward"
    with pytest.raises(RuntimeError, match="use_reentrant=True"):
        torch.autograd.grad(y.sum(), x)
    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(lambda x: checkpoint(torch.tanh, x, use_reentrant=False).sum())(X)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", ["eager", "compiled", "vmapped"])
def test_gpt2_with_gradient_checkpointing_equals_plain_training(mode: str, reentrant: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    tokens = torch.arange(16).view(2, 8)

    def loss_fn(model: Any, tokens: Tensor) -> Tensor:
        return model(tokens, labels=tokens, use_cache=False).loss

    def train() -> Any:
        steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
        state, step = steps.init_state(0), steps.train_step
        if mode == "vmapped":
            state = tree.map(lambda leaf: torch.stack([leaf, leaf]), state)
            state = state.replace(rng=random.split(KEY, 2))
            step = torch.vmap(step, (0, None))
        if mode == "compiled":
            step = ftrain.compile(step, backend="eager")
        for _ in range(2):
            state, metrics = step(state, tokens)
        return state, metrics["loss"]

    expected = train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert same_bytes(train(), expected)
