"""Test stored outputs of a function per sample: values, order, file, and errors for stale files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.testing import assert_same_bits

WEIGHT = torch.linspace(-1, 1, 6).view(3, 2)


def rows(n: int = 10) -> dict[str, Tensor]:
    return {"x": torch.arange(3.0 * n).view(n, 3), "y": torch.arange(n)}


def teacher(batch: Any) -> Tensor:
    found: Tensor = batch["x"] @ WEIGHT
    return found


class Samples(Dataset):  # type: ignore[type-arg]  # of dicts
    """Data that are read sample by sample."""

    def __init__(self, n: int = 10) -> None:
        self.rows = rows(n)

    def __len__(self) -> int:
        return len(self.rows["y"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: x[index] for name, x in self.rows.items()}


class Gathered:
    """Data that are read in whole batches."""

    def __init__(self, n: int = 10) -> None:
        self.rows = rows(n)

    def __len__(self) -> int:
        return len(self.rows["y"])

    def gather(self, indices: Tensor) -> dict[str, Tensor]:
        return {name: x[indices] for name, x in self.rows.items()}


KINDS: dict[str, Any] = {"arrays": rows, "samples": Samples, "gathered": Gathered}


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_outputs_are_added_to_the_samples_they_belong_to_in_any_order(
    kind: str, tmp_path: Path
) -> None:
    calls = []

    def fn(batch: Any) -> Tensor:
        calls.append(len(batch["y"]))
        return teacher(batch)

    for _ in range(2):
        found = data.with_outputs(
            KINDS[kind](), fn, tmp_path / "a" / "file.safetensors", source=WEIGHT, batch_size=4
        )
        for batch in data.Loader(found, 5, seed=3):
            assert_same_bits(batch["teacher"], teacher(batch))
    assert calls == [4, 4, 2]  # in the first round alone
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.safetensors"]


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


@settings(max_examples=25)
@given(
    n=st.integers(1, 9),
    batch_size=st.integers(1, 10),
    kinds=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    widths=st.lists(st.integers(1, 5), max_size=2),
)
def test_named_outputs_of_any_dtype_and_shape_keep_their_bytes(
    n: int, batch_size: int, kinds: list[torch.dtype], widths: list[int]
) -> None:
    draws = torch.Generator().manual_seed(n)
    whole = {
        f"out{i}": (torch.randn(n, *widths, generator=draws) * 3).to(dtype)
        for i, dtype in enumerate(kinds)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        found = data.with_outputs(
            {"index": torch.arange(n)},
            lambda batch: {name: x[batch["index"]] for name, x in whole.items()},
            path,
            source=0,
            batch_size=batch_size,
        )
        assert_same_bits({name: found[name] for name in whole}, whole)
        assert_same_bits(safetensors.torch.load_file(path), whole)  # the library reads it too


def test_with_outputs_accepts_numpy_arrays_and_a_name_for_the_outputs(tmp_path: Path) -> None:
    arrays = {"x": np.ones((4, 3), np.float32)}
    path = tmp_path / "file"
    found = data.with_outputs(arrays, teacher, path, source={"w": WEIGHT, "layer": 3}, name="soft")
    assert found.keys() == {"x", "soft"}
    assert_same_bits(found["soft"], teacher({"x": torch.ones(4, 3)}))
    found["soft"].zero_()  # in memory alone
    again = data.with_outputs(arrays, teacher, path, source={"w": WEIGHT, "layer": 3}, name="soft")
    assert bool(again["soft"].any())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_another_teacher_or_of_other_data_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data.with_outputs(KINDS[kind](), teacher, path, source=WEIGHT)
    with pytest.raises(DataError, match=r"outputs of the source .*Delete it to compute them again"):
        data.with_outputs(KINDS[kind](), teacher, path, source=WEIGHT + 1e-7)
    with pytest.raises(DataError, match=r"expected outputs for 11 samples, got outputs for 10"):
        data.with_outputs(KINDS[kind](11), teacher, path, source=WEIGHT)
    other = KINDS[kind]()
    (other if kind == "arrays" else other.rows)["x"][7, 1] += 1
    with pytest.raises(DataError, match="expected outputs for the data"):
        data.with_outputs(other, teacher, path, source=WEIGHT)
    data.with_outputs(KINDS[kind](), teacher, path, source=WEIGHT, batch_size=3)


def test_with_outputs_compares_a_given_version_instead_of_the_data(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "file", Samples()
    other.rows["x"] += 1
    data.with_outputs(Samples(), teacher, path, source=WEIGHT, version="2024-05")
    data.with_outputs(other, teacher, path, source=WEIGHT, version="2024-05")
    with pytest.raises(DataError, match="expected outputs for the data version"):
        data.with_outputs(Samples(), teacher, path, source=WEIGHT, version="2024-06")
    with pytest.raises(DataError, match="expected outputs for the data"):
        data.with_outputs(Samples(), teacher, path, source=WEIGHT)


def test_every_flipped_bit_and_truncation_of_a_file_of_outputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data.with_outputs(rows(3), teacher, path, source=WEIGHT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="Delete it"):
            data.with_outputs(rows(3), teacher, path, source=WEIGHT)
    for length in (0, 7, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"got another or a damaged file .* Delete it"):
            data.with_outputs(rows(3), teacher, path, source=WEIGHT)


def test_with_outputs_leaves_no_file_if_the_function_raises(tmp_path: Path) -> None:
    def fails(batch: Any) -> Tensor:
        if 5 in batch["y"]:
            raise RuntimeError("no memory")
        return teacher(batch)

    with pytest.raises(RuntimeError, match="no memory"):
        data.with_outputs(rows(), fails, tmp_path / "file", source=WEIGHT, batch_size=2)
    assert list(tmp_path.iterdir()) == []


REFUSALS: dict[str, tuple[Any, Any, str]] = {
    "tuple data": (tuple(rows().values()), teacher, "expected a mapping, .* got a tuple"),
    "tuple samples": ([(1.0, 2)] * 3, lambda b: b[0], "expected samples that are mappings"),
    "name taken": (rows(), lambda b: {"x": b["x"]}, "expected names .* got 'x'"),
    "a list": (rows(), lambda b: [1], "expected a tensor or a mapping of tensors, got a list"),
    "complex numbers": (rows(), lambda b: b["x"] + 1j, r"got 'teacher' of torch\.complex64"),
    "a mean": (rows(), lambda b: b["x"].mean(), r"expected 10 rows, .* of shape \(\)"),
    "rows of one": (rows(), lambda b: b["x"][:1], r"expected 10 rows, .* of shape \(1, 3\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_with_outputs_error_names_the_invalid_argument(name: str, tmp_path: Path) -> None:
    dataset, fn, says = REFUSALS[name]
    with pytest.raises((TypeError, ValueError), match=says):
        data.with_outputs(dataset, fn, tmp_path / "file", source=0)[0]


def test_outputs_whose_shape_differs_between_batches_are_refused(tmp_path: Path) -> None:
    def growing(batch: Any) -> Tensor:
        return torch.zeros(len(batch["y"]), 1 + int(batch["y"][0]))

    says = r"expected 'teacher' of F32 \(1,\) a sample, .* got 'teacher' of F32 \(5,\) a sample"
    with pytest.raises(ValueError, match=says):
        data.with_outputs(rows(), growing, tmp_path / "file", source=0, batch_size=4)


def test_stored_outputs_get_the_name_passed_to_with_outputs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    data.with_outputs(rows(), teacher, path, source=WEIGHT, name="soft")
    assert data.with_outputs(rows(), teacher, path, source=WEIGHT).keys() == {"x", "y", "teacher"}


@pytest.mark.parametrize("source", [{}, (), {"teacher": []}])
def test_with_outputs_refuses_a_source_without_tensors(source: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source: expected the tensors that determine the outputs"):
        data.with_outputs(rows(), teacher, tmp_path / "file", source=source)


@pytest.mark.parametrize("kind", KINDS)
def test_with_outputs_refuses_a_teacher_that_draws_random_numbers(
    kind: str, tmp_path: Path
) -> None:
    layer = torch.nn.Dropout()
    with pytest.raises(ValueError, match=r"fn: .* got random draws.*Call teacher\.eval\(\)"):
        data.with_outputs(
            KINDS[kind](), lambda b: layer(teacher(b)), tmp_path / "file", source=WEIGHT
        )
    assert not list(tmp_path.iterdir())
