"""Merging metrics is associative, and exact for means over parts of different sizes."""

from __future__ import annotations

import enum
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ftrain
from ftrain.core.metrics import (
    BatchMean,
    Last,
    Max,
    Mean,
    Metrics,
    Min,
    PerExample,
    Sum,
    Unreduced,
    as_metrics,
    on_device,
)

values = st.lists(st.integers(-1000, 1000), min_size=1, max_size=20)


@given(st.lists(values, min_size=1, max_size=6))
def test_merged_mean_of_unequal_parts_equals_the_mean_of_all_values(parts: list[list[int]]) -> None:
    merged = None
    for part in parts:
        one = Metrics({"m": Mean(torch.tensor(float(sum(part))), torch.tensor(float(len(part))))})
        merged = one if merged is None else merged.merge(one)
    everything = [x for part in parts for x in part]
    assert merged is not None
    expected = torch.tensor(float(sum(everything))) / torch.tensor(float(len(everything)))
    assert float(merged["m"]) == float(expected)


@pytest.mark.parametrize(
    "make", [lambda x: Mean(x, torch.ones(())), Sum, Max, Min, Last], ids=lambda m: "metric"
)
@given(a=st.integers(-50, 50), b=st.integers(-50, 50), c=st.integers(-50, 50))
def test_metrics_merge_is_associative(make, a: int, b: int, c: int) -> None:
    x, y, z = (make(torch.tensor(float(v))) for v in (a, b, c))
    assert float(x.merge(y).merge(z).value) == float(x.merge(y.merge(z)).value)


def test_parts_of_zero_weight_do_not_change_a_merged_mean() -> None:
    some, none = Mean(torch.tensor(6.0), torch.tensor(3.0)), Mean(torch.zeros(()), torch.zeros(()))
    assert float(some.merge(none).value) == 2.0
    assert none.value.isnan()


def test_metrics_object_reads_like_a_dict_and_has_a_short_repr() -> None:
    metrics = as_metrics({"a": torch.tensor(0.5), "n": 3}, "f")
    assert dict(metrics) == {"a": torch.tensor(0.5), "n": torch.tensor(3.0)}
    assert repr(metrics) == "Metrics(a=0.5, n=3)"
    assert metrics.compute() == {"a": 0.5, "n": 3.0}
    with pytest.raises(KeyError, match="expected one of 'a', 'n', got 'b'. Choose one"):
        metrics["b"]


def test_merging_metrics_with_different_names_raises_with_the_names() -> None:
    a, b = as_metrics({"x": 1.0, "y": 1.0}, "f"), as_metrics({"x": 1.0, "z": 1.0}, "f")
    with pytest.raises(ValueError, match=r"\['y'\] only in the first; \['z'\] only in the second"):
        a.merge(b)
    with pytest.raises(ValueError, match="'x': expected a number as in earlier batches, got a Sum"):
        Metrics({"x": a.entries["x"]}).merge(Metrics({"x": Sum(torch.tensor(1.0))}))


class Table:
    """Object that merges but has no value, as a table of another library."""

    def merge(self, other: Table) -> Table:
        return self


class Level(enum.Enum):
    """Object that has a value but does not merge."""

    LOW = 1


@pytest.mark.parametrize("bad", ["text", None, object(), Table(), Level.LOW])
def test_metrics_entry_of_an_invalid_type_raises_with_its_name(bad: object) -> None:
    with pytest.raises(
        TypeError, match="metric 'm' returned by f: expected a real tensor, a number"
    ):
        as_metrics({"m": bad}, "f")
    with pytest.raises(TypeError, match="metrics a dict of 0-d tensors"):
        as_metrics(bad if bad is not None else 3, "f")


def test_boolean_metrics_are_averaged_as_zeros_and_ones() -> None:
    merged = as_metrics({"hit": torch.tensor(True)}, "f").merge(
        as_metrics({"hit": torch.tensor(False)}, "f")
    )
    assert float(merged["hit"]) == 0.5


def test_tree_map_applies_its_function_to_the_tensors_of_metrics() -> None:
    metrics = as_metrics({"a": torch.tensor(2.0)}, "f")
    doubled = ftrain.tree.map(lambda x: x * 2, metrics)
    assert isinstance(doubled, Metrics)
    assert float(doubled["a"]) == 2.0  # total and weight alike


