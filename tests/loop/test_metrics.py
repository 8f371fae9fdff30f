"""Test that averages are exact over ragged batches, reading times and resumes."""

from __future__ import annotations

import itertools
import json
import math
import weakref
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import Last, Max, Mean, Metrics, Min, PerExample, Sum, data, optim
from ftrain.loop import EpochResult, Trainer
from ftrain.loop._metric_columns import read
from ftrain.loop._metric_totals import MetricTotals
from tests.loop.runs import STEPS, loss_fn, rows, trainer

numbers = st.floats(-1e6, 1e6, width=32) | st.just(math.nan)
KINDS = {"Sum": Sum, "Last": Last, "Max": Max, "Min": Min}


@given(
    values=st.lists(st.tuples(numbers, st.integers(0, 5), numbers), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    saved=st.booleans(),
)
def test_metric_totals_do_not_depend_on_when_metrics_are_read(
    values: Any, cuts: list[int], saved: bool
) -> None:
    steps = [
        Metrics(
            {
                "mean": Mean(torch.tensor(a), torch.tensor(w)),
                **{name: kind(torch.tensor(b)) for name, kind in KINDS.items()},
            }
        )
        for a, w, b in values
    ]
    at_once = MetricTotals().add(read(steps))
    in_parts = MetricTotals()
    bounds = sorted({0, len(steps), *(min(c, len(steps)) for c in cuts)})
    for low, high in itertools.pairwise(bounds):
        in_parts = in_parts.add(read(steps[low:high]))
        if saved:
            in_parts = MetricTotals.from_json(json.loads(json.dumps(in_parts.to_json())))
    assert repr(in_parts.values()) == repr(at_once.values())  # `repr`, because NaN != NaN
    folded = steps[0]
    for each in steps[1:]:
        folded = folded.merge(each)
    for name in ("Last", "Max", "Min"):
        assert repr(at_once.values()[name]) == repr(float(folded[name]))


@given(n=st.integers(2, 60), batch=st.integers(1, 61))
def test_evaluating_ragged_batches_equals_evaluating_one_batch(n: int, batch: int) -> None:
    state, everything = STEPS.init_state(0), rows(n)
    ragged = data.Loader(everything, batch, shuffle=False, last_batch="keep")
    found = trainer().evaluate(state, ragged)
    whole = trainer().evaluate(state, [everything])
    assert found.samples == whole.samples == n
    assert found.metrics["accuracy"] == whole.metrics["accuracy"]
    assert found.loss == pytest.approx(whole.loss, rel=4e-7)


def plain(model: Any, batch: Any) -> Any:
    """Return a loss and a metric that are means without weights, as users often write them."""
    logits = model(batch["x"])
    accuracy = (logits.argmax(-1) == batch["y"]).float().mean()
    return F.cross_entropy(logits, batch["y"]), {"accuracy": accuracy}


@given(n=st.integers(2, 60), batch=st.integers(1, 61))
def test_means_without_a_weight_are_weighted_by_batch_size(n: int, batch: int) -> None:
    steps = ftrain.make_steps(lambda: nn.Linear(4, 3), plain, optim.sgd(0.0))
    runs, state, everything = Trainer(steps, compile=False), steps.init_state(0), rows(n)
    ragged = data.Loader(everything, batch, shuffle=False, last_batch="keep")
    found, whole = runs.evaluate(state, ragged), runs.evaluate(state, [everything])
    assert found.loss == pytest.approx(whole.loss, rel=4e-7)
    assert found.metrics["accuracy"] == pytest.approx(whole.metrics["accuracy"], rel=4e-7)
    trained = runs.fit(state, ragged, epochs=1).train
    assert trained.loss == pytest.approx(whole.loss, rel=4e-7)


def test_training_metrics_over_ragged_batches_average_all_rows() -> None:
    """With a learning rate of zero and no dropout, the function is the same for every batch."""
    steps = ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.0))
    batches = [{k: v[a:b] for k, v in rows().items()} for a, b in ((0, 7), (7, 8), (8, 60))]
    result = Trainer(steps, compile=False).fit(steps.init_state(0), batches, [rows()], epochs=1)
    assert result.train.loss == pytest.approx(result.eval.loss, rel=4e-7)
    assert result.train.metrics["accuracy"] == result.eval.metrics["accuracy"]


