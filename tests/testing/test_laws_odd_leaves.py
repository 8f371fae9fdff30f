"""Test that checks accept correct steps with unusual leaves, and find faults of other such steps."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftrain import testing
from ftrain.core import tree

BATCHES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def sgd(w: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    grad = (batch @ w).mean() * batch.mean(0)
    return torch.where(grad.isfinite().all(), w - grad, w)


def of_dict(state: Any, batch: Any) -> Any:
    new = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state)
    w = sgd(state["w"], batch)
    return {**new, "w": w}, {"loss": (batch @ w).mean(), "source": "wiki"}


def of_tensor(state: Any, batch: Any) -> Any:
    return sgd(state, batch), (batch @ state).norm()


def of_complex(state: Any, batch: Any) -> Any:
    w = sgd(state["w"], batch)
    spectrum = torch.fft.fft((batch * w).sum(0))
    new = torch.where(spectrum.real.isfinite().all(), 0.9 * state["c"] + spectrum, state["c"])
    return {"w": w, "c": new}, {"loss": spectrum.abs().mean()}


def of_list(state: Any, batch: Any) -> Any:
    return [{"w": sgd(state["w"], batch)}, {"norm": state["w"].norm() + batch.mean()}]


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (of_dict, {"w": torch.ones(4), "ema": None, "rest": []}),
        (of_dict, {"w": torch.ones(4), "f8": torch.ones(3).to(torch.float8_e4m3fn)}),
        (of_tensor, torch.ones(4)),
        (of_complex, {"w": torch.ones(4), "c": torch.zeros(4, dtype=torch.complex64)}),
        (of_list, {"w": torch.ones(4)}),
    ],
    ids=["None and text", "float8", "tensors", "complex", "list"],
)
def test_correct_steps_with_unusual_leaves_pass_every_law(step: Any, state: Any) -> None:
    reports = testing.check_all(step, BATCHES, state=state)
    assert [report.law for report in reports if not report.applies] == [
        "evaluation",
        "accumulation",
        "gradients",
    ]


def test_check_vmap_accepts_a_state_that_contains_text() -> None:
    state = {"w": torch.ones(4), "name": "run"}
    assert testing.check_vmap(of_dict, BATCHES, state=state).passed


def test_check_vmap_finds_a_wrong_complex_leaf() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"c": state["c"] * torch.complex(batch, batch).sum()}, {}

    state = {"c": torch.ones(2, dtype=torch.complex64)}

    def mixing(state: Any, batch: Any) -> Any:
        return {"c": state["c"] * (1 + 1e-3j * state["c"].untyped_storage().nbytes())}, {}

    assert testing.check_vmap(step, BATCHES, state=state).passed
    with pytest.raises(testing.LawViolation):
        testing.check_vmap(mixing, BATCHES, state=state)


def test_assert_close_norm_compares_imaginary_parts() -> None:
    one = torch.tensor([1 + 1j])
    testing.assert_close_norm(one, one * (1 + 1e-7), 1e-6)
    with pytest.raises(AssertionError, match="relative distance"):
        testing.assert_close_norm(one, one.conj(), 1e-3)


def test_check_skip_accepts_a_metric_that_is_a_python_float_as_proof_of_a_non_finite_batch() -> (
    None
):
    def step(state: Any, batch: Any) -> Any:
        good = batch.isfinite().all()
        new = {"w": sgd(state["w"], batch), "count": state["count"] + 1}
        return new, {"loss": float(batch.mean()), "good": good}

    state = {"w": torch.ones(4), "count": torch.tensor(0)}
    with pytest.raises(testing.LawViolation, match="'count'"):
        testing.check_skip(step, BATCHES, state=state)


class Sample:
    """Batch of another class, whose instances are leaves."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def test_checks_compare_objects_that_hold_tensors_by_the_bytes_of_the_tensors() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": sgd(state["w"], batch.x)}, {"batch": copy.deepcopy(batch)}

    def writes(state: Any, batch: Any) -> Any:
        batch.x.mul_(2.0)
        return step(state, batch)

    batches, state = [Sample(x) for x in BATCHES], {"w": torch.ones(4)}
    testing.check_pure(step, batches, state=state)
    testing.check_deterministic(step, batches, state=state)
    with pytest.raises(testing.LawViolation, match="an input changed: batch"):
        testing.check_pure(writes, batches, state=state)


def test_checks_compare_generators_and_modules_in_a_state_by_their_contents() -> None:
    def draws(state: Any, batch: Any) -> Any:
        generator = state["g"].clone_state()
        return {"w": torch.randn(4, generator=generator), "g": generator}, {}

    def advances(state: Any, batch: Any) -> Any:
        return {"w": torch.randn(4, generator=state["g"]), "g": state["g"]}, {}

    def trains(model: Any, batch: Any) -> Any:
        new = copy.deepcopy(model)
        loss = new(batch).square().mean()
        grads = torch.autograd.grad(loss, list(new.parameters()))
        with torch.no_grad():
            for p, grad in zip(new.parameters(), grads, strict=True):
                p.sub_(grad)
        return new, {"loss": loss.detach()}

    state = {"w": torch.zeros(4), "g": torch.Generator().manual_seed(3)}
    model = nn.Linear(4, 1)
    testing.check_pure(draws, BATCHES, state=state)
    testing.check_deterministic(draws, BATCHES, state=state)
    testing.check_pure(trains, BATCHES, state=model)
    testing.check_deterministic(trains, BATCHES, state=model)
    with pytest.raises(testing.LawViolation, match="state\\['g'\\]"):
        testing.check_pure(advances, BATCHES, state=state)


