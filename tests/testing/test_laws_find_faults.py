"""Every check finds the faults of its law in plain PyTorch steps, and its message leads to the fix."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from tests.testing import plain

HERE = Path(__file__).name
X = torch.linspace(-1, 1, 8)
STATE = {"w": torch.zeros(8), "key": torch.tensor(3)}
BATCHES = [X, X + 1, X + 2]


def violation(check: Callable[..., Any], *args: Any, **options: Any) -> testing.LawViolation:
    """Return the violation that a check raises; its parts must be in its message."""
    with pytest.raises(testing.LawViolation) as caught:
        check(*args, **options)
    found = caught.value
    message = str(found)
    assert found.law == check.__name__.removeprefix("check_")
    for part in (found.summary, found.operator, found.cause, found.remedy):
        assert part is None or part in message
    assert found.remedy
    return found


def line_with(text: str) -> str:
    """Return `FILE:LINE` of the line of this file that ends with a comment."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {text}")]
    return f"{HERE}:{number} "


# Law 1


def test_pure_names_operator_and_line_that_write_into_the_state() -> None:
    def step(state: Any, batch: Any) -> Any:
        w = state["w"]
        w -= 0.1 * batch  # writes into the state
        return {**state, "w": w}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert found.operator == "aten.sub_.Tensor"
    assert found.difference is not None
    assert found.difference.path == "[0]['w']"
    assert found.difference.index == (0,)
    assert line_with("writes into the state") in str(found.line)
    assert "state['w'] at (0,): expected 0.0, got 0.1" in found.summary
    assert bool((STATE["w"] == 0).all()), "the check changed the state that it was given"


def test_pure_finds_an_entry_added_to_the_state() -> None:
    def step(state: Any, batch: Any) -> Any:
        state["loss"] = batch.mean()
        return {**state}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "['loss']" in found.summary


def test_pure_finds_batchnorm_statistics_gradients_and_attributes_of_a_captured_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {"w": model(batch.view(1, 8).repeat(2, 1)).sum(0)}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "model.1." in found.summary
    assert bool((model[1].running_mean == 0).all()), "the check left the module changed"

    def backward(state: Any, batch: Any) -> Any:
        model[0](batch).sum().backward()
        return dict(state), {}

    found = violation(testing.check_pure, backward, BATCHES, state=STATE)
    assert "the gradient of model.0." in found.summary
    assert model[0].weight.grad is None

    def cached(state: Any, batch: Any) -> Any:
        model.last = batch
        return dict(state), {}

    found = violation(testing.check_pure, cached, BATCHES, state=STATE)
    assert "model" in found.summary
    assert not hasattr(model, "last")


def test_pure_finds_state_in_closures_globals_and_optimizers() -> None:
    history: list[Any] = []

    def appends(state: Any, batch: Any) -> Any:
        history.append(1)
        return dict(state), {}

    assert "history" in violation(testing.check_pure, appends, BATCHES, state=STATE).summary
    assert history == []

    def counts(state: Any, batch: Any) -> Any:
        global _count  # noqa: PLW0603  # the fault
        _count += 1
        return dict(state), {}

    assert violation(testing.check_pure, counts, BATCHES, state=STATE)

    weight = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.Adam([weight])

    def steps(state: Any, batch: Any) -> Any:
        weight.grad = batch
        optimizer.step()
        return {"w": weight.detach().clone()}, {}

    assert violation(testing.check_pure, steps, BATCHES, state=STATE)
    assert bool((weight == 1).all())


_count = 0


def test_pure_names_the_line_that_draws_from_a_global_generator() -> None:
    def step(state: Any, batch: Any) -> Any:
        noise = torch.randn(8)  # draws for the law of purity
        return {**state, "w": state["w"] + noise}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert found.summary == "the call changed the random state of torch"
    assert found.operator == "aten.randn.default"
    assert line_with("draws for the law of purity") in str(found.line)


@pytest.mark.parametrize("alias", [lambda w: w, lambda w: w[:4], lambda w: w.view(2, 4)])
def test_pure_finds_outputs_that_share_memory_with_inputs(alias: Callable[[Any], Any]) -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**{k: v.clone() for k, v in state.items()}, "old": alias(state["w"])}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "shares memory with input state['w']" in found.summary


