"""GradCache: gradients of the whole batch, equal draws in both passes, laws, and refusals."""

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
from ftrain import optim, tasks, testing
from ftrain.loop.callbacks import monitored_steps
from ftrain.tasks import functional, grad_cache
from ftrain.tasks._nonfinite_modules import watching_outputs
from ftrain.testing import assert_close_norm, assert_same_bits
from ftrain.testing.compare import relative_distance
from ftrain.testing.laws.every import LAWS
from tests.config.test_build import built
from tests.tasks import towers
from tests.tasks.towers import Towers, of_embeddings

LIMIT = {torch.float64: 1e-12, torch.float32: 4e-6}
ENCODERS = {"query": "query", "document": "document"}
CAMPAIGN = os.environ.get("FTRAIN_CAMPAIGN") == "1"
#: 10 s and more; that `accumulate` keeps the loss does not hold, and is tested as a warning.
SLOW = ("accumulation", "donation", "exception_safety", "resume")
dtypes = st.sampled_from(sorted(LIMIT, key=str))


def cached(size: Any, loss: Any = of_embeddings, encoders: Any = None) -> Any:
    return grad_cache(encoders or ENCODERS, loss, chunk_size=size)


def one_graph(loss_fn: Any) -> Any:
    """Return the loss as a plain function, which a step differentiates in one graph."""
    return lambda model, batch: loss_fn(model, batch)


def results(model: Any, batch: Any, *losses: Any, **options: Any) -> list[Any]:
    """Return the gradients and by-products of each loss at the same state."""
    made = [ftrain.make_steps(model, fn, optim.sgd(0.1), **options) for fn in losses]
    state = made[0].init_state(3)
    return [steps.train_step.gradients(state, batch) for steps in made]


def assert_equal(found: Any, expected: Any, limit: float) -> None:
    assert_close_norm(found.grads, expected.grads, limit)
    assert found.grads.keys() == expected.grads.keys()
    loss = expected.metrics["loss"].item()
    assert found.metrics["loss"].item() == pytest.approx(loss, rel=limit)


