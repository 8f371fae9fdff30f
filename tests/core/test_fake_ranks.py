"""Test the traffic of a rank, by the ring algorithms, and the mesh of ranks that do not exist."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import _functional_collectives as collectives

from ftrain.core._torch_fake_ranks import Traffic, fake_mesh


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "sent"),
    [
        ("all_reduce", 100, 100, 150.0),  # reduced, then gathered: twice 3 of 4 parts
        ("all_gather_into_tensor", 25, 100, 75.0),
        ("reduce_scatter_tensor", 100, 25, 75.0),
        ("all_to_all_single", 100, 100, 75.0),
        ("broadcast", 100, 100, 100.0),
    ],
)
def test_one_of_four_ranks_sends_the_bytes_of_the_ring_algorithm(
    name: str, inputs: int, outputs: int, sent: float
) -> None:
    traffic = Traffic(4)
    traffic.add(name, 4, inputs, outputs)
    assert (traffic.sent, traffic.collectives) == (sent, 1)
    traffic.add(name, 4, inputs, outputs)
    assert (traffic.sent, traffic.collectives) == (2 * sent, 2)


def test_traffic_counts_the_collectives_of_a_block_but_not_the_waits_for_them() -> None:
    with fake_mesh(4, "cpu") as mesh:
        assert mesh.size() == 4
        traffic, x = Traffic(4), torch.ones(8)
        with traffic.counted():
            torch.add(collectives.all_reduce(x, "sum", mesh), 1)
            torch.add(collectives.all_gather_tensor(x, 0, mesh), 1)
        torch.add(collectives.all_reduce(x, "sum", mesh), 1)
    assert traffic.collectives == 2
    assert traffic.sent == 2 * 0.75 * 32 + 0.75 * 4 * 32
    assert not torch.distributed.is_initialized()


def test_collectives_among_a_subset_of_ranks_count_bytes_by_the_size_of_the_subset() -> None:
    with fake_mesh(4, "cpu") as mesh:
        pairs = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        traffic, x = Traffic(mesh.size()), torch.ones(8)
        with traffic.counted():
            torch.add(collectives.all_reduce(x, "sum", pairs["b"]), 1)
            group = pairs["b"].get_group().group_name
            torch.ops._c10d_functional.all_gather_into_tensor_coalesced([x, x[:2]], 2, group)
    assert traffic.collectives == 2
    assert traffic.sent == 2 * 0.5 * 32 + 0.5 * 2 * (32 + 8)