# Law 2


def test_deterministic_names_the_first_operator_whose_result_differs() -> None:
    def step(state: Any, batch: Any) -> Any:
        h = batch.exp()
        g = h + torch.full((8,), time.perf_counter())  # depends on the time
        return {"w": g.sin()}, {}

    found = violation(testing.check_deterministic, step, BATCHES, state=STATE)
    assert found.operator == "aten.full.default"
    assert line_with("depends on the time") in str(found.line)
    assert found.difference is not None
    assert found.difference.ulps is not None


def test_deterministic_finds_state_that_grows_in_a_closure() -> None:
    calls = []

    def step(state: Any, batch: Any) -> Any:
        calls.append(1)
        return {**state, "w": state["w"] + len(calls)}, {}

    assert violation(testing.check_deterministic, step, BATCHES, state=STATE).difference


def test_deterministic_finds_bits_that_depend_on_the_number_of_threads() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": batch * torch.get_num_threads()}, {}

    testing.check_deterministic(step, BATCHES, state=STATE)
    found = violation(testing.check_deterministic, step, BATCHES, state=STATE, threads=(3,))
    assert found.summary.startswith("3 threads give other bits than")
    assert found.operator == "aten.mul.Tensor"


# Law 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {**s, "key": s["key"] + 1.0},
            r"state\['key'\] .* another dtype: expected int64",
        ),
        (
            lambda s: {**s, "w": torch.cat([s["w"], s["w"]])},
            r"another shape: expected \[8\], got \[16\]",
        ),
        (lambda s: {**s, "loss": s["w"]}, r"other leaves: new \['loss'\]"),
        (lambda s: {"w": s["w"]}, r"other leaves: missing \['key'\]"),
        (lambda s: {**s, "key": 4}, r"state\['key'\] .* another class: expected Tensor, got int"),
        (
            lambda s: {**s, "w": s["w"].requires_grad_() * 2},
            "requires_grad: expected False, got True",
        ),
    ],
)
def test_fixpoint_names_the_leaf_and_what_changes(change: Callable[[Any], Any], said: str) -> None:
    found = violation(
        testing.check_fixpoint, lambda state, batch: (change(state), {}), BATCHES, state=STATE
    )
    with pytest.raises(AssertionError, match=said):
        raise found


def test_fixpoint_finds_transposed_strides() -> None:
    state = {"w": torch.zeros(3, 2)}
    found = violation(
        testing.check_fixpoint,
        lambda state, batch: ({"w": torch.zeros(2, 3).t()}, {}),
        [None],
        state=state,
    )
    assert "another strides: expected (2, 1), got (1, 3)" in found.summary


def test_fixpoint_finds_a_branch_on_a_value_and_shows_its_line() -> None:
    def step(state: Any, batch: Any) -> Any:
        if batch.mean().item() > 0:  # branches on a value
            return {**state, "w": state["w"] + 1}, {}
        return {**state, "w": state["w"] - 1}, {}

    found = violation(testing.check_fixpoint, step, BATCHES, state=STATE)
    assert line_with("branches on a value") in str(found.line)
    assert "ftrain.cond" in str(found.remedy)
    testing.check_fixpoint(step, BATCHES, state=STATE, compiled=False)


# Law 4


