"""Side effects of models and losses work as in plain PyTorch, or raise with the reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim, testing, tree
from ftrain.core.errors import ImpureFunctionError

BATCH = {"x": torch.linspace(-1, 1, 32).view(8, 4), "y": torch.linspace(1, -1, 24).view(8, 3)}
MODES = pytest.mark.parametrize("mode", ["eager", "compiled"])


def mse(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def make(model: Any, loss_fn: Any = mse, **options: Any) -> ftrain.Steps:
    return ftrain.make_steps(model, loss_fn, optim.sgd(0.1), **options)


def step_of(steps: ftrain.Steps, mode: str) -> Any:
    return (
        steps.train_step if mode == "eager" else ftrain.compile(steps.train_step, backend="eager")
    )


def test_model_function_that_returns_an_existing_module_leaves_that_module_unchanged() -> None:
    net = nn.Linear(4, 3)
    before = net.weight.detach().clone()
    steps = make(lambda: net)
    state = steps.init_state(0)
    testing.assert_same_bits(state.params["weight"], before)
    steps.train_step(state, BATCH)
    assert torch.equal(net.weight, before)


class Closure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)
        self.f = lambda x: F.linear(x, self.a.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.f(x))


class Holds(nn.Module):
    def __init__(self, container: Any) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.held = container(self.a.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.held
        while not isinstance(weight, torch.Tensor):
            weight = weight["w"] if isinstance(weight, dict) else weight[0]
        return F.linear(x, weight)


@MODES
def test_loss_that_uses_parameters_outside_the_state_raises(mode: str) -> None:
    net = nn.Linear(4, 3)
    for model, loss_fn in ((net, lambda m, b: mse(net, b)), (Closure(), mse)):
        steps = make(model, loss_fn)
        with pytest.raises(
            ValueError, match="reads a tensor that requires a gradient and is not in"
        ):
            step_of(steps, mode)(steps.init_state(0), BATCH)
    steps = make(Closure)  # a factory's closures are the skeleton's own
    state = steps.init_state(0)
    new, _ = step_of(steps, mode)(state, BATCH)
    assert not torch.equal(new.params["a.weight"], state.params["a.weight"])


@pytest.mark.parametrize("container", [lambda w: [w], lambda w: {"w": w}, lambda w: [{"w": w}]])
def test_parameters_that_a_module_holds_in_lists_and_dicts_are_trained(container: Any) -> None:
    steps = make(lambda: Holds(container))
    state = steps.init_state(0)
    new, _ = steps.train_step(state, BATCH)
    assert not torch.equal(new.params["a.weight"], state.params["a.weight"])


def test_parameters_that_a_module_holds_in_tuples_raise() -> None:
    with pytest.raises(ValueError, match="'held': .* got 'a.weight' in a tuple.*Use a list"):
        make(lambda: Holds(lambda w: (w,)))


class Checkpointed(nn.Module):
    def __init__(self, on: bool) -> None:
        super().__init__()
        self.on = on
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.first(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = checkpoint(self.inner, x, use_reentrant=False) if self.on else self.inner(x)
        return self.last(x)


@MODES
@pytest.mark.parametrize("accumulate", [1, 2])
def test_activation_checkpointing_keeps_the_bits_of_a_step(mode: str, accumulate: int) -> None:
    found = []
    for on in (True, False):
        steps = make(lambda on=on: Checkpointed(on), accumulate=accumulate)
        found.append(step_of(steps, mode)(steps.init_state(0), BATCH))
    testing.assert_same_bits(found[0], found[1])


def test_differentiating_through_a_train_step_raises() -> None:
    steps = make(lambda: nn.Linear(4, 3))
    state = steps.init_state(0)

    def after(params: Any) -> torch.Tensor:
        new, _ = steps.train_step(state.replace(params=params), BATCH)
        return new.params["weight"].sum()

    with pytest.raises(ValueError, match="no gradient can flow through it"):
        torch.func.grad(after)(state.params)
    with pytest.raises(ValueError, match="no gradient can flow through it"):
        ftrain.value_and_grad(after)(state.params)


@pytest.mark.parametrize("name", ["params['bias']", "params['weight']", "extras['z']"])
def test_step_names_the_leaf_of_the_state_that_requires_a_gradient(name: str) -> None:
    steps = make(lambda: nn.Linear(4, 3))
    extras = {"a": torch.ones(2), "z": torch.ones(2)}
    state = steps.init_state(0).replace(extras=extras)
    leaves, treedef = tree.flatten(state)
    place = list(tree.paths(state)).index(f".{name}")
    leaves[place] = leaves[place].clone().requires_grad_()
    with pytest.raises(ValueError, match=re.escape(f"with respect to state.{name}")):
        steps.train_step(tree.unflatten(treedef, leaves), BATCH)


class Remembers(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.losses: list[Any] = []
        self.cache: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        self.losses.append(y.square().mean())
        self.cache.setdefault("first", y.detach())
        return y + self.losses[0] * len(self.losses) + self.cache["first"].mean()


@MODES
def test_step_restores_lists_and_dicts_that_its_module_changes(mode: str) -> None:
    steps = make(Remembers)
    state = steps.init_state(0)
    step = step_of(steps, mode)
    testing.assert_deterministic(step, state, BATCH, times=3)
    testing.assert_deterministic(steps.eval_step, state, BATCH)


def test_registering_a_buffer_in_a_forward_pass_raises() -> None:
    class Registers(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if "mu" not in self._buffers:
                self.register_buffer("mu", x.mean(0))
            return super().forward(x - self.mu)

    steps = make(lambda: Registers(4, 3))
    for _ in range(2):
        with pytest.raises(
            ImpureFunctionError, match="registered or removed `mu` during a forward"
        ):
            steps.train_step(steps.init_state(0), BATCH)


@MODES
def test_loss_may_remove_entries_from_its_batch_dict(mode: str) -> None:
    def pops(model: Any, batch: Any) -> torch.Tensor:
        target = batch.pop("y")
        return F.mse_loss(model(batch["x"]), target)

    steps = make(lambda: nn.Linear(4, 3), pops)
    batch = dict(BATCH)
    step = step_of(steps, mode)
    testing.assert_deterministic(step, steps.init_state(0), batch)
    assert sorted(batch) == ["x", "y"]


@pytest.mark.parametrize("nonfinite", ["skip", "ignore"])
def test_metrics_and_buffers_share_no_memory_with_the_batch(nonfinite: Any) -> None:
    class Keeps(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.register_buffer("last", torch.zeros(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            return super().forward(x)

    def loss_fn(model: Any, batch: Any) -> Any:
        total = F.mse_loss(model(batch["x"]), batch["y"], reduction="sum")
        return ftrain.Mean(total, batch["w"]), {"bias": ftrain.Last(model.bias[0])}

    steps = make(Keeps, loss_fn, nonfinite=nonfinite)
    testing.assert_pure(steps.train_step, steps.init_state(0), {**BATCH, "w": torch.tensor(3.0)})


def test_float64_model_gets_gradients_computed_in_float64_for_any_accumulate() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss_fn(model: Any, batch: Any) -> Any:
        return ftrain.Mean((model.w * batch).sum(), torch.tensor(len(batch), dtype=torch.float64))

    batch = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    for accumulate in (1, 3):
        find = ftrain.gradients(Line, loss_fn, accumulate=accumulate)
        state = make(Line, loss_fn).init_state(0)
        assert float(find(state, batch).grads["w"]) == 1.0


def test_step_is_skipped_if_the_loss_weight_is_nan() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return ftrain.Mean(mse(model, batch), torch.tensor(float("nan")))

    steps = make(lambda: nn.Linear(4, 3), loss_fn)
    testing.assert_skips(steps.train_step, steps.init_state(0), BATCH)


def test_steps_refuse_a_state_of_another_precision_or_model() -> None:
    state = make(lambda: nn.Linear(4, 3)).init_state(0)
    with pytest.raises(ValueError, match="the state was made with another precision"):
        make(lambda: nn.Linear(4, 3), precision="16-mixed").train_step(state, BATCH)
    with pytest.raises(
        ValueError, match=r"'weight': expected shape \(5, 4\), as in Linear, got \(3, 4\)"
    ):
        make(lambda: nn.Linear(4, 5)).train_step(state, BATCH)
    with pytest.raises(TypeError, match="pair of functions init and update"):
        ftrain.make_steps(nn.Linear(4, 3), mse, optim.sgd)  # type: ignore[arg-type]


def test_step_under_inference_mode_gives_the_same_bits() -> None:
    steps = make(lambda: nn.Linear(4, 3))
    with torch.inference_mode():
        state = steps.init_state(0)
        made_inside = {"x": torch.ones(8, 4), "y": torch.ones(8, 3)}
        new, _ = steps.train_step(state, BATCH)
        with pytest.raises(ValueError, match=r"batch\['x'\] was made under torch.inference_mode"):
            steps.train_step(state, made_inside)
    testing.assert_same_bits(new, steps.train_step(steps.init_state(0), BATCH)[0])


def test_model_with_buffers_that_share_memory_raises() -> None:
    class Views(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            whole = torch.zeros(4)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[1:])

    with pytest.raises(ValueError, match="'whole' and 'part': expected tensors in separate memory"):
        make(Views)


def test_learning_rate_metric_ignores_a_parameter_named_learning_rate() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learning_rate = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.learning_rate

    steps = ftrain.make_steps(Named, mse, optim.adamw(1e-2))
    _, metrics = steps.train_step(steps.init_state(0), BATCH)
    assert set(metrics) == {"loss", "grad_norm", "skipped", "learning_rate"}
    assert float(metrics["learning_rate"]) == pytest.approx(1e-2)


def test_loss_that_changes_the_buffers_of_a_captured_teacher_raises() -> None:
    teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch["x"]), teacher(batch["x"]))

    steps = make(lambda: nn.Linear(4, 3), loss_fn)
    with pytest.raises(ImpureFunctionError, match=r"captured tensor `teacher\.1\.\w+` was changed"):
        steps.train_step(steps.init_state(0), BATCH)
    teacher.eval()
    steps.train_step(steps.init_state(0), BATCH)


def test_building_a_model_keeps_the_global_generator_state() -> None:
    """The factory fails on the meta device, so it is run once more on a real one."""

    def factory() -> nn.Module:
        net = nn.Linear(4, 3)
        net.weight.data.sum().item()  # what the meta device refuses
        return net

    torch.manual_seed(0)
    before = torch.get_rng_state()
    make(factory).init_state(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_module_that_is_falsy_is_accepted_as_a_model() -> None:
    class Falsy(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    steps = make(Falsy())
    steps.train_step(steps.init_state(0), BATCH)