def test_check_pure_passes_on_steps_compiled_by_torch() -> None:
    loss = torch.compile(lambda w, batch: (batch @ w).square().mean(), backend="eager")

    def step(state: Any, batch: Any) -> Any:
        return {"w": state["w"] - loss(state["w"], batch)}, {}

    state = {"w": torch.ones(4)}
    testing.check_pure(step, BATCHES, state=state)
    testing.check_pure(torch.compile(of_dict, backend="eager"), BATCHES, state=state)
    torch._dynamo.reset()


def test_check_pure_names_the_class_of_a_changed_object_with_slots() -> None:
    class Step:
        __slots__ = ("n",)

        def __init__(self) -> None:
            self.n = 0

        def __call__(self, state: Any, batch: Any) -> Any:
            self.n += 1
            return of_dict(state, batch)

    with pytest.raises(testing.LawViolation, match="changed Step that the function holds"):
        testing.check_pure(Step(), BATCHES, state={"w": torch.ones(4)})


def test_check_pure_refuses_an_iterator_of_batches_and_a_result_of_three_entries() -> None:
    state = {"w": torch.ones(4)}
    with pytest.raises(TypeError, match=r"list\(loader\) for a loader"):
        testing.check_pure(of_dict, iter(BATCHES), state=state)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a tuple of 3 entries"):
        testing.check_pure(lambda s, b: (s, b, None), BATCHES, state=state)


def test_check_function_reports_that_integers_have_no_gradient() -> None:
    reports = testing.check_function(torch.argmax, torch.ones(3))
    assert reports["gradients"].outcome == "not checked"
    assert "floating-point dtype" in str(reports["gradients"].reason)


def test_laws_of_compiled_steps_do_not_apply_to_batches_of_numpy() -> None:
    def step(state: Any, batch: Any) -> Any:
        return state - torch.as_tensor(batch["x"]).mean(0), {}

    batches = [{"x": np.ones((4, 3), np.float32)}] * 2
    found = testing.check_all(step, batches, state=torch.zeros(3))
    assert {each.law for each in found.reports if each.applies and each.passed} >= {
        "pure",
        "resume",
    }
    reasons = {each.law: each.reason for each in found.reports if not each.applies}
    for law in ("compiled", "donation"):
        assert "batch['x']: expected a tensor" in reasons[law]
        assert "got an ndarray. Pass torch.as_tensor" in reasons[law]
    (fixpoint,) = [each for each in found.reports if each.law == "fixpoint"]
    assert [row.amount for row in fixpoint.rows if row.what == "compiled step"] == ["not compiled"]


@pytest.mark.parametrize("second", [slice(3, 6), slice(1, 4)], ids=["apart", "overlapping"])
def test_check_donation_finds_leaves_that_are_views_of_one_storage(second: slice) -> None:
    flat = torch.zeros(6)

    def step(state: Any, batch: Any) -> Any:
        return tree.map(lambda x: x - batch, state), {}

    with pytest.raises(testing.LawViolation) as caught:
        testing.check_donation(step, [torch.ones(3)], state={"a": flat[:3], "b": flat[second]})
    assert "share memory" in caught.value.summary
    assert "its own memory" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("generator", "name"),
    [
        (torch.Generator(), "a torch.Generator"),
        (np.random.default_rng(0), "a numpy.Generator"),
        (random.Random(0), "a random.Random"),
    ],
    ids=["torch", "numpy", "python"],
)
def test_checks_name_a_generator_in_the_state_and_propose_a_key(generator: Any, name: str) -> None:
    def step(state: Any, batch: Any) -> Any:
        own = state["random"]
        draw = torch.rand((), generator=own) if name == "a torch.Generator" else own.random()
        return {**state, "w": state["w"] + draw}, {}

    state = {"w": torch.zeros(3), "random": generator}
    with pytest.raises(testing.LawViolation) as caught:
        testing.check_pure(step, [torch.ones(3)], state=state)
    assert caught.value.summary == f"an input changed: state['random'], {name}, was advanced"
    assert "ftrain.random.key(seed)" in str(caught.value.remedy)
    with pytest.raises(testing.LawViolation, match=r"ftrain\.random\.key"):
        testing.check_fixpoint(step, [torch.ones(3)], state=state)


def test_check_pure_accepts_a_generator_in_the_state_that_is_not_advanced() -> None:
    state = {"w": torch.zeros(3), "random": torch.Generator()}
    step = lambda state, batch: ({**state, "w": state["w"] + batch}, {})  # noqa: E731
    assert testing.check_pure(step, [torch.ones(3)], state=state).passed