class Noisy(nn.Module):
    """Network whose second layer draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_keyed_names_operator_module_and_line_of_dropout() -> None:
    model = Noisy()

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {"w": model(batch)}, {}  # dropout without a key

    found = violation(testing.check_keyed, step, BATCHES, state=STATE)
    assert found.operator == "aten.native_dropout.default" or "bernoulli" in str(found.operator)
    assert "in module layers.1 (Dropout)" in str(found.line)
    assert HERE in str(found.line)
    assert "torch's global generator" in found.summary


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: np.random.rand(8), "NumPy's global generator"),
        (lambda: random.random(), "the generator of Python's random functions"),
    ],
)
def test_keyed_names_the_line_of_other_generators(draw: Callable[[], Any], name: str) -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**state, "w": state["w"] + torch.as_tensor(draw())}, {}

    before = np.random.get_state()[1].tolist(), random.getstate()
    found = violation(testing.check_keyed, step, BATCHES[:1], state=STATE)
    assert name in found.summary
    assert HERE in str(found.line)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_keyed_finds_generators_that_the_step_holds(kind: str) -> None:
    made: Any = {
        "torch": lambda: torch.Generator().manual_seed(0),
        "numpy": lambda: np.random.default_rng(0),
        "python": lambda: random.Random(0),
    }[kind]()

    def step(state: Any, batch: Any) -> Any:
        noise = {
            "torch": lambda: torch.randn(8, generator=made),
            "numpy": lambda: torch.from_numpy(made.standard_normal(8)),
            "python": lambda: torch.tensor(made.random()),
        }[kind]()
        return {**state, "w": (state["w"] + noise).float()}, {}

    found = violation(testing.check_keyed, step, BATCHES, state=STATE)
    assert "the generator `made`, which the function holds" in found.summary
    assert HERE in str(found.line)


def test_keyed_finds_a_key_that_is_used_and_not_replaced() -> None:
    key = ftrain.random.key(0)

    def step(state: Any, batch: Any) -> Any:
        noise = ftrain.random.normal(state["rng"], (8,))
        return {"w": state["w"] + noise, "rng": state["rng"].clone()}, {}

    found = violation(testing.check_keyed, step, BATCHES, state={"w": torch.zeros(8), "rng": key})
    assert "uses the key state['rng'] and returns it unchanged" in found.summary

    def replaces(state: Any, batch: Any) -> Any:
        new, use = ftrain.random.split(state["rng"]).unbind()
        noise = ftrain.random.normal(use, (8,))
        return {"w": state["w"] + noise, "rng": new}, {}

    report = testing.check_keyed(replaces, BATCHES, state={"w": torch.zeros(8), "rng": key})
    assert "changes with each step" in str(report)


# Law 5


def masked_mean(model: Any, batch: Any) -> Any:
    errors = (model(batch["x"]) - batch["y"]).square().sum(-1)
    return (errors * batch["mask"]).sum() / batch["mask"].sum()


def masked_sum(model: Any, batch: Any) -> Any:
    errors = (model(batch["x"]) - batch["y"]).square().sum(-1)
    return ftrain.Mean((errors * batch["mask"]).sum(), batch["mask"].sum())


def masked_batches() -> list[Any]:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 1])
    x = torch.randn(8, 4, generator=g)
    return [{"x": x, "y": torch.randn(8, 2, generator=g), "mask": mask}]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accumulation_finds_a_mean_of_means_under_dropout(accumulate: int) -> None:
    def steps(loss_fn: Any) -> Any:
        return ftrain.make_steps(
            lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
            loss_fn,
            optim.adamw(1e-3),
            accumulate=accumulate,
        )

    found = violation(testing.check_accumulation, steps(masked_mean), masked_batches())
    assert "other than the whole batch" not in found.summary
    assert "another gradient than the whole batch: ['" in found.summary
    assert "ftrain.Mean(total, weight)" in str(found.remedy)
    report = testing.check_accumulation(steps(masked_sum), masked_batches(), ragged=True)
    assert "2 unequal micro-batches" in str(report)


def test_accumulation_compares_a_step_of_ones_own() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": state["w"] - 0.1 * batch.mean(0)}, {}

    def parts_of(weights: Any) -> Any:
        def accumulated(state: Any, parts: Any) -> Any:
            grads = [w * part.mean(0) for w, part in zip(weights(parts), parts, strict=True)]
            return {"w": state["w"] - 0.1 * sum(grads)}, {}

        return accumulated

    batches, state = [torch.randn(8, 3)], {"w": torch.zeros(3)}
    right = parts_of(lambda parts: [len(p) / sum(map(len, parts)) for p in parts])
    wrong = parts_of(lambda parts: [1.0 for _ in parts])
    testing.check_accumulation(step, batches, state=state, accumulated=right, ragged=True)
    found = violation(testing.check_accumulation, step, batches, state=state, accumulated=wrong)
    assert "2 micro-batches give another update" in found.summary


# Law 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s, b, ok: {"w": s["w"] - b, "n": s["n"], "m": s["m"]},
            r"at \['w'\]: first at \(0,\)",
        ),
        (lambda s, b, ok: {**s, "n": s["n"] + 1}, r"at \['n'\]: expected 4, got 5"),
        (lambda s, b, ok: {**s, "m": 0.9 * s["m"]}, r"at \['m'\]"),
    ],
)
def test_skip_names_the_leaf_that_a_skipped_step_changes(change: Any, said: str) -> None:
    def step(state: Any, batch: Any) -> Any:
        ok = batch.isfinite().all()
        good = {"w": state["w"] - batch, "n": state["n"] + 1, "m": 0.9 * state["m"] + batch}
        bad = change(state, batch, ok)
        new = {name: torch.where(ok, good[name], bad[name]) for name in good}
        return new, {"loss": batch.sum(), "skipped": ~ok}

    state = {"w": torch.zeros(8), "n": torch.tensor(1), "m": torch.ones(8)}
    found = violation(testing.check_skip, step, BATCHES, state=state)
    with pytest.raises(AssertionError, match=said):
        raise found
    assert found.difference is not None
    assert found.difference.count >= 1


def test_skip_finds_a_step_that_is_not_skipped_and_a_poison_without_effect() -> None:
    def step(state: Any, batch: Any) -> Any:
        return dict(state), {"skipped": torch.tensor(0)}

    assert "was not skipped" in violation(testing.check_skip, step, BATCHES, state=STATE).summary
    with pytest.raises(ValueError, match="poison: expected a batch with non-finite gradients"):
        testing.check_skip(lambda s, b: (dict(s), {"n": torch.ones(())}), BATCHES, state=STATE)
    with pytest.raises(ValueError, match=r"poison: expected a function.*no floats"):
        testing.check_skip(lambda s, b: (dict(s), {}), [torch.tensor([1])], state=STATE)


# Law 7


def test_resume_finds_state_outside_of_the_checkpoint() -> None:
    weight = torch.zeros(8)
    built: list[Any] = []

    def step(state: Any, batch: Any) -> Any:
        if not built:  # built at the first call, and never saved
            built.append(torch.optim.Adam([weight.requires_grad_()], lr=0.1))
        with torch.no_grad():
            weight.copy_(state["w"])
        weight.grad = batch.clone()
        built[0].step()
        return {"w": weight.detach().clone()}, {}

    found = violation(testing.check_resume, step, BATCHES, state={"w": torch.zeros(8)})
    assert found.summary.startswith("resuming before step 0 gave another state: ['w'] at (0,)")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda s, b: ({**s, "rate": 0.1}, {}), "cannot be saved"),
        (lambda s, b: ({**s, "m": s["w"] * 1}, {}), "cannot be loaded into an initial state"),
    ],
)
def test_resume_finds_states_that_no_checkpoint_restores(step: Any, said: str) -> None:
    found = violation(testing.check_resume, step, BATCHES, state={"w": torch.zeros(8)})
    assert said in found.summary
    assert "before step 1" in found.summary


# Law 8


def test_vmap_finds_steps_that_mix_rows_or_cannot_be_mapped() -> None:
    def mixes(state: Any, batch: Any) -> Any:
        return {"w": state["w"] + batch}, {"loss": torch.tensor(0.0)}

    states = [{"w": torch.full((8,), float(i))} for i in range(3)]
    testing.check_vmap(mixes, BATCHES, state=states[0], states=states)

    shared = torch.zeros(8)

    def writes(state: Any, batch: Any) -> Any:
        shared.copy_(state["w"])  # writes a mapped tensor
        return {"w": shared + batch}, {}

    found = violation(testing.check_vmap, writes, BATCHES, state=states[0], states=states)
    assert "cannot be mapped" in found.summary
    assert line_with("writes a mapped tensor") in str(found.line)


def test_vmap_of_a_function_finds_a_row_that_differs() -> None:
    class Rows(torch.autograd.Function):
        """Function whose rule for vmap sums over the rows."""

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            """Keep nothing."""

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
            return (x * 2).roll(1, dims=0), 0

    found = violation(testing.check_vmap, Rows.apply, args=(torch.arange(6.0).view(3, 2),))
    assert "row 0 of the vmapped apply differs" in found.summary


# Law 9


def test_donation_finds_a_state_whose_leaves_share_memory() -> None:
    w = torch.zeros(8)

    def step(state: Any, batch: Any) -> Any:
        new = state["w"] - batch
        return {"w": new, "ema": new}, {}

    state = {"w": w, "ema": w[:]}
    found = violation(testing.check_donation, lambda s, b: step(s, b), BATCHES, state=_Keep(state))
    assert "cannot be compiled" in found.summary or "share memory" in found.summary


class _Keep(dict[str, Any]):
    """A dict."""


# Law 10


def test_evaluation_finds_weights_that_are_swapped_in_and_not_back() -> None:
    model = nn.Linear(8, 8)

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {**state, "w": state["w"] + model(batch)}, {}

    def evaluate(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            model.weight.zero_()  # not swapped back
        return {"loss": model(batch).sum().detach()}

    found = violation(testing.check_evaluation, step, BATCHES, state=STATE, evaluate=evaluate)
    assert "model.weight" in found.summary
    assert found.operator == "aten.zero_.default"
    assert line_with("not swapped back") in str(found.line)


def test_evaluation_finds_state_that_purity_does_not_see() -> None:
    flags = _Slots()

    def step(state: Any, batch: Any) -> Any:
        return {**state, "w": state["w"] + flags.read()}, {}

    def evaluate(state: Any, batch: Any) -> Any:
        flags.write(2.0)
        return {"loss": batch.sum()}

    found = violation(testing.check_evaluation, step, BATCHES, state=STATE, evaluate=evaluate)
    assert "evaluation changed training: state['w'] at (0,)" in found.summary


class _Slots:
    """Object that keeps a number in the environment of the process, where no walk finds it."""

    def read(self) -> float:
        import os

        return float(os.environ.get("FTRAIN_TEST_FLAG", "1"))

    def write(self, value: float) -> None:
        import os

        os.environ["FTRAIN_TEST_FLAG"] = str(value)


@pytest.fixture(autouse=True)
def _without_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAIN_TEST_FLAG", "1")


# Compiled


def test_compiled_names_the_operator_that_has_burnt_in_a_python_number() -> None:
    rates = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])

    def step(state: Any, batch: Any) -> Any:
        rate = next(rates)
        return {**state, "w": state["w"] - rate * batch}, {}  # a number that changes

    found = violation(testing.check_compiled, step, BATCHES, state=STATE)
    assert found.operator in ("aten.mul.Tensor", "aten.sub.Tensor")
    assert line_with("a number that changes") in str(found.line)


def test_compiled_compares_norms_within_the_tolerance_that_is_given() -> None:
    calls = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x + 1e-5 * len(calls)

    testing.check_compiled(fn, args=(torch.ones(4),), relative=1e-3)
    found = violation(testing.check_compiled, fn, args=(torch.ones(4),), relative=1e-7)
    assert "relative norm" in found.summary


# Exceptions


def test_exception_safety_names_the_operator_after_which_the_module_stays_changed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def step(state: Any, batch: Any) -> Any:
        model.eval()
        with torch.no_grad():
            out = model(batch)  # an exception here leaves the module in eval mode
        model.train()
        return {"w": out}, {}

    testing.check_pure(step, BATCHES, state=STATE)
    found = violation(testing.check_exception_safety, step, BATCHES, state=STATE)
    assert "an exception at operator 1 of" in found.summary
    assert model.training
    assert line_with("an exception here leaves the module in eval mode") in str(found.line)


def test_exception_safety_finds_generators_and_modes_that_are_not_restored() -> None:
    def seeds(state: Any, batch: Any) -> Any:
        before = torch.get_rng_state()
        torch.manual_seed(1234)
        noise = torch.randn(8)
        torch.set_rng_state(before)
        return {**state, "w": state["w"] + noise}, {}

    found = violation(testing.check_exception_safety, seeds, BATCHES, state=STATE)
    assert "left the random state of torch changed" in found.summary

    def switches(state: Any, batch: Any) -> Any:
        torch.set_grad_enabled(False)
        w = state["w"] + batch
        torch.set_grad_enabled(True)
        return {**state, "w": w}, {}

    try:
        found = violation(testing.check_exception_safety, switches, BATCHES, state=STATE)
    finally:
        torch.set_grad_enabled(True)
    assert "left the grad mode changed" in found.summary


def test_exception_safety_reaches_operators_of_the_backward_pass() -> None:
    model = nn.Linear(8, 8)

    def step(state: Any, batch: Any) -> Any:
        model.zero_grad()
        model.weight.requires_grad_(False)
        loss = model(batch).square().sum()
        grads = torch.autograd.grad(loss, [model.bias])
        model.weight.requires_grad_(True)
        return {"w": state["w"] - grads[0]}, {}

    testing.check_pure(step, BATCHES, state=STATE)
    assert violation(testing.check_exception_safety, step, BATCHES, state=STATE)


def test_exception_safety_states_the_number_of_operators_in_a_sample() -> None:
    def step(state: Any, batch: Any) -> Any:
        w = state["w"]
        for _ in range(30):
            w = w + batch
        return {**state, "w": w}, {}

    report = testing.check_exception_safety(step, BATCHES[:1], state=STATE, most=7)
    assert report.rows[0].amount == "7 operators of 30, drawn at random"
    report = testing.check_exception_safety(step, BATCHES[:1], state=STATE)
    assert report.rows[0].amount == "30 operators"


# Law 11


def test_gradients_name_the_parameter_whose_gradient_is_cut() -> None:
    class Cut(nn.Module):
        """Network whose second layer is cut from the graph by mistake."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).tanh().detach()) + self.first(x)[:, :3]

    def loss_fn(model: Any, batch: Any) -> Any:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    steps = ftrain.make_steps(Cut, loss_fn, optim.sgd(0.1))
    found = violation(testing.check_gradients, steps, plain.batches(1))
    assert "the gradient of ['first." in found.summary
    assert found.difference is not None
    assert found.difference.got != found.difference.expected


