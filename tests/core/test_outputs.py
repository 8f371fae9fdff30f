"""Auxiliary outputs of a loss: nested names and per-example values."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import Last, Mean, Metrics, PerExample, Sum, optim
from ftrain.loop import BatchEnd, LoopWarning, Trainer
from ftrain.testing import assert_same_bits

ROWS = 12


class Scale(nn.Module):
    """Model that maps rows independently, so that no sum depends on the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


def loss_fn(model: Any, batch: Any) -> Any:
    out = model(batch["x"])
    losses = out.square().sum(1)
    return losses.mean(), {
        "losses": losses,
        "head": {"outputs": out, "positive": out > 0, "mean": out.mean()},
        "blocks": [losses.max(), {"ids": batch["id"]}],
    }


def batch_of(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return {"x": torch.randn(n, 2, generator=generator), "id": torch.arange(n)}


@functools.cache
def made(accumulate: int) -> Any:
    steps = ftrain.make_steps(Scale, loss_fn, optim.sgd(0.1), accumulate=accumulate)
    return steps, ftrain.compile(steps.train_step, backend="eager"), steps.init_state(0)


def examples(metrics: Metrics) -> dict[str, torch.Tensor]:
    return {name: x for name, x in metrics.items() if x.ndim}


def test_nested_loss_outputs_have_names_joined_by_slashes() -> None:
    steps, _, state = made(1)
    _, metrics = steps.train_step(state, batch_of(ROWS))
    assert {"losses", "head/outputs", "head/positive", "head/mean", "blocks/0", "blocks/1/ids"} <= {
        *metrics
    }
    assert metrics["head/positive"].dtype == torch.bool
    assert metrics["blocks/1/ids"].tolist() == [*range(ROWS)]
    assert metrics.compute()["losses"] == metrics["losses"].tolist()
    assert_same_bits(steps.eval_step(state, batch_of(ROWS))["losses"], metrics["losses"])
    with pytest.raises(KeyError, match=r"metrics: expected one of 'head/outputs', "):
        metrics["head"]


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_micro_batches_return_the_per_example_values_of_the_full_batch(accumulate: int) -> None:
    batch = batch_of(ROWS)
    steps, _, state = made(1)
    expected = examples(steps.train_step(state, batch)[1])
    steps, compiled, _ = made(accumulate)
    for step in (steps.train_step, compiled):
        assert_same_bits(examples(step(state, batch)[1]), expected)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_unequal_micro_batches_return_per_example_values_in_order(sizes: list[int]) -> None:
    batch = batch_of(sum(sizes))
    steps, _, state = made(1)
    columns = {name: x.split(sizes) for name, x in batch.items()}
    parts = tuple({name: x[i] for name, x in columns.items()} for i in range(len(sizes)))
    _, metrics = steps.train_step(state, ftrain.MicroBatches(parts, tuple(map(float, sizes))))
    _, whole = steps.train_step(state, batch)
    assert_same_bits(examples(metrics), examples(whole))
    # Weighted by rows, a loss without a weight is the mean over the batch: two roundings a row apart.
    torch.testing.assert_close(metrics["loss"], whole["loss"], rtol=4e-7, atol=0)
    merged = functools.reduce(Metrics.merge, [steps.eval_step(state, part) for part in parts])
    assert_same_bits(examples(merged), examples(steps.eval_step(state, batch)))


def test_vmapped_step_returns_per_example_values_of_each_ensemble_member() -> None:
    steps, _, state = made(2)
    states = ftrain.tree.map(lambda x: torch.stack([x, x]), state)
    _, metrics = torch.vmap(steps.train_step, in_dims=(0, None))(states, batch_of(4))
    assert metrics["head/outputs"].shape == (2, 4, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda: torch.zeros(5), r"'odd' is float32\[5\] of a micro-batch of 6 rows"),
        (
            lambda: None,
            "metric 'odd' returned by .*: expected a real tensor, a number.*got a NoneType",
        ),
        (lambda: "low", "expected a real tensor, a number.*got a str 'low'"),
    ],
)
def test_metrics_that_cannot_be_merged_over_micro_batches_raise(value: Any, said: str) -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return model(batch["x"]).mean(), {"odd": value()}

    steps = ftrain.make_steps(Scale, loss_fn, optim.sgd(0.1), accumulate=2)
    with pytest.raises((TypeError, ValueError), match=said):
        steps.train_step(steps.init_state(0), batch_of(ROWS))


