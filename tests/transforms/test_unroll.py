"""`unroll`: gradients through training, in every mode, against finite differences and plain graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.testing import assert_same_bits
from ftrain.transforms import detach_training, unroll
from tests.transforms.unrolled import batches, difference, relative, steps_of, validation

STEPS = steps_of(optim.with_hyperparams(optim.adam, learning_rate=0.02))
ZERO = torch.zeros(4, dtype=torch.float64)


def hypergradient(k: int, seed: int = 0, **options: Any) -> torch.Tensor:
    loss = validation(STEPS, unroll(STEPS.train_step, k, **options), 0.02, k, seed)
    return ftrain.value_and_grad(loss)(ZERO)[1]


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=8)
def test_unroll_has_the_bits_of_k_steps_called_one_by_one(k: int, seed: int) -> None:
    state, data = STEPS.init_state(seed), batches(k, seed)
    found = unroll(STEPS.train_step, k)(state, data)
    each = []
    for i in range(k):
        state, metrics = STEPS.train_step(state, tree.map(lambda x, i=i: x[i], data))
        each.append(metrics)
    assert_same_bits(found, (state, tree.map(lambda *x: torch.stack(x), *each)))


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=8)
def test_gradient_with_recomputation_equals_the_gradient_of_the_whole_graph(
    k: int, seed: int
) -> None:
    """Sums of cotangents in another order: rounding only, dropout masks are the same."""
    assert relative(hypergradient(k, seed), hypergradient(k, seed, remat=False)) < 1e-12


def test_reverse_and_forward_mode_derivatives_equal_finite_differences() -> None:
    loss = validation(STEPS, unroll(STEPS.train_step, 3), 0.02, 3)
    expected = difference(loss, ZERO, 1e-4)
    assert relative(hypergradient(3), expected) < 1e-8
    tangent = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    _, slope = torch.func.jvp(loss, (ZERO,), (tangent,))
    assert relative(slope, expected @ tangent) < 1e-8


def test_second_order_gradient_equals_finite_differences() -> None:
    loss = validation(STEPS, unroll(STEPS.train_step, 2), 0.02, 2)

    def slope(x: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(loss)(x)[1][0]

    _, found = ftrain.value_and_grad(slope)(ZERO)
    assert relative(found, difference(slope, ZERO, 1e-4)) < 1e-7


def test_each_row_of_a_vmapped_hypergradient_equals_a_single_hypergradient() -> None:
    gradient = ftrain.value_and_grad(validation(STEPS, unroll(STEPS.train_step, 2), 0.02, 2))
    shifts = torch.stack([ZERO, ZERO + 0.1])
    _, rows = torch.vmap(gradient)(shifts)
    for row, shift in zip(rows, shifts, strict=True):
        assert relative(row, gradient(shift)[1]) < 1e-12


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_compiled_hypergradient_equals_the_eager_one_with_a_skipped_step(mode: str) -> None:
    train = unroll(STEPS.train_step, 3)
    state, data = STEPS.init_state(0), batches(3)
    data["x"][1, 0, 0] = torch.nan

    def moved(rate: torch.Tensor, state: Any, data: Any) -> torch.Tensor:
        opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        last, metrics = train(state.replace(opt_state=opt_state), data)
        return last.params["0.weight"].sum() + metrics["loss"][2]

    def gradient(rate: torch.Tensor, state: Any, data: Any) -> Any:
        if mode == "reverse":
            return ftrain.value_and_grad(moved)(rate, state, data)
        one = torch.ones_like(rate)
        return torch.func.jvp(lambda rate: moved(rate, state, data), (rate,), (one,))

    rate = torch.tensor(0.02, dtype=torch.float64)
    expected = gradient(rate, state, data)
    assert expected[1] != 0
    assert torch.isfinite(expected[1])
    found = ftrain.compile(gradient, backend="eager")(rate, state, data)
    assert relative(torch.stack(found), torch.stack(expected)) < 1e-12


@pytest.mark.parametrize("truncate", [1, 2, 5])
def test_truncated_gradient_is_that_of_the_last_steps(truncate: int) -> None:
    k = 4
    state, data = STEPS.init_state(0), batches(k)
    cut = (k - 1) // truncate * truncate

    def final(rate: torch.Tensor, train: Any) -> torch.Tensor:
        opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        return train(state.replace(opt_state=opt_state))[0].params["0.weight"].sum()

    def by_hand(start: Any) -> Any:
        if cut:
            first = unroll(STEPS.train_step, cut)
            start = detach_training(first(start, tree.map(lambda x: x[:cut], data))[0])
        return unroll(STEPS.train_step, k - cut)(start, tree.map(lambda x: x[cut:], data))

    def truncated(start: Any) -> Any:
        return unroll(STEPS.train_step, k, truncate=truncate)(start, data)

    rate = torch.tensor(0.02, dtype=torch.float64)
    found = [ftrain.value_and_grad(final)(rate, train)[1] for train in (truncated, by_hand)]
    assert relative(*found) < 1e-12
    full = ftrain.value_and_grad(final)(rate, lambda s: unroll(STEPS.train_step, k)(s, data))[1]
    assert (relative(found[0], full) > 1e-3) == (truncate < k)


def normalized(norm: Callable[[], nn.Module]) -> tuple[ftrain.Steps, ftrain.TrainState]:
    """Return steps of a model with a normalization, and their initial state."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), norm(), nn.Tanh(), nn.Linear(4, 2)).double()

    steps = ftrain.make_steps(
        model, lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean(), optim.sgd(0.1)
    )
    return steps, steps.init_state(0)


