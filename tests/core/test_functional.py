"""`bind`: plain modules as pure functions."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ftrain
from ftrain import optim, testing
from ftrain.core import random
from ftrain.core.errors import ImpureFunctionError
from tests.zoo import GPT, LSTM, ConvNet

KEY = random.key(0)


class Shared(nn.Module):
    """Model with one submodule reachable by several paths, in lists and dicts of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a
        self.list = nn.ModuleList([self.a, nn.Linear(3, 3)])
        self.dict = nn.ModuleDict({"one": self.a, "two": nn.Linear(3, 3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x)) + self.list[0](x)
        return self.dict["two"](self.dict["one"](self.list[1](x)))


class Counting(nn.Module):
    """Model with integer, non-persistent, reassigned and None buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("absent", None)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.scratch.add_(x.mean(0).detach())
        self.last = (x * self.weight).mean(0)
        return x * self.weight + self.scratch


def apply_to(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    apply = ftrain.bind(model)
    return apply(*apply.init(KEY), KEY, *args, **kwargs)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Shared(), torch.ones(2, 3)),
        (Counting(), torch.ones(4, 2)),
        (ConvNet(), torch.ones(2, 1, 6, 6)),
        (GPT(dropout=0.0), torch.ones(2, 5, dtype=torch.int64)),
        (LSTM(0.0), torch.ones(2, 7, 4)),
        (parametrizations.weight_norm(nn.Linear(3, 2)), torch.ones(2, 3)),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(5, 3)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_bound_module_matches_outputs_buffers_and_gradients_of_the_module(
    model: nn.Module, x: torch.Tensor
) -> None:
    """The module itself is left unchanged by calls of the bound model."""
    apply = ftrain.bind(model)
    params, buffers = apply.init(KEY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {name: dict(m.__dict__) for name, m in model.named_modules()}

    def total(params: Any) -> Any:
        out, after = apply(params, buffers, KEY, x)
        return out.square().sum(), (out, after)

    (_, (out, after)), grads = ftrain.value_and_grad(total, has_aux=True)(params)
    testing.assert_same_bits(dict(model.state_dict()), before)
    for name, m in model.named_modules():
        assert m.__dict__.keys() == attributes[name].keys()
        assert all(m.__dict__[k] is v for k, v in attributes[name].items())

    expected = model(x)
    expected.square().sum().backward()
    testing.assert_same_bits(out, expected.detach())
    own = {n: p.grad for n, p in model.named_parameters()}
    testing.assert_close_norm(grads, own, 1e-6)
    for name, buffer in model.named_buffers():
        testing.assert_same_bits(after[name], buffer.detach(), name)
    model.zero_grad()


def test_tied_weights_appear_once_in_params() -> None:
    apply = ftrain.bind(GPT(dropout=0.0))
    params, _ = apply.init(KEY)
    assert "tokens.weight" in params
    assert "head.weight" not in params


def test_frozen_parameters_are_buffers_not_params() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    apply = ftrain.bind(model)
    params, buffers = apply.init(KEY)
    assert sorted(params) == ["1.bias", "1.weight"]
    assert sorted(buffers) == ["0.bias", "0.weight"]


@pytest.mark.parametrize("build", [lambda: GPT(), lambda: LSTM(), lambda: ConvNet()])
def test_bound_init_is_a_pure_function_of_the_key(build: Any) -> None:
    apply = ftrain.bind(build)
    state = torch.get_rng_state()
    one, two = apply.init(KEY), apply.init(KEY)
    testing.assert_same_bits(one, two)
    assert testing.describe_difference(apply.init(random.key(1)), one) is not None
    assert torch.equal(torch.get_rng_state(), state)


SHARED_ACTIVATION = nn.GELU()
ENCODER = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


class DefaultActivation(nn.Module):
    def __init__(self, activation: nn.Module = nn.PReLU()) -> None:  # noqa: B008  # as users write
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), SHARED_ACTIVATION, nn.Linear(3, 1)), set()),
        (DefaultActivation, {"layers.1.weight"}),
        (
            lambda: nn.Sequential(ENCODER, nn.Linear(3, 1)),
            {f"0.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")},
        ),
    ],
    ids=["activation of a module", "default argument", "pretrained encoder"],
)
def test_bound_init_draws_new_weights_although_all_builds_share_one_submodule(
    build: Any, kept: set[str]
) -> None:
    """One shared activation once made the seed draw nothing: every seed gave the same weights."""
    before = [t.clone() for t in (*ENCODER.parameters(), *ENCODER.buffers())]
    apply = ftrain.bind(build)
    (one, buffers), (again, _), (other, _) = (apply.init(random.key(k)) for k in (0, 0, 1))
    testing.assert_same_bits(one, again)
    for name, value in one.items():
        assert torch.equal(value, other[name]) == (name in kept), name
    apply(one, buffers, KEY, torch.ones(4, 2))
    state_dict = apply.module(other, buffers).state_dict()
    assert all(torch.equal(state_dict[name], value) for name, value in other.items())
    after = [*ENCODER.parameters(), *ENCODER.buffers()]
    assert all(map(torch.equal, before, after))
    assert ENCODER.training


def test_model_function_that_always_returns_one_module_gives_its_weights_for_every_key() -> None:
    model = nn.Linear(2, 1)
    apply = ftrain.bind(lambda: model)
    for seed in (0, 1):
        testing.assert_same_bits(apply.init(random.key(seed))[0]["weight"], model.weight.detach())
    assert not model.weight.is_meta


def test_attributes_that_a_forward_pass_stores_in_a_bound_module_are_removed() -> None:
    class Remembers(nn.Linear):
        seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + 1
            self.activation = x
            return super().forward(x) * self.seen

    apply = ftrain.bind(Remembers(2, 2))
    params, buffers = apply.init(KEY)
    testing.assert_deterministic(lambda: apply(params, buffers, KEY, torch.ones(1, 2)))
    assert not hasattr(apply.skeleton.module, "activation")


def test_bound_module_is_restored_after_its_forward_pass_raises() -> None:
    class Fails(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("inside")

    apply = ftrain.bind(Fails(2, 2))
    params, buffers = apply.init(KEY)
    with pytest.raises(RuntimeError, match="inside"):
        apply(params, buffers, KEY, torch.ones(1, 2))
    assert apply.skeleton.module.weight.is_meta


def test_bind_refuses_lazy_modules_with_a_remedy() -> None:
    for model in (nn.LazyLinear(3), lambda: nn.LazyLinear(3), lambda: nn.LazyConv1d(3, 2)):
        with pytest.raises(ValueError, match="'weight' of Lazy.* is lazy: .*Run one batch"):
            ftrain.bind(model)


def test_forward_pass_that_writes_to_a_tensor_attribute_raises() -> None:
    class Hides(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.gain = torch.ones(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.gain.mul_(2)
            return super().forward(x) * self.gain

    with pytest.raises(
        ImpureFunctionError,
        match="tensor attribute `gain` was changed(?s:.*)self.gain.mul_(?s:.*)register_buffer",
    ):
        apply_to(Hides(), torch.ones(1, 2))


def test_forward_pass_that_writes_to_a_parameter_raises() -> None:
    class Clips(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.clamp_(-1, 1)
            return super().forward(x)

    with pytest.raises(ImpureFunctionError, match="parameter `weight` was changed in place"):
        apply_to(Clips(2, 2), torch.ones(1, 2))


def test_forward_pass_that_fills_a_none_buffer_raises() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.mean = x.mean()
            return x

    with pytest.raises(ImpureFunctionError, match="'mean', which was None"):
        apply_to(Grows(), torch.ones(1, 2))


class Counter(nn.Module):
    def __init__(self, count: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)


class SharesCounter(nn.Module):
    """Model whose parts count in one buffer, by assignment or in place."""

    def __init__(self, assigns: str) -> None:
        super().__init__()
        count = torch.zeros(())
        self.one, self.two, self.assigns = Counter(count), Counter(count), assigns
        self.seen = [count]  # not registered: the reference of a list may become old

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.one, self.two):
            if self.assigns == "neither":
                part.count += 1
        if self.assigns in ("one", "both"):
            self.one.count = self.one.count + 2
        if self.assigns in ("two", "both"):
            self.two.count = self.one.count if self.assigns == "both" else self.two.count + 2
        return x


@pytest.mark.parametrize("assigns", ["one", "two"])
def test_assigning_a_shared_buffer_in_only_one_of_its_modules_raises(assigns: str) -> None:
    with pytest.raises(ImpureFunctionError, match="'one.count' and 'two.count': expected one"):
        apply_to(SharesCounter(assigns), torch.ones(1, 2))


@pytest.mark.parametrize("assigns", ["neither", "both"])
def test_buffer_that_its_modules_still_share_after_a_call_is_returned_once(assigns: str) -> None:
    _, buffers = apply_to(SharesCounter(assigns), torch.ones(1, 2))
    assert {name: float(x) for name, x in buffers.items()} == {"one.count": 2.0}


def test_bound_module_called_without_some_parameters_raises_with_their_names() -> None:
    apply = ftrain.bind(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"params do not fit Linear: missing \['bias'\]"):
        apply({"weight": torch.ones(2, 2)}, {}, KEY, torch.ones(1, 2))


def test_bound_module_keeps_submodules_that_were_set_to_eval_mode_in_eval_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    x = torch.ones(1, 100)
    assert torch.equal(apply_to(model, x, training=False)[0], x)
    assert not torch.equal(apply_to(model, x)[0], x)
    model.eval()  # as pretrained models come
    assert not torch.equal(apply_to(model, x)[0], x)
    model.train()
    model[0].eval()
    model[1].eval()  # frozen on purpose inside a training model
    assert torch.equal(apply_to(model, x)[0], x)


def test_concurrent_threads_can_call_one_bound_model() -> None:
    apply = ftrain.bind(nn.Linear(2, 2, bias=False))
    wrong: list[float] = []

    def run(value: float) -> None:
        params = {"weight": torch.full((2, 2), value)}
        for _ in range(200):
            out, _ = apply(params, {}, KEY, torch.ones(1, 2))
            if out[0, 0] != 2 * value:
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(float(i),)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_concurrent_threads_can_evaluate_one_state_with_the_same_steps() -> None:
    """The second call waits for the first one, although both have the same dict of parameters."""
    inside = threading.Event()

    class Waits(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if threading.current_thread() is not other:
                inside.set()
                other.join(1.0)
            return super().forward(x)

    steps = ftrain.make_steps(Waits(2, 2), lambda m, x: m(x).sum(), optim.sgd(0.1))
    state, x = steps.init_state(0), torch.ones(1, 2)

    def run() -> None:
        inside.wait(60)
        steps.eval_step(state, x)

    other = threading.Thread(target=run)
    other.start()
    expected = (x @ state.params["weight"].T + state.params["bias"]).sum()
    torch.testing.assert_close(steps.eval_step(state, x)["loss"], expected)
    other.join()


def test_adding_a_layer_does_not_change_the_initial_weights_of_other_layers() -> None:
    class Wide(nn.Module):
        def __init__(self, extra: bool) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            if extra:
                self.between = nn.Linear(3, 3)
            self.last = nn.Linear(3, 1)

    lean, _ = ftrain.bind(lambda: Wide(False)).init(KEY)
    rich, _ = ftrain.bind(lambda: Wide(True)).init(KEY)
    testing.assert_same_bits({name: rich[name] for name in lean}, lean)
    assert not torch.equal(rich["between.weight"], rich["first.weight"])


def test_outputs_of_a_bound_model_share_no_memory_with_its_inputs() -> None:
    class HandsOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> Any:
            self.last = x
            return {"x": x, "part": x[1:], "weight": self.weight, "rest": ("a", None, x.view(3, 1))}

    apply = ftrain.bind(HandsOut)
    params, buffers = apply.init(random.key(0))
    testing.assert_pure(apply, params, buffers, random.key(1), torch.arange(3.0))
    _, grads = ftrain.value_and_grad(
        lambda p: apply(p, buffers, random.key(1), torch.arange(3.0))[0]["weight"].sum()
    )(params)
    testing.assert_same_bits(grads["weight"], torch.ones(3))
