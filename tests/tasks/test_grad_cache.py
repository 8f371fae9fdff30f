"""Test `grad_cache`: gradients of the whole batch, equal draws in both passes, laws."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, testing
from ftrain.loop.callbacks import monitored_steps
from ftrain.tasks import functional, grad_cache
from ftrain.testing import assert_close_norm, assert_same_bits
from ftrain.testing.compare import relative_distance
from ftrain.testing.laws.every import LAWS
from tests.campaign import long
from tests.tasks import towers
from tests.tasks.towers import (
    ENCODERS,
    LIMIT,
    Towers,
    assert_equal,
    cached,
    of_embeddings,
    one_graph,
    results,
)

CAMPAIGN = os.environ.get("FTRAIN_CAMPAIGN") == "1"
#: 10 s and more; that `accumulate` keeps the loss does not hold, and is tested as a warning.
SLOW = ("accumulation", "donation", "exception_safety", "resume")
dtypes = st.sampled_from(sorted(LIMIT, key=str))


@given(
    rows=st.integers(2, 9),
    size=st.integers(1, 12),
    negatives=st.integers(0, 3),
    shared=st.booleans(),
    dtype=dtypes,
)
def test_grad_cache_gradients_equal_those_of_the_whole_batch(
    rows: int, size: int, negatives: int, shared: bool, dtype: torch.dtype
) -> None:
    model = functools.partial(Towers, shared=shared, dtype=dtype)
    batch = towers.batch(rows, negatives, dtype)
    found, expected = results(model, batch, cached(size), towers.whole)
    assert_equal(found, expected, LIMIT[dtype])


@given(
    rows=st.integers(2, 9),
    sizes=st.tuples(st.integers(2, 10), st.integers(2, 10)),
    shared=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]),
    dtype=dtypes,
)
def test_grad_cache_gradients_with_dropout_and_batch_norm_equal_those_of_all_chunks_in_one_graph(
    rows: int, sizes: tuple[int, int], shared: bool, dropout: float, dtype: torch.dtype
) -> None:
    while any(rows % size == 1 for size in sizes):  # a BatchNorm refuses one row
        rows += 1
    model = functools.partial(Towers, shared=shared, norm=True, dropout=dropout, dtype=dtype)
    batch = towers.batch(rows, 0, dtype)
    loss_fn = cached(dict(zip(ENCODERS, sizes, strict=True)))
    found, expected = results(model, batch, loss_fn, one_graph(loss_fn))
    assert_equal(found, expected, LIMIT[dtype])
    assert_same_bits(found.buffers, expected.buffers)  # running statistics: updated once a chunk
    assert_same_bits(found.rng, expected.rng)


@given(rows=st.sampled_from([2, 4, 6, 7, 9]), size=st.sampled_from([2, 4, 5]), dtype=dtypes)
def test_batch_norm_in_grad_cache_has_the_statistics_of_each_chunk(
    rows: int, size: int, dtype: torch.dtype
) -> None:
    """The reference is an independent loss, which calls the towers with one chunk after the other."""
    rows += rows % size == 1
    model = functools.partial(Towers, norm=True, dtype=dtype)
    found, expected = results(
        model, towers.batch(rows, 0, dtype), cached(size), towers.in_chunks(size)
    )
    assert_equal(found, expected, LIMIT[dtype])
    assert_same_bits(found.buffers, expected.buffers)
    counts = {n: int(x) for n, x in found.buffers.items() if n.endswith("num_batches_tracked")}
    assert set(counts.values()) == {-(-rows // size)}


@functools.cache
def with_dropout() -> Any:
    model = functools.partial(Towers, norm=True, dropout=0.3)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-2))
    return ftrain.make_steps(model, cached(3), optimizer)


@pytest.mark.parametrize("law", [law for law in LAWS if CAMPAIGN or law not in SLOW])
def test_grad_cache_step_obeys_each_law(law: str) -> None:
    """The law on gradients compares with finite differences of the loss in one graph."""
    batches = [towers.batch(8, seed=seed) for seed in range(2)]
    reports = testing.check_all(
        with_dropout(), batches, skip=[other for other in LAWS if other != law]
    )
    assert reports.passed


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_grad_cache_gradients_in_low_precision_are_as_accurate_as_those_of_an_uncached_step(
    precision: Any,
) -> None:
    """Both round each product; the sum over chunks is in float32."""
    model = functools.partial(Towers, norm=True, dropout=0.3, dtype=torch.float32)
    batch, loss_fn = towers.batch(8, 0, torch.float32), cached(3)
    (exact,) = results(model, batch, loss_fn)
    found, graph = results(model, batch, loss_fn, one_graph(loss_fn), precision=precision)
    distance = relative_distance
    assert distance(found.grads, exact.grads) < 1.5 * distance(graph.grads, exact.grads) + 1e-3
    assert {g.dtype for g in found.grads.values()} == {g.dtype for g in graph.grads.values()}
    assert bool(found.finite)


def test_loss_scale_that_overflows_skips_the_grad_cache_step() -> None:
    model = functools.partial(Towers, dtype=torch.float32)
    steps = ftrain.make_steps(model, cached(3), optim.sgd(0.1), precision="16-mixed")
    state = steps.init_state(0)
    scaler = state.scaler._replace(scale=torch.tensor(2.0**24))
    batch = towers.batch(8, 0, torch.float32)
    batch["query"] *= 1e4
    after, metrics = steps.train_step(state.replace(scaler=scaler), batch)
    assert int(metrics["skipped"]) == 1
    assert_same_bits(after.params, state.params)
    assert float(after.scaler.scale) == 2.0**23


@pytest.mark.inductor
@long
def test_donated_grad_cache_step_compiled_by_inductor_equals_eager() -> None:
    model = functools.partial(Towers, norm=True, dropout=0.3)
    steps = ftrain.make_steps(model, cached(3), optim.sgd(0.1))
    batch = towers.batch(8)
    expected, _ = steps.train_step(steps.init_state(0), batch)
    found, _ = ftrain.compile(steps.train_step, donate=True)(steps.init_state(0), batch)
    assert_close_norm(found.params, expected.params, 1e-12)
    assert_close_norm(found.buffers, expected.buffers, 1e-12)


def test_grad_cache_trace_calls_an_encoder_equally_often_for_any_number_of_chunks() -> None:
    """The time to compile does not grow with the batch."""
    calls = 0

    def encode(model: Any, x: Any) -> Any:
        nonlocal calls
        calls += 1
        return model.query(x)

    loss_fn = cached(2, encoders={"query": encode, "document": "document"})
    steps = ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1))
    state, counts = steps.init_state(0), []
    for rows in (4, 32):
        calls = 0
        ftrain.compile(steps.train_step, backend="eager")(state, towers.batch(rows))
        counts.append(calls)
    assert counts[0] == counts[1] > 0


class Rows(NamedTuple):
    ids: Tensor
    mask: Tensor


class Bags(nn.Module):
    """Means of token embeddings under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)

    def encode(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        mean = (self.tokens(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"mean": mean, "length": mask.sum(1)}  # the length is an integer


def test_grad_cache_encoders_take_trees_and_return_trees_with_integers() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        one, two = embeddings[0], embeddings[1]
        weights = (one["length"] * two["length"]).double()
        scores = one["mean"] @ two["mean"].T
        return ftrain.Mean(-(scores.log_softmax(1).diagonal() * weights).sum(), weights.sum())

    def plain(model: Any, batch: Any) -> Any:
        both = [model.encode(**x._asdict()) for x in batch]
        return loss(model, dict(enumerate(both)), batch)

    draws = torch.Generator().manual_seed(0)
    batch = tuple(
        Rows(torch.randint(0, 9, (7, 5), generator=draws), torch.arange(35).view(7, 5) % 3 > 0)
        for _ in range(2)
    )
    loss_fn = grad_cache({0: "encode", 1: "encode"}, loss, chunk_size=3)
    found, expected = results(lambda: Bags().double(), batch, loss_fn, plain)
    assert_equal(found, expected, 1e-12)


def test_grad_cache_with_a_single_encoder_passes_it_entries_of_the_batch() -> None:
    def encode(model: Any, rows: Any) -> Any:
        assert rows["name"] == "pairs"
        return model(rows["query"], rows["document"] * rows["factor"])

    def loss(model: Any, pair: Any, batch: Any) -> Any:
        return of_embeddings(model, dict(zip(("query", "document"), pair, strict=True)), batch)

    def plain(model: Any, batch: Any) -> Any:
        return loss(model, encode(model, batch), batch)

    batch = {**towers.batch(7), "factor": torch.tensor(2.0), "name": "pairs"}
    found, expected = results(Towers, batch, grad_cache(encode, loss, chunk_size=2), plain)
    assert_equal(found, expected, 1e-12)


def test_supervised_contrastive_loss_reads_labels_of_the_batch() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        return functional.supervised_contrastive(embeddings["query"], batch["labels"])

    def plain(model: Any, batch: Any) -> Any:
        return loss(model, {"query": model.query(batch["query"])}, batch)

    batch = {**towers.batch(8), "labels": torch.arange(8) % 3}
    loss_fn = grad_cache({"query": "query"}, loss, chunk_size=3)
    found, expected = results(Towers, batch, loss_fn, plain)
    assert_equal(found, expected, 1e-12)


def test_grad_cache_keys_and_draws_equal_those_of_an_uncached_step() -> None:
    def encode(model: Any, x: Any, key: Tensor) -> Any:
        return model.query(x + ftrain.random.normal(key, x.shape))

    def loss(model: Any, embeddings: Any, batch: Any, key: Tensor) -> Any:
        noise = torch.rand(()) + ftrain.random.uniform(key, ())
        return noise * of_embeddings(model, embeddings, batch).value

    loss_fn = cached(3, loss, {"query": encode, "document": "document"})
    found, expected = results(
        functools.partial(Towers, dropout=0.2), towers.batch(8), loss_fn, one_graph(loss_fn)
    )
    assert_equal(found, expected, 1e-12)


class Power(nn.Module):
    """Linear layer whose output depends on a buffer that each call updates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4))
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.double()

    def query(self, x: Tensor) -> Any:
        return self.layer(x)


def test_second_pass_of_a_grad_cache_chunk_starts_from_the_buffers_of_the_first() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        return of_embeddings(model, {**embeddings, "document": batch["document"][:, :4]}, batch)

    loss_fn = grad_cache({"query": "query"}, loss, chunk_size=3)
    found, expected = results(Power, towers.batch(8), loss_fn, one_graph(loss_fn))
    assert_equal(found, expected, 1e-12)
    assert_same_bits(found.buffers, expected.buffers)


def test_frozen_encoder_of_grad_cache_keeps_its_weights() -> None:
    def model() -> nn.Module:
        made = Towers()
        made.document.requires_grad_(False)
        return made

    found, expected = results(model, towers.batch(8), cached(3), towers.whole)
    assert_equal(found, expected, 1e-12)


def test_grad_cache_of_a_checkpointed_encoder_with_dropout_equals_the_plain_one() -> None:
    def encode(model: Any, x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(model.query, x, use_reentrant=False)

    encoders = {"query": encode, "document": "document"}
    model = functools.partial(Towers, norm=True, dropout=0.3)
    found, expected = results(model, towers.batch(8), cached(3, encoders=encoders), cached(3))
    assert_equal(found, expected, 1e-12)
    assert_same_bits(found.buffers, expected.buffers)


def test_grad_cache_of_an_encoder_that_differentiates_its_inputs_equals_an_uncached_step() -> None:
    def encode(model: Any, x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.query(x).square().sum(), x, create_graph=True)
        return slope[:, :4]

    def plain(model: Any, batch: Any) -> Any:
        both = {
            "query": encode(model, batch["query"]),
            "document": model.document(batch["document"]),
        }
        return of_embeddings(model, both, batch)

    encoders = {"query": encode, "document": "document"}
    found, expected = results(Towers, towers.batch(7), cached(3, encoders=encoders), plain)
    assert_equal(found, expected, 1e-12)


def test_grad_cache_called_with_a_module_returns_the_loss_of_the_whole_batch() -> None:
    model, batch = Towers(), towers.batch(7)
    assert cached(3)(model, batch).value.item() == pytest.approx(
        towers.whole(model, batch).value.item(), rel=1e-12
    )
    assert cached(3)(model.eval(), batch).value.requires_grad


def test_nan_in_one_row_skips_the_grad_cache_step() -> None:
    steps = with_dropout()
    state, batch = steps.init_state(0), towers.batch(8)
    batch["document"][7, 0] = torch.nan
    after, metrics = steps.train_step(state, batch)
    assert int(metrics["skipped"]) == 1
    assert_same_bits((after.params, after.buffers), (state.params, state.buffers))


def test_gradient_norms_and_value_fn_of_grad_cache_equal_those_of_an_uncached_step() -> None:
    loss_fn, batch = cached(3), towers.batch(8)
    model = functools.partial(Towers, dropout=0.2)
    made = [monitored_steps(model, fn, optim.sgd(0.1)) for fn in (loss_fn, one_graph(loss_fn))]
    state = made[0].init_state(0)
    (_, found), (_, expected) = (steps.train_step(state, batch) for steps in made)
    assert found.keys() == expected.keys()
    assert {"grad_norm/query.0", "grad_norm/document.3"} <= set(found)
    for name in found:
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-12)
    closures = made[0].train_step.gradients.closures(state, batch)
    assert closures["value_fn"](state.params).item() == pytest.approx(found["loss"].item())


def test_grad_cache_evaluation_encodes_in_chunks_without_dropout() -> None:
    model = functools.partial(Towers, norm=True, dropout=0.5)
    steps = ftrain.make_steps(model, cached(3), optim.sgd(0.1), eval_fn=None)
    plain = ftrain.make_steps(model, towers.whole, optim.sgd(0.1))
    state, batch = steps.init_state(0), towers.batch(8)
    found = steps.eval_step(state, batch)["loss"]
    assert found.item() == pytest.approx(plain.eval_step(state, batch)["loss"].item(), rel=1e-12)


def grew(size: int, loss_fn: Any, rows: tuple[int, int]) -> float:
    """Return the peak memory of a step with many rows, over that with few."""

    def model() -> nn.Module:
        made = Towers(dtype=torch.float32)
        made.query = made.document = nn.Sequential(
            nn.Linear(5, 2048), *(nn.GELU() for _ in range(8)), nn.Linear(2048, 4)
        )
        return made

    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    state, peaks = steps.init_state(0), []
    for n in rows:
        batch = towers.batch(n, 0, torch.float32)
        steps.train_step(state, batch)
        with testing.assert_peak_memory(None) as memory:
            steps.train_step(state, batch)
        assert memory.peak is not None
        peaks.append(memory.peak)
    return peaks[1] / peaks[0]


def test_peak_memory_of_grad_cache_is_nearly_constant_in_the_batch_size() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        one, two = embeddings["query"], embeddings["document"]
        return functional.info_nce(one, two, chunk_size=64)

    assert grew(64, cached(64, loss), (64, 1024)) < 1.1  # 1.0X
    assert grew(64, towers.whole, (64, 1024)) > 4
