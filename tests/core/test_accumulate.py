"""Test how a batch is cut into micro-batches, and how their metrics are merged."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import pytest
import torch

import ftrain
from ftrain import Last, Mean, MicroBatches, PerExample, Sum
from ftrain.core.accumulate import check_examples, merged, safe_weight, split_batch, weighted
from ftrain.core.metrics import BatchMean, Max, Metrics, Min
from ftrain.testing import assert_same_bits

X = torch.arange(24.0).reshape(12, 2)
SPARSE = torch.eye(2).to_sparse()
NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize("k", [1, 2, 3, 12])
def test_batch_is_cut_into_consecutive_rows_and_constants_go_to_every_part(k: int) -> None:
    def rows(start: int, stop: int) -> Any:
        return {
            "x": X[start:stop],
            "more": [{"y": X[start:stop, 0].long()}, torch.tensor(0.5), 3],
            "empty": [],
            "text": "train",
        }

    parts = split_batch(rows(0, 12), k)
    size = 12 // k
    expected = [rows(i * size, i * size + size) for i in range(k)]
    assert parts.k == k
    for found, part in zip(parts.unstack().batches, expected, strict=True):
        assert ftrain.tree.first_difference(found, part) is None
        assert_same_bits(found["x"], part["x"])
        assert_same_bits(found["more"][:2], part["more"][:2])
        assert (found["more"][2], found["text"]) == (3, "train")


@pytest.mark.parametrize(
    ("batch", "k", "error", "message"),
    [
        ({"x": ones(6), "y": ones(4)}, 2, ValueError, r"expected 6 rows as in batch.*, got 4 in "),
        ({"x": ones(5)}, 2, ValueError, r"batch\['x'\] has 5 rows. Use a batch of 4 or 6 .*\[1, 5\]"),
        (ones(6, 2), 4, ValueError, r"batch has 6 rows. Use a batch of 4 or 8 rows, .* \[1, 2, 3, 6\]"),
        (ones(2), 3, ValueError, r"Use a batch of 3 rows, or set accumulate to one of \[1, 2\]"),
        (ones(0), 2, ValueError, r"has 0 rows. Use a batch of 2 rows, or set .* to one of \[1\]"),
        ({"n": torch.tensor(1.0), "m": 2}, 2, ValueError, "accumulate=2: .*got a batch without one"),
        ({"y": ["a", "b"]}, 2, TypeError, r"batch\['y'\] is a list of 2 Python values"),
        ({"x": X, "y": ["a", "b"]}, 2, TypeError, r"batch\['y'\] is a list of 2 Python values"),
        ([X, {"y": (1, 2.5, True)}], 2, TypeError, r"batch\[1\]\['y'\] is a tuple of 3 Python values"),
        ({"x": X, "y": object()}, 2, TypeError, r"batch\['y'\] is an object; expected a tensor"),
        ({"x": X, "y": SPARSE}, 2, TypeError, r"batch\['y'\]: .*got one of layout torch.sparse_coo"),
        ([X, NESTED], 2, TypeError, r"batch\[1\]: expected a strided tensor.* got a nested tensor"),
        (MicroBatches({"a": X}), 1, TypeError, "expected a tuple of batches, got a dict"),
        (MicroBatches((X, X), (1.0,)), 1, ValueError, r"each of 2 batches, got \(1.0,\)"),
        (MicroBatches((X, X), (1, 0)), 1, ValueError, r"one positive weight .* got \(1, 0\)"),
        (MicroBatches((X,), (-1.0,)), 1, ValueError, "one positive weight"),
        (MicroBatches(()), 2, ValueError, "expected 2 batches or a multiple of 2, .*got 0. Pass"),
        (MicroBatches((X, X, X)), 2, ValueError, "expected 2 batches or a multiple of 2, .*got 3. Pass"),
        (MicroBatches(([X], (X,))), 1, ValueError, "batch 1 differs in structure from batch 0"),
        (MicroBatches(([X], [X], (X,))), 1, ValueError, "batch 2 differs in structure from batch 0"),
    ],
)  # fmt: skip
def test_batch_that_cannot_be_cut_raises_with_its_entry_and_the_sizes_that_fit(
    batch: Any, k: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split_batch(batch, k)


@pytest.mark.parametrize(
    "parts",
    [
        ({"x": X, "n": 1, "s": torch.tensor(1.0)}, {"x": -X, "n": 1, "s": torch.tensor(2.0)}),
        ({"x": X, "n": 1}, {"x": X[:5], "n": 1}),
        ({"x": X, "n": 1}, {"x": X.long(), "n": 1}),
        ({"x": X, "n": 1}, {"x": X, "n": 2}),
        ({"x": X, "n": 1}, {"x": X, "n": 1.0}),
        ({"x": X, "n": 1}, {"x": X, "n": True}),
        ({"x": X, "n": 0.0}, {"x": X, "n": -0.0}),
        ({"x": X}, {"x": X.to("meta")}),
        ({"x": SPARSE}, {"x": SPARSE}),
        ([X, 1], [X, 1], [X, 2]),
        (X,),
    ],
    ids=repr,
)
@pytest.mark.parametrize("sequence", [tuple, list])
def test_micro_batches_are_passed_on_as_they_were_given(parts: Any, sequence: Any) -> None:
    weights = tuple(range(1, len(parts) + 1))
    for given in ((), weights):
        found = split_batch(MicroBatches(sequence(parts), given), 1)
        assert (found.k, found.weights) == (len(parts), given)
        separate = found.unstack()
        assert (separate.k, separate.weights) == (len(parts), given)
        for one, part in zip(separate.batches, parts, strict=True):
            assert ftrain.tree.first_difference(one, part) is None
            for a, b in zip(ftrain.tree.leaves(one), ftrain.tree.leaves(part), strict=True):
                if not isinstance(b, torch.Tensor):
                    assert (type(a), repr(a)) == (type(b), repr(b))
                elif b.is_meta or b.is_sparse:
                    assert (a.shape, a.dtype, a.device, a.layout) == (
                        b.shape,
                        b.dtype,
                        b.device,
                        b.layout,
                    )
                else:
                    assert_same_bits(a, b)


class Joined(NamedTuple):
    """Metric that concatenates along the last axis."""

    values: torch.Tensor
    grows = True

    @property
    def value(self) -> torch.Tensor:
        return self.values

    def merge(self, other: Joined) -> Joined:
        return Joined(torch.cat([self.values, other.values], -1))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_metrics_stacked_over_micro_batches_merge_in_order(k: int) -> None:
    generator = torch.Generator().manual_seed(k)

    def one() -> Metrics:
        x = torch.rand(4, generator=generator)
        return Metrics(
            {
                "z": PerExample(x),
                "mean": Mean(x[0], x[1]),
                "joined": Joined(x[None]),
                "sum": Sum(x[2]),
                "last": Last(x),
                "max": Max(x[3]),
                "min": Min(x[3]),
                "a": BatchMean(x[0], torch.ones(())),
            }
        )

    each = [one() for _ in range(k)]
    found = merged(ftrain.tree.map(lambda *x: torch.stack(x), *each), k)
    expected = functools.reduce(Metrics.merge, each)
    assert list(found) == list(expected)
    assert_same_bits(found, expected)
    assert [type(x) for x in found.entries.values()] == [type(x) for x in expected.entries.values()]


@pytest.mark.parametrize(
    ("entries", "part", "rows"),
    [
        (6, {"x": ones(6, 2)}, None),
        (12, {"x": ones(6, 2), "s": torch.tensor(1.0), "n": 3}, None),
        (5, {"x": ones(6, 2)}, 6),
        (3, {"x": ones(6)}, 6),
        (5, {"x": ones(6), "y": ones(4)}, None),  # nothing says which of the two are rows
        (5, {"s": torch.tensor(1.0)}, None),
        (5, {"x": ones(0)}, None),
    ],
)
def test_values_of_each_example_must_fit_the_rows_of_a_micro_batch(
    entries: int, part: Any, rows: int | None
) -> None:
    metrics = Metrics({"mean": Sum(ones()), "each": PerExample(ones(entries, 2))})
    if rows is None:
        check_examples(metrics, part)
        return
    message = rf"'each' is float32\[{entries}, 2\] of a micro-batch of {rows} rows"
    with pytest.raises(ValueError, match=message):
        check_examples(metrics, part)


def test_weight_of_a_micro_batch_counts_for_means_without_a_weight_only() -> None:
    weight = torch.tensor(3.0)
    half = torch.tensor(2.0, dtype=torch.bfloat16)
    found = weighted(BatchMean(half, torch.tensor(1.0)), weight)
    assert type(found) is BatchMean
    assert (found.total.item(), found.weight.item(), found.total.dtype) == (6.0, 3.0, torch.float32)
    for metric in (Mean(half, weight), Sum(half), Last(half)):
        assert weighted(metric, weight) is metric
    plain = BatchMean(half, weight)
    assert weighted(plain, None) is plain


def test_total_of_weight_zero_is_divided_by_one() -> None:
    assert safe_weight(torch.tensor([0.0, 0.5, 2.0, -1.0])).tolist() == [1.0, 0.5, 2.0, -1.0]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (3, 5, 4)], ids=["equal", "unequal"])
@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 5.0)], ids=["no weights", "weights"])
def test_gradients_of_micro_batches_are_the_weighted_mean_of_those_of_each(
    sizes: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    def loss_fn(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    gradients = ftrain.gradients(lambda: torch.nn.Linear(2, 1), loss_fn)
    state = ftrain.make_steps(
        lambda: torch.nn.Linear(2, 1), loss_fn, ftrain.optim.sgd(0.1)
    ).init_state(0)
    parts = (X / 24).split(list(sizes))
    shares = torch.tensor(weights or (1.0, 1.0, 1.0))
    each = [gradients(state, part) for part in parts]
    found = gradients(state, MicroBatches(parts, weights))
    for name, grad in found.grads.items():
        expected = sum(w * one.grads[name] for w, one in zip(shares, each, strict=True))
        torch.testing.assert_close(grad, expected / shares.sum(), rtol=1e-6, atol=1e-7)
    losses = torch.stack([one.metrics["loss"] for one in each])
    torch.testing.assert_close(found.metrics["loss"], (losses * shares).sum() / shares.sum())