def test_loss_may_wrap_tensors_in_sum_last_or_mean() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        by_class, n = batch["x"].sum(0), torch.tensor(float(len(batch["x"])))
        loss = model(batch["x"]).mean()
        return loss, {"sum": Sum(by_class), "last": Last(by_class), "mean": Mean(by_class, n)}

    steps = ftrain.make_steps(Scale, loss_fn, optim.sgd(0.1), accumulate=2)
    batch = batch_of(4)
    _, metrics = steps.train_step(steps.init_state(0), batch)
    torch.testing.assert_close(metrics["sum"], batch["x"].sum(0))
    torch.testing.assert_close(metrics["mean"], batch["x"].mean(0))
    torch.testing.assert_close(metrics["last"], batch["x"][2:].sum(0))


def test_metrics_object_of_a_loss_gives_what_its_dict_does_and_aliases_nothing() -> None:
    """A `Metrics` may hold parameters, the batch, numbers, and tensors with a graph of their own."""

    def entries(model: Any, batch: Any) -> dict[str, Any]:
        x = batch["x"].clone().requires_grad_()
        energy = model(x).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        extra = {
            "w": Last(model.w),
            "x": Last(batch["x"]),
            "force": Last(force),
            "rows": batch["x"],
        }
        return extra | {"energy": energy, "n": 3}

    def loss_fn(model: Any, batch: Any, wrap: Any) -> Any:
        return model(batch["x"]).mean(), wrap(entries(model, batch))

    batch = batch_of(4)
    by_dict, ours = (
        ftrain.make_steps(Scale, functools.partial(loss_fn, wrap=wrap), optim.sgd(0.1))
        for wrap in (dict, Metrics)
    )
    state = ours.init_state(0)
    new, trained = ours.train_step(state, batch)
    evaluated = ours.eval_step(state, batch)
    assert_same_bits((new, trained), by_dict.train_step(state, batch))
    assert_same_bits(evaluated, by_dict.eval_step(state, batch))
    held = {x.untyped_storage().data_ptr() for x in ftrain.tree.leaves((state, new, batch))}
    for x in ftrain.tree.leaves((trained, evaluated)):
        assert not x.requires_grad
        assert x.untyped_storage().data_ptr() not in held


def test_duplicate_metric_names_raise() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return model(batch["x"]).mean(), {"a/b": 1.0, "a": {"b": 2.0}}

    steps = ftrain.make_steps(Scale, loss_fn, optim.sgd(0.1))
    with pytest.raises(ValueError, match="two metrics named 'a/b'"):
        steps.train_step(steps.init_state(0), batch_of(2))


def test_merging_per_example_values_of_different_shapes_raises() -> None:
    with pytest.raises(ValueError, match=r"expected float32\[2, 3\] .* got float32\[2, 4\]"):
        PerExample(torch.zeros(2, 3)).merge(PerExample(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match="'x': expected a tensor with axes .*, got a number"):
        Metrics({"x": torch.zeros(2)}).merge(Metrics({"x": torch.tensor(1.0)}))


def test_scalar_metrics_merge_as_means_and_vectors_concatenate() -> None:
    one, two = Metrics({"loss": torch.tensor(1.0)}), Metrics({"loss": torch.tensor(3.0)})
    assert one["loss"].item() == 1.0
    assert repr(one) == "Metrics(loss=1)"
    assert one.merge(two)["loss"].item() == 2.0
    each = Metrics({"x": torch.tensor([1, 2])}).merge(Metrics({"x": torch.tensor([3])}))
    assert each["x"].tolist() == [1, 2, 3]


class Seen:
    """Callback that stores the outputs of the steps."""

    def __init__(self) -> None:
        self.examples: list[torch.Tensor] = []

    def on_batch_end(self, event: BatchEnd) -> None:
        self.examples.append(event.metrics["losses"])


def test_trainer_passes_per_example_values_to_callbacks_and_omits_them_from_logs() -> None:
    steps, _, state = made(1)
    data = [batch_of(4), batch_of(4), batch_of(3)]
    seen = Seen()
    with pytest.warns(LoopWarning, match=r"'losses' \(float32\[4\]\), 'head/outputs' .*ftrain.Per"):
        result = Trainer(steps, [seen], compile=False).fit(state, data, data, epochs=1)
    assert [len(x) for x in seen.examples] == [4, 4, 3]
    for found in (result.train, result.eval):
        assert {"loss", "head/mean", "blocks/0"} <= {*found.metrics}
        assert not {"losses", "head/outputs", "blocks/1/ids"} & {*found.metrics}


def test_metrics_declared_as_per_example_are_not_logged_and_do_not_warn(
    recwarn: pytest.WarningsRecorder,
) -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        losses = model(batch["x"]).square().sum(1)
        return losses.mean(), {"losses": PerExample(losses)}

    steps = ftrain.make_steps(Scale, loss_fn, optim.sgd(0.1), accumulate=2)
    run = Trainer(steps, compile=False)
    result = run.fit(steps.init_state(0), [batch_of(4)] * 2, epochs=1)
    assert "losses" not in result.train.metrics
    assert not [each for each in recwarn if each.category is LoopWarning]
