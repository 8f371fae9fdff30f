"""Each step made out of another one: the laws, and the bytes of a composition written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ftrain
from ftrain.core import tree
from ftrain.testing import assert_same_bits, check_all
from ftrain.transforms import (
    branch,
    from_gradients,
    interleave,
    project_conflicts,
    with_ema,
    with_gradient_noise,
    with_sam,
    with_target,
)
from tests.transforms.small import BOUND, OPTIMIZER, batch, distances, spoiled, squares, steps_of


def both(batch: Any) -> Any:
    return {"squares": batch, "distances": batch}


def of_gradients(gradients: Any) -> ftrain.Steps:
    return steps_of()._replace(train_step=from_gradients(gradients, OPTIMIZER))


def branched() -> ftrain.Steps:
    one, two = steps_of(), steps_of(distances)
    step = branch(one.train_step, two.train_step, lambda s, b: one.eval_step(s, b)["loss"])
    return one._replace(train_step=step)


def interleaved() -> ftrain.Steps:
    one, two = steps_of(), steps_of(distances)
    step = interleave({"squares": one.train_step, "distances": two.train_step})
    return one._replace(train_step=step)


def surgery() -> ftrain.Steps:
    tasks = {fn.__name__: ftrain.gradients(BOUND, fn) for fn in (squares, distances)}
    return of_gradients(project_conflicts(tasks))


GRADIENTS = steps_of().train_step.gradients
CASES: dict[str, tuple[Callable[[], ftrain.Steps], Callable[[Any], Any]]] = {
    "with_ema": (lambda: with_ema(steps_of(), 0.9), lambda b: b),
    "soft target": (lambda: with_target(steps_of(), rate=0.1), lambda b: b),
    "hard target": (lambda: with_target(steps_of(), every=2), lambda b: b),
    "target of ema": (lambda: with_target(with_ema(steps_of()), every=2), lambda b: b),
    "with_sam": (lambda: of_gradients(with_sam(GRADIENTS)), lambda b: b),
    "noise": (lambda: of_gradients(with_gradient_noise(GRADIENTS)), lambda b: b),
    "noise of sam": (lambda: of_gradients(with_gradient_noise(with_sam(GRADIENTS))), lambda b: b),
    "branch": (branched, lambda b: b),
    "interleave": (interleaved, both),
    "project_conflicts": (surgery, both),
}


@pytest.mark.parametrize("name", CASES)
def test_transformed_step_passes_the_checks_of_ftrain_testing(name: str) -> None:
    build, arrange = CASES[name]
    steps = build()
    # Evaluation takes one batch, not one for each task.
    subject = steps if arrange(0) == 0 else steps.train_step
    state = steps.init_state(0)
    unchecked = ("skip",) if name == "interleave" else ()  # it skips two steps, not one
    data = [arrange(batch(i)) for i in range(2)]
    check_all(subject, data, state=state, fast=True, skip=unchecked)


@pytest.mark.parametrize("name", CASES)
def test_compiled_transformed_step_has_the_bits_of_the_eager_one(name: str) -> None:
    build, arrange = CASES[name]
    steps = build()
    compiled = ftrain.compile(steps.train_step, backend="eager")
    state = steps.init_state(0)
    for i in range(2):
        data = arrange(batch(i))
        expected = steps.train_step(state, data)
        assert_same_bits(compiled(state, data), expected)
        state = expected[0]


@pytest.mark.parametrize("name", CASES)
def test_transformed_step_with_non_finite_gradients_changes_only_the_random_key(name: str) -> None:
    build, arrange = CASES[name]
    steps = build()
    state = steps.init_state(0)
    new, metrics = steps.train_step(state, arrange(spoiled(batch(0))))
    assert metrics["skipped"] > 0
    assert_same_bits(new.replace(rng=state.rng), state)


def trained(step: Any, state: Any, n: int = 3) -> Any:
    for i in range(n):
        state, _ = step(state, batch(i))
    return state


def test_ema_equals_an_average_computed_by_hand() -> None:
    plain = steps_of()
    state = plain.init_state(1)
    average = state.params
    for i in range(3):
        state, _ = plain.train_step(state, batch(i))
        average = tree.map(lambda a, p: a + (p - a) * (1 - 0.9), average, state.params)
    found = trained((steps := with_ema(plain, 0.9)).train_step, steps.init_state(1))
    assert_same_bits(found.extras["ema"], average)
    assert_same_bits(found.params, state.params)


@pytest.mark.parametrize("options", [{"rate": 0.1}, {"every": 2}], ids=["soft", "hard"])
def test_target_network_equals_a_copy_made_by_hand(options: dict[str, Any]) -> None:
    plain = steps_of()
    state = plain.init_state(1)
    target = state.params
    for i in range(3):
        state, _ = plain.train_step(state, batch(i))
        if "rate" in options:
            target = tree.map(lambda t, p: t + (p - t) * 0.1, target, state.params)
        elif i == 1:
            target = state.params
    steps = with_target(plain, **options)
    assert_same_bits(trained(steps.train_step, steps.init_state(1)).extras["target"], target)


def test_target_network_of_bfloat16_parameters_moves_by_less_than_their_spacing() -> None:
    steps = with_target(steps_of(precision="bf16-true"), rate=1e-3)
    state = steps.init_state(0)
    params = tree.map(lambda p: p * 1.1, state.params)
    state, _ = steps.train_step(state.replace(params=params), batch(0))
    old, target = steps.init_state(0).extras["target"], state.extras["target"]
    expected = tree.map(lambda t, p: t + (p.float() - t) * 1e-3, old, state.params)
    torch.testing.assert_close(target, expected)
    assert not torch.equal(target["0.weight"], old["0.weight"])


def test_loss_can_read_the_parameter_average_and_the_target_network() -> None:
    def loss(model: Any, batch: Any, extras: Any) -> torch.Tensor:
        old, _ = BOUND(extras["target"], {}, ftrain.random.key(0), batch["x"], training=False)
        return (model(batch["x"]) - old).square().mean() + 0 * extras["ema"]["0.bias"].sum()

    steps = with_target(with_ema(steps_of(loss)), rate=0.5)
    state, metrics = steps.train_step(steps.init_state(0), batch(0))
    assert torch.isfinite(metrics["loss"])
    assert state.step == 1


def test_sam_step_equals_a_step_with_two_gradients_computed_by_hand() -> None:
    state, data = steps_of().init_state(0), batch(0)
    first = GRADIENTS(state, data)
    norm = torch.stack([g.square().sum() for g in tree.leaves(first.grads)]).sum().sqrt()
    worst = tree.map(lambda p, g: p + g * (0.05 / norm), state.params, first.grads)
    second = GRADIENTS(state.replace(params=worst), data)
    found = with_sam(GRADIENTS)(state, data)
    for a, b in zip(tree.leaves(found.grads), tree.leaves(second.grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert_same_bits(found.metrics["loss"], first.metrics["loss"])
    assert not torch.equal(found.grads["0.weight"], first.grads["0.weight"])


def test_sam_lowers_the_loss_scale_if_the_second_gradient_overflows() -> None:
    """The perturbation to infinity makes the second gradient overflow, and only that."""
    gradients = steps_of(precision="16-mixed").train_step.gradients
    state = steps_of(precision="16-mixed").init_state(0)
    low = torch.full_like(state.scaler.scale, 256)  # the first gradient overflows at 65,536
    state = state.replace(scaler=state.scaler._replace(scale=low))
    for rho, scale in ((0.05, 1.0), (1e38, 0.5)):
        result = with_sam(gradients, rho)(state, batch(0))
        assert bool(result.finite) == (scale == 1)
        assert result.metrics["skipped"] == (scale != 1)
        assert_same_bits(result.scaler.scale, state.scaler.scale * scale)


def test_gradient_noise_has_the_given_variance_and_its_own_random_stream() -> None:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        return 0 * model.weight.sum()

    bound = ftrain.bind(lambda: torch.nn.Linear(100, 100, bias=False))
    gradients = with_gradient_noise(ftrain.gradients(bound, loss), 0.09, 1.0)
    state = ftrain.make_steps(bound, loss, OPTIMIZER).init_state(0).replace(step=2)
    noise = gradients(state, torch.ones(1)).grads["weight"]
    # Of 10^4 draws the relative error of a standard deviation is 1 / sqrt(2 10^4) = 0.7 %; five of it.
    assert abs(float(noise.std()) / (0.09 / 3) ** 0.5 - 1) < 0.036
    later = gradients(state.replace(rng=ftrain.random.key(5)), torch.ones(1)).grads["weight"]
    assert not torch.equal(noise, later)


@pytest.mark.parametrize("wins", [0, 1])
def test_branch_of_two_steps_returns_the_state_of_the_step_with_the_lower_score(wins: int) -> None:
    one, two = steps_of(), steps_of(distances)
    pair = [one.train_step, two.train_step]
    state, data = one.init_state(0), batch(0)
    ends = [step(state, data)[0] for step in pair]

    def score(new: Any, _: Any) -> torch.Tensor:
        return (new.params["0.weight"] - ends[wins].params["0.weight"]).abs().sum()

    new, metrics = branch(*pair, score)(state, data)
    assert_same_bits(new, ends[wins])
    assert metrics["branch"] == wins
    is_nan = branch(*pair, lambda s, b: torch.where(score(s, b) == 0, 1.0, torch.nan))
    assert is_nan(state, data)[1]["branch"] == wins


def test_loss_of_interleaved_tasks_is_the_mean_of_their_losses_whatever_their_weights() -> None:
    losses = {
        name: lambda model, batch, shift=shift, n=n: ftrain.Mean(
            (model(batch["x"]) - shift).square().sum(), torch.tensor(n)
        )
        for name, shift, n in (("many", 0.0, 100.0), ("one", 5.0, 1.0))
    }
    tasks = {name: steps_of(fn).train_step for name, fn in losses.items()}
    data = batch(0)
    _, metrics = interleave(tasks)(steps_of().init_state(0), {"many": data, "one": data})
    expected = (metrics["many/loss"] + metrics["one/loss"]) / 2
    torch.testing.assert_close(metrics["loss"], expected)


def test_interleaved_step_equals_one_step_per_task_in_order() -> None:
    steps = interleaved()
    state, data = steps.init_state(0), both(batch(0))
    found, metrics = steps.train_step(state, data)
    first, one = steps_of().train_step(state, data["squares"])
    second, two = steps_of(distances).train_step(first, data["distances"])
    assert_same_bits(found, second)
    assert_same_bits(metrics["distances/loss"], two["loss"])
    assert_same_bits(metrics["loss"], (one["loss"] + two["loss"]) / 2)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "taken name": (lambda: with_ema(with_ema(steps_of())).init_state(0), "without an entry 'ema'"),
    "no kind of target": (lambda: with_target(steps_of()), "either `rate` or `every`"),
    "two kinds of target": (
        lambda: with_target(steps_of(), rate=0.1, every=2),
        "either `rate` or `every`",
    ),
    "no task": (lambda: interleave({}), "at least one task, got none"),
    "no gradients": (lambda: project_conflicts({}), "at least one task, got none"),
    "other names": (
        lambda: interleaved().train_step(steps_of().init_state(0), {"x": 1}),
        "expected a batch for each of",
    ),
    "score of rows": (
        lambda: branch(steps_of().train_step, steps_of().train_step, lambda s, b: torch.zeros(2))(
            steps_of().init_state(0), batch(0)
        ),
        "expected a 0-d score",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_step_transformations_refuse_invalid_arguments(name: str) -> None:
    call, match = REFUSALS[name]
    with pytest.raises(ValueError, match=match):
        call()