@given(
    rows=st.integers(2, 9),
    size=st.integers(1, 12),
    negatives=st.integers(0, 3),
    shared=st.booleans(),
    dtype=dtypes,
)
def test_gradients_equal_those_of_the_whole_batch(
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
def test_gradients_with_dropout_and_batch_norm_equal_those_of_all_chunks_in_one_graph(
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
def test_batch_norm_has_the_statistics_of_each_chunk(
    rows: int, size: int, dtype: torch.dtype
) -> None:
    """An independent loss, whose towers are called with one chunk after the other."""
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
def test_step_obeys_the_law(law: str) -> None:
    """The law on gradients compares with finite differences of the loss in one graph."""
    batches = [towers.batch(8, seed=seed) for seed in range(2)]
    reports = testing.check_all(
        with_dropout(), batches, skip=[other for other in LAWS if other != law]
    )
    assert reports.passed


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_gradients_in_every_precision_are_as_close_as_those_of_one_graph(precision: Any) -> None:
    """Both round each product; the sum over chunks is in float32."""
    model = functools.partial(Towers, norm=True, dropout=0.3, dtype=torch.float32)
    batch, loss_fn = towers.batch(8, 0, torch.float32), cached(3)
    (exact,) = results(model, batch, loss_fn)
    found, graph = results(model, batch, loss_fn, one_graph(loss_fn), precision=precision)
    distance = relative_distance
    assert distance(found.grads, exact.grads) < 1.5 * distance(graph.grads, exact.grads) + 1e-3
    assert {g.dtype for g in found.grads.values()} == {g.dtype for g in graph.grads.values()}
    assert bool(found.finite)


def test_loss_scale_that_overflows_skips_the_step() -> None:
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
def test_machine_code_of_a_donated_step_equals_eager() -> None:
    model = functools.partial(Towers, norm=True, dropout=0.3)
    steps = ftrain.make_steps(model, cached(3), optim.sgd(0.1))
    batch = towers.batch(8)
    expected, _ = steps.train_step(steps.init_state(0), batch)
    found, _ = ftrain.compile(steps.train_step, donate=True)(steps.init_state(0), batch)
    assert_close_norm(found.params, expected.params, 1e-12)
    assert_close_norm(found.buffers, expected.buffers, 1e-12)


def test_trace_calls_an_encoder_equally_often_for_any_number_of_chunks() -> None:
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


def test_encoders_take_trees_and_return_trees_with_integers() -> None:
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


def test_one_encoder_takes_rows_of_the_whole_batch() -> None:
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


def test_keys_and_draws_of_encoders_and_loss_equal_those_of_one_graph() -> None:
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


def test_second_pass_of_a_chunk_starts_from_the_buffers_of_the_first() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        return of_embeddings(model, {**embeddings, "document": batch["document"][:, :4]}, batch)

    loss_fn = grad_cache({"query": "query"}, loss, chunk_size=3)
    found, expected = results(Power, towers.batch(8), loss_fn, one_graph(loss_fn))
    assert_equal(found, expected, 1e-12)
    assert_same_bits(found.buffers, expected.buffers)


def test_frozen_tower_keeps_its_weights() -> None:
    def model() -> nn.Module:
        made = Towers()
        made.document.requires_grad_(False)
        return made

    found, expected = results(model, towers.batch(8), cached(3), towers.whole)
    assert_equal(found, expected, 1e-12)


def test_encoder_with_activation_checkpointing_and_dropout() -> None:
    def encode(model: Any, x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(model.query, x, use_reentrant=False)

    encoders = {"query": encode, "document": "document"}
    model = functools.partial(Towers, norm=True, dropout=0.3)
    found, expected = results(model, towers.batch(8), cached(3, encoders=encoders), cached(3))
    assert_equal(found, expected, 1e-12)
    assert_same_bits(found.buffers, expected.buffers)


def test_encoder_that_differentiates_by_its_inputs() -> None:
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


def test_call_with_a_module_has_the_loss_of_the_whole_batch() -> None:
    model, batch = Towers(), towers.batch(7)
    assert cached(3)(model, batch).value.item() == pytest.approx(
        towers.whole(model, batch).value.item(), rel=1e-12
    )
    assert cached(3)(model.eval(), batch).value.requires_grad


def test_nan_in_one_row_skips_the_step() -> None:
    steps = with_dropout()
    state, batch = steps.init_state(0), towers.batch(8)
    batch["document"][7, 0] = torch.nan
    after, metrics = steps.train_step(state, batch)
    assert int(metrics["skipped"]) == 1
    assert_same_bits((after.params, after.buffers), (state.params, state.buffers))


def test_monitored_norms_and_closures_are_those_of_one_graph() -> None:
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


def test_evaluation_encodes_in_chunks_without_dropout() -> None:
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


def test_peak_memory_is_nearly_constant_in_the_batch() -> None:
    def loss(model: Any, embeddings: Any, batch: Any) -> Any:
        one, two = embeddings["query"], embeddings["document"]
        return functional.info_nce(one, two, chunk_size=64)

    assert grew(64, cached(64, loss), (64, 1024)) < 1.1  # 1.0X
    assert grew(64, towers.whole, (64, 1024)) > 4


REFUSED: dict[str, Any] = {
    "rows differ": (
        lambda: (
            cached(3),
            {**towers.batch(8), "query": {"a": torch.ones(3, 1), "b": torch.ones(4)}},
        ),
        ValueError,
        r"batch\['query'\]\['b'\]: expected 3 rows as in batch\['query'\]\['a'\], got",
    ),
    "no rows": (
        lambda: (cached(3), {**towers.batch(8), "query": torch.ones(0, 5)}),
        ValueError,
        r"batch\['query'\]: expected rows, got",
    ),
    "nothing to cut": (
        lambda: (cached(3), {**towers.batch(8), "query": torch.tensor(1.0)}),
        ValueError,
        r"batch\['query'\]: expected a tensor with a first axis",
    ),
    "a list of strings": (
        lambda: (cached(3), {**towers.batch(8), "query": {"x": torch.ones(2), "y": ["a", "b"]}}),
        TypeError,
        r"only tensors can be cut",
    ),
    "no entry": (
        lambda: (cached(3), {"query": torch.ones(8, 5)}),
        KeyError,
        r"expected an entry 'document' for the encoder of that name, got \['query'\]",
    ),
    "no submodule": (
        lambda: (cached(3, encoders={"query": "queries"}), towers.batch(8)),
        ValueError,
        r"got 'queries'; its submodules are query, document",
    ),
    "embeddings without rows": (
        lambda: (cached(3, encoders={"query": lambda m, x: m.query(x).mean(0)}), towers.batch(8)),
        ValueError,
        r"expected one entry for each of 3 rows, got",
    ),
    "an embedding that is no tensor": (
        lambda: (cached(3, encoders={"query": lambda m, x: {"a": 1.0}}), towers.batch(8)),
        TypeError,
        r"expected a real tensor, got",
    ),
    "nothing to train": (
        lambda: (
            cached(3, encoders={name: detached(name) for name in ENCODERS}),
            towers.batch(8),
        ),
        ValueError,
        r"expected an encoder that depends on trainable parameters, got none",
    ),
}


def detached(name: str) -> Any:
    return lambda model, x: getattr(model, name)(x).detach()


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_has_one_clear_error(name: str) -> None:
    make, error, message = REFUSED[name]
    loss_fn, batch = make()
    steps = ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1))
    with pytest.raises(error, match=message):
        steps.train_step(steps.init_state(0), batch)


@pytest.mark.parametrize(
    ("encode", "size", "error", "message"),
    [
        ({}, 3, ValueError, "got an empty mapping"),
        ({"a": 3}, 3, TypeError, r"encode\['a'\]: expected a function"),
        (3, 3, TypeError, "encode: expected a function"),
        (lambda model, x, extras: x, 3, TypeError, "expected no parameter extras"),
        (ENCODERS, 0, ValueError, "whole number of at least 1, got 0"),
        (ENCODERS, 2.5, ValueError, "whole number of at least 1, got 2.5"),
        (ENCODERS, {"query": 3}, ValueError, r"each of the encoders \['query', 'document'\]"),
    ],
)
def test_bad_arguments_are_refused(encode: Any, size: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        grad_cache(encode, of_embeddings, chunk_size=size)


def test_captured_parameter_is_refused() -> None:
    other = nn.Linear(4, 4).double()
    encoders = {"query": lambda m, x: other(m.query(x)), "document": "document"}
    steps = ftrain.make_steps(Towers, cached(3, encoders=encoders), optim.sgd(0.1))
    with pytest.raises(ValueError, match="requires a gradient and is not in the state"):
        steps.train_step(steps.init_state(0), towers.batch(8))


def test_captured_parameter_of_the_second_of_two_functions_with_one_name_is_refused() -> None:
    other = nn.Linear(5, 3)

    def encoder(weight: Any) -> Any:
        return lambda model, inputs: inputs @ (model.project.weight if weight is None else weight).T

    batch = {"query": torch.ones(4, 5), "document": torch.ones(4, 5)}
    encoders = {"query": encoder(None), "document": encoder(other.weight)}
    model = nn.Sequential()
    model.add_module("project", nn.Linear(5, 3))
    loss_fn = grad_cache(
        encoders, lambda model, z, batch: z["query"].mean() + z["document"].mean(), chunk_size=2
    )
    _, step, _ = steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match="requires a gradient and is not in the state"):
        step(steps.init_state(0), batch)


MICRO = "micro-batches change .*ftrain.tasks.grad_cache"


@pytest.mark.parametrize(
    "loss_fn",
    [
        tasks.info_nce,
        functools.partial(tasks.info_nce, temperature=0.1),
        tasks.supervised_contrastive,
        cached(3),
        tasks.compares_rows(lambda model, batch: towers.whole(model, batch)),
        tasks.compares_rows(functools.partial(lambda *args, k: towers.whole(*args), k=1)),
        watching_outputs(tasks.compares_rows(functools.partial(towers.whole))),
    ],
)
def test_accumulation_of_a_loss_that_compares_rows_warns_once(loss_fn: Any) -> None:
    with pytest.warns(UserWarning, match=MICRO) as warned:
        ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1), accumulate=2)
    assert len(warned) == 1


