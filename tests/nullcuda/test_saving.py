"""Saves on a CUDA device: copies to pinned memory, and one wait for all leaves."""

from __future__ import annotations

import itertools

import pytest
import torch

from ftrain import checkpoint, tree
from ftrain.checkpoint import _draft
from ftrain.checkpoint._host_copies import PinnedMemory, computed, to_host
from tests.nullcuda.device import counted


def state(n: int = 40) -> dict[str, torch.Tensor]:
    return {f"w{i}": torch.ones(i + 1, 3, device="cuda") for i in range(n)}


@pytest.mark.parametrize(
    "options",
    [
        {"asynchronous": True, "copy": True},
        {"asynchronous": True, "copy": False},
        {"asynchronous": False},
    ],
)
def test_store_waits_for_the_device_once_per_save(tmp_path, options):
    content = state()
    with checkpoint.Store(tmp_path, **options) as store:
        store.save(content, step=1)
        store.wait()
        with counted() as counts:
            store.save(content, step=2)
            store.wait()
    assert counts.pageable == 0
    assert counts.to_host == len(content)
    assert counts.syncs <= 1


def test_host_copies_keep_strides_and_do_not_overlap():
    base = torch.empty(24, device="cuda")
    leaves = [
        base,
        base.view(4, 6).T,
        base[:1].expand(5),
        base.view(4, 6)[:, ::2],
        base[:0],
        torch.empty((), dtype=torch.int64, device="cuda"),
        torch.empty(3, dtype=torch.bool, device="cuda"),
        torch.ones(3),
        torch.empty(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last),
    ]
    memory = PinnedMemory()
    copies = to_host(leaves, memory)
    assert [c.stride() for c in copies] == [leaf.stride() for leaf in leaves]
    assert [c.shape for c in copies] == [leaf.shape for leaf in leaves]
    assert {c.device.type for c in copies} == {"cpu"}
    assert copies[7] is leaves[7]
    places = sorted((c.data_ptr(), c.nbytes) for c in copies if c.is_contiguous() and c.numel())
    for (begin, size), (after, _) in itertools.pairwise(places):
        assert begin + size <= after
    assert next(c.data_ptr() for c in to_host(leaves, memory)) == copies[0].data_ptr()


def test_a_leaf_larger_than_a_block_of_pinned_memory_gets_its_own_block():
    big = torch.empty((80 << 20,), dtype=torch.uint8, device="cuda")
    leaves = [torch.empty(5, device="cuda"), big, torch.empty(7, device="cuda")]
    memory = PinnedMemory()
    for _ in range(2):
        copies = to_host(leaves, memory)
        assert [c.numel() for c in copies] == [5, 80 << 20, 7]
        assert all(c.is_pinned() for c in copies)
    assert len(memory._pieces) == 3


def test_save_of_an_undonated_state_waits_for_the_current_stream_of_the_caller(
    monkeypatch, tmp_path
):
    """Record which streams wait for an event of the call."""
    waited = []
    wait = torch.cuda.Stream.wait_event
    monkeypatch.setattr(
        torch.cuda.Stream, "wait_event", lambda s, e: (waited.append((s, e)), wait(s, e))[1]
    )
    recorded = []
    record = torch.cuda.Stream.record_event
    monkeypatch.setattr(
        torch.cuda.Stream,
        "record_event",
        lambda s, *e: (recorded.append((s, record(s, *e))), recorded[-1][1])[1],
    )
    own = torch.cuda.Stream()
    with (
        checkpoint.Store(tmp_path, asynchronous=True, copy=False) as store,
        torch.cuda.stream(own),
    ):
        store.save(state(2), step=1)
        store.wait()
    stream, event = recorded[0]
    assert stream == own
    assert [e for _, e in waited] == [event]
    assert waited[0][0] not in (own, torch.cuda.default_stream())


def test_host_copies_of_a_save_keep_aliases():
    w = torch.empty(4, device="cuda")
    collected = _draft.collect({"a": w, "b": w, "c": w[:2]}, None, None, None, None)
    copies = collected.on_host(PinnedMemory(), computed(tree.leaves(collected.leaves))).leaves
    assert copies[0] is copies[1]
    assert copies[2].data_ptr() != copies[0].data_ptr()
