"""Gradients of each example equal those of a loop; noise scale and influence are built on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import Mean, optim, random, transforms, tree
from tests.compile.cases import same_bytes

generator = torch.Generator().manual_seed(0)
BATCH = {
    "x": torch.randn(6, 5, generator=generator),
    "y": torch.tensor([0, 1, 2, 2, 1, 0]),
    "temperature": torch.tensor(2.0),
}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding((x > 0).long())
        return self.out(self.attention(tokens, tokens, tokens)[0].mean(1))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Conv1d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"]) / batch["temperature"], batch["y"])


def weighted(model: nn.Module, batch: Any) -> Mean:
    weight = batch["y"].float()
    loss = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return Mean((loss * weight).sum(), weight.sum())


def penalized(model: nn.Module, batch: Any) -> Any:
    value, slope = ftrain.value_and_grad(lambda x: model(x).square().mean())(batch["x"])
    return value + slope.square().sum(), {"value": value}


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (mlp, cross_entropy),
    "dropout": (dropout_mlp, cross_entropy),
    "attention": (Tokens, cross_entropy),
    "convolution": (convolution, cross_entropy),
    "weighted": (mlp, weighted),
    "gradient penalty": (mlp, penalized),
}


def state_of(model: Callable[[], nn.Module], loss_fn: Any) -> ftrain.TrainState:
    return ftrain.make_steps(model, loss_fn, optim.sgd(0.1)).init_state(0)


def looped(model: Any, loss_fn: Any, state: Any, precision: Any = "32-true") -> Any:
    """Return the gradients of each example, one call after the other."""
    grads_of = ftrain.gradients(ftrain.bind(model), loss_fn, precision=precision)
    rows = []
    for i in range(6):
        own = tree.map(lambda t, i=i: t[i : i + 1] if t.ndim else t, BATCH)
        rows.append(grads_of(state.replace(rng=random.fold_in(state.rng, i)), own).grads)
    return tree.map(lambda *row: torch.stack(row), *rows)


def close(ours: Any, theirs: Any, bound: float = 2e-6) -> None:
    for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert float((a - b).norm()) <= bound * float(b.norm()) + 1e-8


@pytest.mark.parametrize("case", CASES)
def test_per_sample_gradients_equal_a_loop(case: str) -> None:
    model, loss_fn = CASES[case]
    state = state_of(model, loss_fn)
    ours = transforms.per_sample_grads(model, loss_fn)(state, BATCH)
    close(ours, looped(model, loss_fn, state))


@pytest.mark.parametrize("case", CASES)
def test_per_sample_gradients_compile_as_one_graph(case: str) -> None:
    model, loss_fn = CASES[case]
    state, grads_of = state_of(model, loss_fn), transforms.per_sample_grads(model, loss_fn)
    compiled = ftrain.compile(grads_of, backend="eager")
    close(compiled(state, BATCH), grads_of(state, BATCH), bound=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_per_sample_gradients_in_mixed_precision_equal_a_loop(precision: Any) -> None:
    steps = ftrain.make_steps(mlp, cross_entropy, optim.sgd(0.1), precision=precision)
    state = steps.init_state(0)
    ours = transforms.per_sample_grads(mlp, cross_entropy, precision=precision)(state, BATCH)
    close(ours, looped(mlp, cross_entropy, state, precision), bound=2e-2)


def test_mean_of_per_sample_gradients_is_the_gradient_of_the_batch() -> None:
    state = state_of(mlp, cross_entropy)
    ours = transforms.per_sample_grads(mlp, cross_entropy)(state, BATCH)
    whole = ftrain.gradients(ftrain.bind(mlp), cross_entropy)(state, BATCH).grads
    close(tree.map(lambda g: g.mean(0), ours), whole)


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 9])
def test_chunks_of_examples_draw_the_random_numbers_of_the_whole_batch(chunk_size: int) -> None:
    state = state_of(dropout_mlp, cross_entropy)
    ours = transforms.per_sample_grads(dropout_mlp, cross_entropy, chunk_size=chunk_size)
    whole = transforms.per_sample_grads(dropout_mlp, cross_entropy)
    close(ours(state, BATCH), whole(state, BATCH))


def test_examples_have_dropout_masks_of_their_own() -> None:
    state = state_of(dropout_mlp, cross_entropy)
    same = {**BATCH, "x": BATCH["x"][:1].expand(6, 5), "y": BATCH["y"][:1].expand(6)}
    grads = transforms.per_sample_grads(dropout_mlp, cross_entropy)(state, same)
    assert not same_bytes(grads["0.weight"][0], grads["0.weight"][1])


class Counter(nn.Module):
    """Module that counts its calls, and with `of_input` keeps a running mean of its input."""

    count: Tensor

    def __init__(self, of_input: bool) -> None:
        super().__init__()
        self.linear, self.of_input = nn.Linear(5, 3), of_input
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + (x.detach().mean() if self.of_input else 1.0)
        return self.linear(x)


def test_models_whose_examples_depend_on_each_other_are_refused() -> None:
    def normalized() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))

    with pytest.raises(ValueError, match=r"statistics over the batch in 1, so that"):
        transforms.per_sample_grads(normalized, cross_entropy)
    state = state_of(lambda: Counter(True), cross_entropy)
    grads_of = transforms.per_sample_grads(lambda: Counter(True), cross_entropy)
    with pytest.raises(ValueError, match="buffers that do not depend on the example"):
        grads_of(state, BATCH)


def test_models_with_frozen_batch_norm_have_per_sample_gradients() -> None:
    def frozen() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3).eval())

    state = state_of(frozen, cross_entropy)
    close(
        transforms.per_sample_grads(frozen, cross_entropy)(state, BATCH),
        looped(frozen, cross_entropy, state),
    )


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({**BATCH, "y": BATCH["y"][:4]}, r"batch\['y'\] with 4"),
        ({"x": torch.tensor(1.0)}, "got none"),
        ({"x": torch.zeros(0, 5)}, "with 0"),
    ],
)
def test_batches_with_no_or_unequal_numbers_of_examples_are_refused(
    batch: Any, message: str
) -> None:
    state = state_of(mlp, cross_entropy)
    with pytest.raises(ValueError, match=message):
        transforms.per_sample_grads(mlp, cross_entropy)(state, batch)


def test_chunk_sizes_below_1_are_refused() -> None:
    state = state_of(mlp, cross_entropy)
    with pytest.raises(ValueError, match="chunk_size: expected at least 1"):
        transforms.per_sample_grads(mlp, cross_entropy, chunk_size=0)(state, BATCH)


# -- noise scale ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0.1, 10))
def test_gradient_noise_equals_the_trace_of_the_covariance(
    seed: int, count: int, factor: float
) -> None:
    draw = random.normal(random.key(seed), (count, 7), torch.float64)
    grads = {"a": draw[:, :4].reshape(count, 2, 2), "b": draw[:, 4:]}
    trace, squared_norm = transforms.gradient_noise_scale(grads)
    torch.testing.assert_close(trace, torch.cov(draw.T).trace())
    torch.testing.assert_close(squared_norm, draw.mean(0).square().sum() - trace / count)
    scaled = transforms.gradient_noise_scale(tree.map(lambda g: factor * g, grads))
    torch.testing.assert_close(scaled.trace, factor**2 * trace)
    torch.testing.assert_close(scaled.noise_scale, trace / squared_norm)


def test_gradient_noise_is_unbiased() -> None:
    """Mean over 20,000 batches of 4; 5 standard errors."""
    draws = random.normal(random.key(0), (20_000, 4, 3), torch.float64) * 2 + 0.5
    trace, squared_norm = torch.vmap(transforms.gradient_noise_scale)(draws)
    for found, expected in ((trace, 12.0), (squared_norm, 0.75)):
        assert abs(float(found.mean()) - expected) < 5 * float(found.std()) / 20_000**0.5


def test_gradient_noise_of_one_example_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        transforms.gradient_noise_scale({"w": torch.zeros(1, 3)})


# -- influence --------------------------------------------------------------------------------------


def flat_rows(grads: Any) -> Tensor:
    return torch.cat([g.flatten(1) for g in tree.leaves(grads)], 1)


def test_tracin_sums_inner_products_of_gradients_over_checkpoints() -> None:
    steps = ftrain.make_steps(mlp, cross_entropy, optim.sgd(0.1))
    states = [steps.init_state(0), steps.train_step(steps.init_state(0), BATCH)[0]]
    ours = transforms.tracin(mlp, cross_entropy, chunk_size=4)(states, [0.1, 0.2], BATCH, BATCH)
    expected = torch.zeros(6, 6)
    for state, rate in zip(states, (0.1, 0.2), strict=True):
        rows = flat_rows(looped(mlp, cross_entropy, state))
        expected += rate * rows @ rows.T
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_tracin_predicts_the_change_of_a_loss_after_a_small_step() -> None:
    state = tree.map(
        lambda t: t.double() if t.is_floating_point() else t, state_of(mlp, cross_entropy)
    )
    batch = tree.map(lambda t: t.double() if t.is_floating_point() else t, BATCH)
    rate = 1e-6
    influence = transforms.tracin(mlp, cross_entropy)([state], [rate], batch, batch)
    grads = transforms.per_sample_grads(mlp, cross_entropy)(state, batch)
    after = state.replace(params=tree.map(lambda p, g: p - rate * g[2], state.params, grads))
    for j in range(6):
        own = tree.map(lambda t, j=j: t[j : j + 1] if t.ndim else t, batch)
        loss = lambda s: ftrain.gradients(ftrain.bind(mlp), cross_entropy)(s, own).metrics["loss"]  # noqa: E731, B023
        torch.testing.assert_close(
            influence[2, j], loss(state) - loss(after), rtol=1e-3, atol=1e-12
        )


def test_tracin_refuses_different_numbers_of_states_and_learning_rates() -> None:
    influence = transforms.tracin(mlp, cross_entropy)
    with pytest.raises(ValueError, match="got 0 states and 1 learning rates"):
        influence([], [0.1], BATCH, BATCH)