def losses_after(steps: ftrain.Steps, state: ftrain.TrainState, k: int) -> Any:
    """Return the sum of `k` training losses as a function of a factor of the parameters."""
    train = unroll(steps.train_step, k)

    def losses(factor: torch.Tensor) -> torch.Tensor:
        start = state.replace(params=tree.map(lambda p: p * factor, state.params))
        total: torch.Tensor = train(start, batches(k))[1]["loss"].sum()
        return total

    return losses


@pytest.mark.parametrize("k", [2, 5])
def test_unroll_recomputes_steps_of_a_model_with_batch_norm(k: int) -> None:
    steps, state = normalized(lambda: nn.BatchNorm1d(4))
    losses, one = losses_after(steps, state, k), torch.ones(1, dtype=torch.float64)
    _, found = ftrain.value_and_grad(losses)(one)
    assert relative(found, difference(losses, one, 1e-4)) < 1e-8
    train = unroll(steps.train_step, k)
    assert_same_bits(train(state, batches(k))[0].buffers, trained(steps, state, k).buffers)


def trained(steps: ftrain.Steps, state: ftrain.TrainState, k: int) -> ftrain.TrainState:
    for i in range(k):
        state, _ = steps.train_step(state, tree.map(lambda x, i=i: x[i], batches(k)))
    return state


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(4), lambda: nn.LayerNorm(4)])
def test_second_order_gradient_of_a_normalization_is_refused(
    norm: Callable[[], nn.Module],
) -> None:
    """It needs the third derivative of the loss, which torch computes incorrectly (2.13)."""
    losses = losses_after(*normalized(norm), 2)

    def slope(factor: torch.Tensor) -> torch.Tensor:
        return ftrain.value_and_grad(losses)(factor)[1].sum()

    with pytest.raises(ValueError, match=r"third derivative of Native(Batch|Layer)Norm"):
        ftrain.value_and_grad(slope)(torch.ones(1, dtype=torch.float64))


def test_captured_tensor_that_requires_a_gradient_is_refused_in_the_backward_pass() -> None:
    rate = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    steps = steps_of(optim.sgd(rate))
    state, data = steps.init_state(0), batches(2)
    params = tree.map(lambda p: p.clone().requires_grad_(), state.params)
    last, _ = unroll(steps.train_step, 2)(state.replace(params=params), data)
    with pytest.raises(ValueError, match=r"captured tensors that require gradients.*remat=False"):
        torch.autograd.grad(last.params["0.weight"].sum(), params["0.weight"])
    last, _ = unroll(steps.train_step, 2, remat=False)(state.replace(params=params), data)
    (found,) = torch.autograd.grad(last.params["0.weight"].sum(), rate)
    assert found != 0


LIBRARY = torch.library.Library("ftrain_tests_unroll", "DEF")
LIBRARY.define("opaque(Tensor x) -> Tensor")
LIBRARY.impl("opaque", lambda x: torch.from_numpy(x.detach().numpy().copy()), "CPU")


@pytest.mark.parametrize("k", [1, 3])
def test_operator_without_a_derivative_is_refused_in_the_backward_pass(k: int) -> None:
    """Also after the gradients, where no survey of the loss finds it."""

    def reduced(totals: Any, weight: torch.Tensor) -> Any:
        return tree.map(torch.ops.ftrain_tests_unroll.opaque, totals), weight

    steps = steps_of(optim.sgd(0.1), grad_reduce=reduced)
    state, data = steps.init_state(0), batches(k)
    params = tree.map(lambda p: p.clone().requires_grad_(), state.params)
    last, _ = unroll(steps.train_step, k)(state.replace(params=params), data)
    with pytest.raises(ValueError, match=r"unroll: a step depends on an operator .*opaque"):
        torch.autograd.grad(last.params["0.weight"].sum(), params["0.weight"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, r"k: expected an integer of at least 1, got 0"),
        ({"k": 2, "truncate": 0}, r"truncate: expected an integer of at least 1, got 0"),
        ({"k": 2, "detach": detach_training}, r"truncate: expected a number of steps"),
    ],
)
def test_unroll_refuses_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unroll(STEPS.train_step, **options)


def test_unroll_refuses_batches_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"leading axis of length k = 3, got shape \(2, 5\)"):
        unroll(STEPS.train_step, 3)(STEPS.init_state(0), batches(2))