def test_perplexity_uses_the_token_weighted_mean() -> None:
    def token_loss(module: Any, batch: Any) -> Mean:
        mask = batch["mask"]
        logits = module(batch["tokens"])
        each = F.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten(), reduction="none")
        return Mean((each * mask.flatten()).sum(), mask.sum())

    steps = ftrain.make_steps(lambda: nn.Embedding(7, 7), token_loss, optim.sgd(0.0))
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 7, (10, 5), generator=g)
    mask = (torch.rand(10, 5, generator=g) < 0.6).float()
    everything = {"tokens": tokens, "mask": mask}
    batches = [{k: v[a:b] for k, v in everything.items()} for a, b in ((0, 1), (1, 7), (7, 10))]
    state = steps.init_state(0)
    found = Trainer(steps, compile=False).evaluate(state, batches)
    logits = state.params["weight"][tokens].double()
    each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    expected = math.exp(float((each * mask.flatten()).sum() / mask.sum()))
    assert found.tokens == 50
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    assert found.values()["perplexity"] == found.perplexity


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_learning_rate_depends_on_updates_not_micro_batches(k: int) -> None:
    """One batch of 12 rows or k smaller ones per step give the same rates at the same steps."""

    class Rates:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_window_end(self, event: Any) -> None:
            self.seen.append(event.values["learning_rate"])

    rates = Rates()
    batches = [{name: x[:4] for name, x in rows().items()}] * 12
    made = trainer(rates, log_every=1, accumulate=k)
    made.fit(STEPS.init_state(0), batches, max_steps=4)
    plain = Rates()
    trainer(plain, log_every=1).fit(STEPS.init_state(0), batches, max_steps=4)
    assert rates.seen == plain.seen


def test_accumulated_batches_match_one_large_batch() -> None:
    batches = [{name: x[4 * i : 4 * i + 4] for name, x in rows().items()} for i in range(4)]
    steps = ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.1))
    joined = Trainer(steps, compile=False, accumulate=4).fit(steps.init_state(0), batches, epochs=1)
    whole = [{name: x[:16] for name, x in rows().items()}]
    once = Trainer(steps, compile=False).fit(steps.init_state(0), whole, epochs=1)
    assert joined.step == once.step == 1
    for name, mine in joined.state.params.items():
        torch.testing.assert_close(mine, once.state.params[name], rtol=1e-6, atol=1e-7)


def test_results_contain_minimum_and_maximum_of_gradient_norms() -> None:
    result = trainer().fit(STEPS.init_state(0), [rows()], epochs=1, max_steps=1)
    metrics = result.train.metrics
    assert metrics["grad_norm_min"] == metrics["grad_norm"] == metrics["grad_norm_max"] > 0
    result = trainer(log_every=1).fit(STEPS.init_state(0), [rows(), rows(seed=2)], epochs=3)
    metrics = result.train.metrics
    assert metrics["grad_norm_min"] < metrics["grad_norm"] < metrics["grad_norm_max"]


def test_a_custom_metric_with_a_vector_value_has_a_column_per_entry() -> None:
    class Confusion(NamedTuple):
        counts: torch.Tensor

        @property
        def value(self) -> torch.Tensor:
            return self.counts / self.counts.sum()

        def merge(self, other: Any) -> Any:
            return Confusion(self.counts + other.counts)

    def step(state: Any, batch: Any) -> Any:
        return state, {"confusion": Confusion(batch), "plain": 2.0, "tensor": batch.sum()}

    state = STEPS.init_state(0)
    batches = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])]
    result = Trainer(step, compile=False).fit(state, batches, epochs=1)
    expected = {"confusion/0": 0.375, "confusion/1": 0.625, "plain": 2.0, "tensor": 4.0}
    assert result.train.metrics == expected


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"loss": torch.zeros(2)}, r"metric 'loss': expected a 0-d tensor.*shape \(2,\)"),
        ({"loss": "low"}, "metric 'loss': expected a 0-d tensor"),
        (3.0, "the metrics of a step: expected a dict"),
        ({"x": torch.zeros(0)}, r"metric 'x': expected.*got shape \(0,\).*Mean\(value.sum\(\)"),
        ({"loss": torch.zeros(0)}, r"metric 'loss': expected.*got shape \(0,\)"),
        ({"x": torch.zeros(0, 3)}, r"metric 'x': expected.*got shape \(0, 3\)"),
        ({"x": Mean(torch.zeros(0), torch.tensor(1.0))}, r"metric 'x': expected.*got shape \(0,\)"),
        ({"x": Max(torch.zeros(0))}, r"metric 'x': expected.*got shape \(0,\)"),
        ({"x": torch.tensor(1j)}, "metric 'x': expected.*got dtype torch.complex64"),
        ({"x": Mean("low", 1.0)}, "metric 'x': expected.*got 'low'"),
    ],
)
@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_value_that_is_not_a_metric_is_refused_at_the_first_batch(
    metrics: Any, said: str, where: str
) -> None:
    seen: list[Any] = []

    def step(state: Any, batch: Any) -> Any:
        seen.append(batch)
        return state, metrics

    state, batches = STEPS.init_state(0), [rows()] * 3
    if where == "step":
        run = lambda: Trainer(step, compile=False).fit(state, batches, epochs=1)  # noqa: E731
    else:
        made = Trainer((step, lambda *each: step(*each)[1]), compile=False)
        run = lambda: made.evaluate(state, batches)  # noqa: E731
    with pytest.raises(TypeError, match=said):
        run()
    assert len(seen) == 1


def test_an_empty_metric_of_an_ensemble_is_refused() -> None:
    metrics = {"loss": torch.ones(2), "x": Mean(torch.zeros(2, 0), torch.ones(2))}
    with pytest.raises(TypeError, match=r"metric 'x': expected a tensor of shape \(2,\).*\(2, 0\)"):
        read([metrics], members=2)


