"""Test that unusual data and samplers are read correctly or refused with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ftrain.data import Cursor, Loader, Sequential, Text, Weighted, concat, split, standard_library

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Ends:
    """A dataset that raises StopIteration before its length, as one built on an iterator does."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return next(iter(())) if index == 5 else index


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_raises_runtime_error_if_the_dataset_raises_stop_iteration(workers):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(Loader(Ends(), 2, shuffle=False, workers=workers))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_loader_keeps_unsigned_integer_dtypes(dtype):
    whole = np.array([0, 1, np.iinfo(dtype).max], dtype=dtype)
    for data in (whole, torch.from_numpy(whole)):
        (batch,) = Loader(data, 3, shuffle=False)
        assert batch.dtype == getattr(torch, dtype)
        assert batch.numpy().tolist() == whole.tolist()


def test_loader_reads_a_field_of_a_structured_array():
    records = np.array([(1, 2), (3, 4)], dtype=[("a", "u1"), ("b", "<i4")])
    assert next(iter(Loader(records["b"], 2, shuffle=False))).tolist() == [2, 4]


def test_batches_do_not_require_grad():
    data = torch.ones(4, requires_grad=True)
    assert not next(iter(Loader(data, 2))).requires_grad


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_loader_refuses_long_double_arrays(dtype):
    with pytest.raises(TypeError, match="dataset: expected .* got an array of"):
        Loader(np.zeros(3, dtype=dtype), 1)


def test_loader_refuses_a_collate_function_for_tensors():
    with pytest.raises(ValueError, match="returns whole batches"):
        Loader(torch.arange(4), 2, collate=list)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_collating_contains_the_indices_of_the_samples(workers):
    ragged = Loader([torch.zeros(n) for n in range(12)], 10, workers=workers, shuffle=False)
    with pytest.raises(RuntimeError, match="equal size") as raised:
        list(ragged)
    said = "".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert "collating samples 0, 1, 2, 3, 4, 5, 6, 7, ... of the dataset" in said
    assert "collate=..." in said


class Order(Sequential):
    def __init__(self, change):
        super().__init__(4)
        self.change = change

    def at(self, positions, *, seed, epoch):
        return self.change(positions)


@pytest.mark.parametrize(
    "change", [list, lambda p: p.astype(float), lambda p: p[:1], lambda p: torch.from_numpy(p)]
)
def test_loader_refuses_sampler_results_that_are_not_int64_arrays(change):
    with pytest.raises(
        TypeError, match=r"expected Order.at\(positions\) to return an int64 numpy array"
    ):
        list(Loader(torch.arange(4), 2, sampler=Order(change)))


@pytest.mark.parametrize("scale", [1e-323, 1e-300, 1.0, 1e300, 4e307])
def test_weighted_sampler_draws_in_proportion_to_weights_of_any_scale(scale):
    places = np.arange(2000)
    drawn = Weighted([1.0 * scale, 0.0, 3.0 * scale], samples=2000).at(places, seed=0, epoch=0)
    assert 400 < int((drawn == 0).sum()) < 600
    assert not (drawn == 1).any()


@pytest.mark.parametrize("position", [(2**31, 0), (0, 2**63)])
def test_loader_refuses_a_cursor_out_of_range(position):
    with pytest.raises(ValueError, match="expected epoch < "):
        Loader(torch.arange(4), 2).batches(Cursor(0, *position))


@pytest.mark.parametrize(
    "state", [{"__ftrain__": "array"}, {"__ftrain__": "array", "value": ["O", [1], "AAAA"]}]
)
def test_cursor_from_json_refuses_a_damaged_stream_state(state):
    with pytest.raises(ValueError, match="position of the data stream is damaged"):
        Cursor.from_json({"order": 1, "seed": 0, "epoch": 0, "position": 0, "state": state})


@pytest.mark.parametrize(
    "second", [[1, 2], torch.zeros(2), torch.zeros(2, 3, dtype=torch.int64), {"x": torch.zeros(2)}]
)
def test_concat_refuses_datasets_that_do_not_match(second):
    with pytest.raises(ValueError, match="got both|one dtype and shape"):
        concat(torch.arange(3), second)


@pytest.mark.parametrize("held_out", ["1", True, float("nan"), None])
def test_split_refuses_an_invalid_share_of_held_out_samples(held_out):
    with pytest.raises(ValueError, match="held_out"):
        split(torch.arange(4), held_out)


def test_text_functions_refuse_tokens_and_counts_out_of_range():
    for text in (Text.of("ab"), Text(torch.arange(2))):
        for token in (-1, 256):
            with pytest.raises(ValueError, match="tokens: expected integers in"):
                text.decode([token])
    with pytest.raises(ValueError, match="characters: expected an integer >= 1"):
        standard_library(0)


def test_loader_accepts_a_batch_size_far_larger_than_the_data() -> None:
    loader = Loader({"x": torch.arange(5)}, 10**15, shuffle=False, last_batch="keep")
    assert [batch["x"].tolist() for batch in loader] == [[0, 1, 2, 3, 4]]