def test_step_does_not_compute_the_value_of_a_metric() -> None:
    class Unread(NamedTuple):
        total: torch.Tensor

        @property
        def value(self) -> torch.Tensor:
            raise AssertionError("the value was read")

        def merge(self, other: Unread) -> Unread:
            return Unread(self.total + other.total)

    found = as_metrics({"a": {"b": Unread(torch.tensor(1.0))}}, "loss_fn")
    merged = found.merge(found).entries["a/b"]
    assert float(merged.total) == 2


def test_complex_number_is_refused_as_a_metric_that_would_lose_its_imaginary_part() -> None:
    with pytest.raises(TypeError, match=r"metric 'z' .*expected a real tensor.*value\.abs\(\)"):
        as_metrics({"z": torch.tensor(1j)}, "loss_fn")
    kept = as_metrics({"z": torch.tensor([1j, 2])}, "loss_fn")[
        "z"
    ]  # values of examples keep theirs
    assert kept.tolist() == [1j, 2]


@pytest.mark.parametrize(
    ("value", "device"),
    [
        (torch.tensor(2.0), None),
        (torch.tensor(2.0), "cpu"),
        (torch.tensor([2.0]), "meta"),  # values of examples stay where they are
        (torch.tensor(2.0, device="meta"), "cpu"),
        (torch.tensor(2.0, device="meta"), "meta"),
    ],
)
def test_tensor_that_need_not_move_is_returned_unchanged(value: torch.Tensor, device: str) -> None:
    assert on_device(value, device and torch.device(device)) is value


def test_number_among_metrics_has_the_default_dtype_and_weight_one() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        entries = as_metrics({"a": 0.1, "b": True, "c": torch.tensor(3)}, "f").entries
    finally:
        torch.set_default_dtype(torch.float32)
    assert entries["a"].total.dtype == torch.float64
    assert [e.value.item() for e in entries.values()] == [0.1, 1.0, 3.0]
    assert [e.weight.item() for e in entries.values()] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Max, Min, "expected a Max as in earlier batches, got a Min"),
        (PerExample, Unreduced, "expected a PerExample as in .*, got a tensor with axes"),
        (Unreduced, lambda x: BatchMean(x, x), "a tensor with axes as .*, got a number"),
    ],
)
def test_merge_names_the_kinds_of_two_metrics_that_differ(one, other, expected: str) -> None:
    x = torch.ones(2)
    with pytest.raises(ValueError, match=f"^metric 'm': .*{expected}"):
        Metrics({"n": Sum(x), "m": one(x)}).merge(Metrics({"n": Sum(x), "m": other(x)}))
    merged = Metrics({"m": one(x)}).merge(Metrics({"m": one(x)}))
    assert type(merged.entries["m"]) is type(one(x))


def test_per_example_values_of_different_ranks_do_not_merge() -> None:
    flat, wide = PerExample(torch.zeros(2)), PerExample(torch.zeros(2, 1))
    for one, two in ((flat, wide), (wide, flat)):
        with pytest.raises(ValueError, match=r"expected float32\[2.* in all but the first axis"):
            one.merge(two)


def test_metrics_inside_metrics_have_joined_names() -> None:
    inner = as_metrics({"a": 1.0, "b": [2.0, (3.0,)]}, "f")
    found = as_metrics({"x": inner, "y": {"z": {}}, "w": Mean(torch.ones(()), torch.ones(()))}, "f")
    assert list(found) == ["x/a", "x/b/0", "x/b/1/0", "w"]
    assert len(found) == 4
    with pytest.raises(KeyError, match="expected one of 'x/a', 'x/b/0', 'x/b/1/0', got 'x'"):
        found["x"]
    with pytest.raises(KeyError, match="expected one of none, got 'x'"):
        Metrics({})["x"]


def test_scalar_of_the_host_is_moved_to_the_device_of_the_metrics() -> None:
    for value in (torch.tensor(2.0), 2.0):
        assert on_device(value, torch.device("meta")).device.type == "meta"