@pytest.mark.parametrize("later", [torch.ones(3), torch.zeros(0)])
@pytest.mark.parametrize("as_mean", [False, True])
def test_a_metric_that_changes_its_shape_raises_with_its_name(
    later: torch.Tensor, as_mean: bool
) -> None:
    one = torch.tensor(1.0)
    steps = [{"x": Mean(x, one) if as_mean else x} for x in (one, one, later)]
    shape = tuple(later.shape)
    with pytest.raises(ValueError, match="metric 'x': expected the same shape") as error:
        read(steps)
    assert f"got () at one step and {shape} at a later one" in str(error.value)


@pytest.mark.parametrize("weights", [(1.0, torch.tensor(3.0)), (torch.tensor(3.0), 1.0)])
def test_weights_of_a_mean_may_be_a_number_at_one_step_and_a_tensor_at_another(
    weights: Any,
) -> None:
    steps = [{"x": Mean(torch.tensor(2.0), weight)} for weight in weights]
    found = MetricTotals().add(read(steps))
    assert repr(found.values()) == "{'x': 1.0}"


def test_a_custom_metric_may_contain_python_numbers() -> None:
    class Weighed(NamedTuple):
        total: torch.Tensor
        weight: float

        @property
        def value(self) -> torch.Tensor:
            return self.total / self.weight

        def merge(self, other: Any) -> Any:
            return Weighed(self.total + other.total, self.weight + other.weight)

    def step(state: Any, batch: Any) -> Any:
        return state, {"loss": batch, "x": Weighed(batch, 2.0)}

    made = Trainer(step, compile=False)
    found = made.fit(STEPS.init_state(0), [torch.tensor(2.0), torch.tensor(6.0)], epochs=1).train
    assert found.metrics == {"loss": 4.0, "x": 2.0}
    found = made.fit({}, [torch.tensor([2.0, 4.0]), torch.tensor([6.0, 8.0])], epochs=1).train
    assert found.members["x"] == (2.0, 3.0)


@pytest.mark.parametrize("wrap", [Metrics, dict])
def test_per_example_values_are_neither_kept_nor_logged(wrap: Any) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def step(state: Any, batch: Any) -> Any:
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        ids = torch.arange(5)
        alive.append(weakref.ref(ids))
        loss = Mean(torch.tensor(1.0), torch.tensor(1.0))
        return state, wrap({"loss": loss, "ids": PerExample(ids)})

    made = Trainer((step, lambda *each: step(*each)[1]), compile=False, log_every=1000)
    found = made.fit(STEPS.init_state(0), [rows()] * 20, [rows()] * 20, epochs=1)
    assert len(alive) == 40
    assert most <= 2
    assert [{*each.metrics} for each in found.history] == [{"loss"}] * 2


def test_a_result_computes_the_values_of_ensemble_members_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    own = MetricTotals.by_member

    def counting(self: Any) -> Any:
        calls.append(self)
        return own(self)

    monkeypatch.setattr(MetricTotals, "by_member", counting)
    found = MetricTotals().add(read([{"loss": torch.tensor([1.0, 3.0])}], members=2))
    result = found.result("train", 1, 1)
    assert result.metrics == {"loss": 2.0, "loss_min": 1.0, "loss_max": 3.0}
    assert result.members == {"loss": (1.0, 3.0)}
    assert len(calls) == 1


def test_results_convert_to_json_and_print_their_metrics() -> None:
    result = trainer().fit(STEPS.init_state(0), [rows()], [rows()], epochs=2)
    content = json.loads(json.dumps(result.to_json()))
    assert [EpochResult.from_json(each) for each in content["history"]] == list(result.history)
    assert all(each.whole for each in result.history)
    text = str(result)
    assert text.startswith("completed at step 2, epoch 2: 2 epochs\n")
    assert "samples/s" in text
    assert "grad_norm" in text
    assert "train (epoch mean)" in text


def test_an_unfinished_epoch_is_printed_as_epoch_so_far() -> None:
    result = trainer().fit(STEPS.init_state(0), [rows()] * 3, epochs=2, max_steps=4)
    whole, part = result.history
    assert (whole.whole, part.whole, part.step) == (True, False, 4)
    assert "train (epoch so far)" in str(result)
    assert EpochResult.from_json(json.loads(json.dumps(part.to_json()))) == part
    old = {name: value for name, value in whole.to_json().items() if name != "whole"}
    assert EpochResult.from_json(old) == whole  # older checkpoints lack `whole`
    by_name = json.loads(json.dumps(whole.to_json(), sort_keys=True))
    assert next(iter(EpochResult.from_json(by_name).metrics)) == "loss"


def test_results_print_speeds_in_the_format_of_the_console() -> None:
    result = EpochResult("eval", 1, 5, {"loss": 0.5}, 124_900, 2_000_000, 1.0)
    assert "  125k samples/s  2M tokens/s  " in str(result)
