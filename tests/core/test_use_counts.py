"""Use counts of storages: all read at once, they are those that torch returns one by one."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.multiprocessing.reductions import StorageWeakRef

from ftrain.core import _torch_storage
from ftrain.core._torch_storage import storage_use_count, use_counts_check

#: What shares the storage of a tensor.
SHARES = {
    "a view": lambda x: x[:1],
    "a detached tensor": torch.Tensor.detach,
    "an array of a detached tensor": lambda x: x.detach().numpy(),
    "a tensor of other dtype": lambda x: x.view(torch.uint8),
    "a parameter": torch.nn.Parameter,
}


def weak_references(tensors: list[torch.Tensor]) -> list[StorageWeakRef]:
    return [StorageWeakRef(x.untyped_storage()) for x in tensors]  # type: ignore[no-untyped-call]


def test_this_torch_has_the_use_count_where_it_is_read_at_once() -> None:
    """Otherwise the counts are read one by one, correctly but slowly."""
    assert _torch_storage._COUNTS_ARE_WORDS


@given(st.lists(st.sampled_from(sorted(SHARES)), max_size=6), st.data())
@settings(max_examples=30)
def test_check_of_all_use_counts_equals_reading_them_one_by_one(
    names: list[str], data: st.DataObject
) -> None:
    tensors = [torch.zeros(4) for _ in range(20)]
    weak = weak_references(tensors)
    addresses = [each.cdata for each in weak]
    uses = list(map(storage_use_count, addresses))
    same = use_counts_check(addresses, uses)
    held = []
    for name in names:
        assert same() == (list(map(storage_use_count, addresses)) == uses)
        held.append(SHARES[name](data.draw(st.sampled_from(tensors[:3]))))
        again = weak_references(tensors)  # which are not counted
        assert not same()
        assert list(map(storage_use_count, addresses)) != uses
        if data.draw(st.booleans()):
            held.clear()
        del again
    held.clear()
    assert same()


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 400])
def test_use_counts_check_notices_one_more_tensor_anywhere(
    count: int, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_torch_storage, "_COUNTS_ARE_WORDS", readable)
    tensors = [torch.zeros(4) for _ in range(count)]
    weak = weak_references(tensors)
    addresses = [each.cdata for each in weak]
    same = use_counts_check(addresses, list(map(storage_use_count, addresses)))
    assert same()
    for place in (tensors[:1], tensors[-1:]):
        view = [x[1:] for x in place]
        assert same() == (not view)
        view.clear()
        assert same()
