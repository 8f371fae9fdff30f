"""A hash of a large tensor changes with any of its bits; a copy of a small one has all of them."""

from __future__ import annotations

import pytest
import torch

from ftrain.core import _writes

SIZES = (_writes._SMALL, _writes._SMALL + 1)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_changing_the_highest_or_lowest_bit_of_an_element_changes_the_recorded_copy_or_hash(
    size: int, dtype: torch.dtype
) -> None:
    """The highest bit is the hardest: an even weight would shift it out of the sum."""
    words = torch.zeros(size, dtype=_writes._WORDS[dtype.itemsize])
    tensor = words.view(dtype)
    before = _writes._kept(tensor)
    assert (before.ndim == 0) == (size > _writes._SMALL)
    low = torch.iinfo(words.dtype)
    for place in (0, 1, size - 1):
        for bit in (1, low.min if low.min < 0 else 1 << (low.bits - 1)):
            words[place] = bit
            assert not torch.equal(_writes._kept(tensor), before)
            words[place] = 0
    assert torch.equal(_writes._kept(tensor), before)


def test_order_of_elements_changes_the_hash() -> None:
    x = torch.arange(_writes._CHUNK + 9)
    kept = _writes._kept(x)
    for first, second in ((0, 1), (5, _writes._CHUNK + 5), (_writes._CHUNK, _writes._CHUNK + 1)):
        y = x.clone()
        y[first], y[second] = x[second].item(), x[first].item()
        assert not torch.equal(_writes._kept(y), kept)


def test_conjugated_and_negated_views_are_recorded_with_their_true_values() -> None:
    x = torch.tensor([1 + 2j, 3 - 4j])
    assert torch.equal(_writes._kept(x.conj()), _writes._kept(x.conj().resolve_conj()))
    assert torch.equal(_writes._kept(x.imag), _writes._kept(x.imag.clone()))
    assert torch.equal(_writes._kept(x.conj().imag), _writes._kept(-x.imag))