def test_micro_batches_of_a_loss_that_compares_rows_warn_once() -> None:
    loss_fn = tasks.compares_rows(lambda model, batch: towers.whole(model, batch))
    steps = ftrain.make_steps(Towers, loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    parts = ftrain.MicroBatches((towers.batch(4), towers.batch(4, seed=1)))
    with pytest.warns(UserWarning, match=MICRO) as warned:
        state, _ = ftrain.scan(lambda s, _: steps.train_step(s, parts), state, length=2)
    assert len(warned) == 1


def test_accumulation_of_other_losses_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    ftrain.make_steps(Towers, tasks.triplet, optim.sgd(0.1), accumulate=2)
    ftrain.make_steps(Towers, cached(3), optim.sgd(0.1))
    assert not recwarn.list


@given(
    rows=st.integers(1, 9),
    negatives=st.integers(0, 3),
    size=st.integers(1, 12),
    symmetric=st.booleans(),
    normalize=st.booleans(),
    seed=st.integers(0, 5),
)
def test_info_nce_in_chunks_has_the_values_and_gradients_of_all_scores(
    rows: int, negatives: int, size: int, symmetric: bool, normalize: bool, seed: int
) -> None:
    data = towers.batch(rows, negatives, seed=seed)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.8
    mask[0] = True

    def loss(x: Any, chunk_size: int) -> Tensor:
        found = functional.info_nce(
            x["query"], x["document"], temperature=x["heat"], symmetric=symmetric,
            normalize=normalize, mask=mask, chunk_size=chunk_size,
        )  # fmt: skip
        return found.value

    x = {**data, "heat": torch.tensor(0.5, dtype=torch.float64)}
    value, grads = ftrain.value_and_grad(loss)(x, size)
    expected, others = ftrain.value_and_grad(loss)(x, 0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, grad in grads.items():
        assert torch.allclose(grad, others[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_cached_info_nce_has_the_gradients_and_the_recall_of_info_nce(symmetric: bool) -> None:
    options: dict[str, Any] = {"logit_scale": "log_temperature", "symmetric": symmetric}
    plain = functools.partial(tasks.info_nce, **options)
    batch, loss_fn = towers.batch(8), tasks.cached_info_nce(chunk_size=3, **options)
    found, expected = results(Towers, batch, loss_fn, plain)
    assert_equal(found, expected, 1e-12)
    made = [ftrain.make_steps(Towers, fn, optim.sgd(0.1)) for fn in (loss_fn, plain)]
    evaluated = [steps.eval_step(made[0].init_state(0), batch).compute() for steps in made]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-12)


def test_two_towers_train_by_cached_info_nce_from_a_configuration() -> None:
    tokens = torch.randint(1, 20, (24, 6), generator=torch.Generator().manual_seed(0))
    rows = {"query": tokens[:, :3].contiguous(), "document": tokens}
    parts = built(
        model={"name": "ftrain.tasks:TwoTower", "vocabulary": 20, "width": 16, "dropout": 0.0},
        loss={"name": "cached_info_nce", "chunk_size": 5, "logit_scale": "logit_scale"},
    )
    state = parts.init_state()
    plain = functools.partial(tasks.info_nce, first=0, second=1, logit_scale="logit_scale")
    expected = ftrain.make_steps(parts.model, plain, optim.sgd(0.1)).train_step
    assert_close_norm(
        parts.steps.train_step.gradients(state, rows).grads,
        expected.gradients(state, rows).grads,
        4e-6,
    )
