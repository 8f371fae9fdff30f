"""Test records of tensors, and files of traces."""

from __future__ import annotations

import gzip
import json
import math
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain.core.errors import DataError
from ftrain.testing import Trace, record
from ftrain.testing.divergence.leaves import is_far
from ftrain.testing.divergence.trace import record_tensor


def step(state: Any, batch: Any) -> Any:
    return state - 0.1 * batch, {"loss": batch.sum()}


@given(st.integers(1, 9000), st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3, 1.0]))
def test_sketches_estimate_the_distance_of_two_tensors(n: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator, dtype=torch.float64)
    b = a + size * torch.randn(n, generator=generator, dtype=torch.float64)
    exact = float((a - b).norm() / max(a.norm(), b.norm()))
    found = record_tensor(a).distance(record_tensor(b))
    # The square of the estimate is distributed like chi-squared with 4 degrees of freedom over 4.
    assert 0.02 * exact < found < 4 * exact


def test_distance_of_tensors_that_differ_in_one_element_is_exact() -> None:
    a = torch.ones(5000)
    b = a.clone()
    b[4321] = 1.5
    # The norm of b is larger than that of a; signs have magnitude 1 in all four projections.
    assert record_tensor(a).distance(record_tensor(b)) == pytest.approx(
        0.5 / float(b.double().norm())
    )


def test_distance_of_tensors_of_different_shapes_or_with_nan_is_infinite() -> None:
    a = record_tensor(torch.ones(3))
    assert a.distance(record_tensor(torch.ones(4))) == math.inf
    assert a.distance(record_tensor(torch.tensor([1.0, math.nan, 1.0]))) == math.inf
    assert a.distance(record_tensor(torch.ones(6)[::2])) == 0.0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(True),
        torch.empty(0, 3),
        torch.tensor([1 + 2j]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([math.nan, -math.inf]),
        torch.ones(2, 3).expand(4, 2, 3),
        torch.ones(1, 4)[:, ::2],
    ],
)
def test_saved_trace_of_any_dtype_loads_equal(tmp_path: pathlib.Path, tensor: torch.Tensor) -> None:
    def identity(state: Any, batch: Any) -> Any:
        return state.clone(), {}

    trace = record(identity, tensor, [torch.ones(1)], path=tmp_path / "deep" / "a.trace")
    again = Trace.load(tmp_path / "deep" / "a.trace")
    assert repr(again) == repr(trace)  # a NaN does not equal itself


def test_digests_of_zero_and_negative_zero_differ() -> None:
    assert record_tensor(torch.zeros(2)).digest != record_tensor(-torch.zeros(2)).digest


def test_tolerance_of_a_trace_comparison_does_not_apply_to_integers() -> None:
    a, b = (record_tensor(torch.tensor([1000, n])) for n in (3, 4))
    assert is_far(a, b, 0.5)
    assert not is_far(*(record_tensor(torch.tensor([1000.0, n])) for n in (3, 4)), 0.5)


def content(folder: pathlib.Path) -> list[Any]:
    record(step, torch.zeros(2), [torch.ones(2)], path=folder / "a.trace")
    found: list[Any] = json.loads(gzip.decompress((folder / "a.trace").read_bytes()))
    return found


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "field", "type"])
def test_file_that_is_not_a_trace_is_refused(tmp_path: pathlib.Path, damage: str) -> None:
    data, path = content(tmp_path), tmp_path / "b.trace"
    if damage == "text":
        path.write_text("no trace")
    elif damage == "cut":
        path.write_bytes((tmp_path / "a.trace").read_bytes()[:-9])
    elif damage == "field":
        del data[1]["steps"]
    elif damage == "type":
        data[1]["steps"][0]["step"] = "first"
    if damage in ("field", "type"):
        path.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(DataError, match=r"b\.trace: expected a trace written by ftrain"):
        Trace.load(path)


def test_trace_of_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    data = ["ftrain trace 2", content(tmp_path)[1]]
    (tmp_path / "b.trace").write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(
        DataError, match="expected the format 'ftrain trace 1', got 'ftrain trace 2'"
    ):
        Trace.load(tmp_path / "b.trace")


def test_record_records_operators_of_the_given_steps_and_counts_from_first_step() -> None:
    trace = record(step, torch.zeros(2), [torch.ones(2)] * 3, steps=[52], first_step=51)
    assert [(each.step, each.operators is None) for each in trace.steps] == [
        (51, True),
        (52, False),
        (53, True),
    ]


@pytest.mark.parametrize("steps", [[9], [0], [1, 4]])
@pytest.mark.parametrize("form", [list, iter])
def test_record_raises_for_a_step_that_is_never_reached(
    tmp_path: pathlib.Path, steps: list[int], form: Any
) -> None:
    path = tmp_path / "run.trace"
    batches = form([torch.ones(2)] * 3)
    with pytest.raises(ValueError, match=r"steps: expected numbers from 1 to 3, .* got \[\d\]"):
        record(step, torch.zeros(2), batches, steps=steps, path=path)
    assert not path.exists()


def test_record_counts_steps_from_first_step() -> None:
    trace = record(step, torch.zeros(2), [torch.ones(2)] * 3, steps=[12], first_step=10)
    assert [each.operators is not None for each in trace.steps] == [False, False, True]


def test_record_refuses_an_unwritable_path_before_running_a_step(
    tmp_path: pathlib.Path,
) -> None:
    def never(state: Any, batch: Any) -> Any:
        raise AssertionError("ran")

    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError, match="file is a file instead of a folder. Write another path"
    ):
        record(never, torch.zeros(2), [torch.ones(2)], path=tmp_path / "file" / "run.trace")
    with pytest.raises(IsADirectoryError, match="Add a name"):
        record(never, torch.zeros(2), [torch.ones(2)], path=tmp_path)