def test_gradients_of_a_function_find_a_wrong_backward() -> None:
    class Square(torch.autograd.Function):
        """Square whose backward forgets a factor."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad * ctx.saved_tensors[0]

    found = violation(testing.check_gradients, Square.apply, args=(torch.ones(3),))
    assert "the gradient of [0] is wrong at (0,)" in found.summary


# All


def test_check_all_reports_every_law_and_raises_for_the_first_violation() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**{k: v.clone() for k, v in state.items()}, "w": state["w"] + torch.rand(8)}, {}

    with pytest.raises(testing.LawViolation, match="random state of torch") as caught:
        testing.check_all(step, BATCHES, state=STATE, fast=True)
    reports = caught.value.reports
    assert reports is not None
    assert reports["pure"].outcome == reports["keyed"].outcome == "violated"
    assert reports["fixpoint"].outcome == "passed"
    assert reports["evaluation"].outcome == "not checked"
    assert "keyed" in caught.value.__notes__[0]


def test_check_all_refuses_unknown_laws_and_wrong_arguments() -> None:
    step = functools.partial(lambda state, batch: (state, {}))
    with pytest.raises(ValueError, match=r"skip: expected names among pure, .*got \['purity'\]"):
        testing.check_all(step, BATCHES, state=STATE, skip=["purity"])
    with pytest.raises(TypeError, match=r"batches: expected a list.*Write \[batch\]"):
        testing.check_all(step, X, state=STATE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state: expected the state before the first batch"):
        testing.check_all(step, BATCHES)
    with pytest.raises(TypeError, match=r"returns \(state, metrics\), got a Tensor"):
        testing.check_pure(lambda state, batch: batch, BATCHES, state=STATE)
