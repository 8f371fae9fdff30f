"""Table of the section "Scaling on paper" of the guide; `test_traffic.py` counts the bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()

# Llama 3.1 8B: 32 blocks, and an embedding and an output layer of 128,256 x 4,096.
P, BLOCKS, OUTSIDE = 8.03e9, 32, 2 * 128_256 * 4096
TOKENS, RATE, LINK, INSIDE, HOP = 16_384, 321e12, 50e9, 450e9, 5e-6
GIB = 2**30


def share(ranks: int) -> float:
    return (ranks - 1) / ranks


def speeds(compute: float, traffic: float) -> str:
    """Return tokens per second of a rank without overlap and with complete overlap."""
    return f"{TOKENS / (compute + traffic):,.0f} to {TOKENS / max(compute, traffic):,.0f}"


def row(ranks: int) -> str:
    """Return the row of the table for a number of ranks."""
    unit, recomputed = (P - OUTSIDE) / BLOCKS, 8 * P * TOKENS / RATE
    gathered = 8 * (OUTSIDE + unit)
    sharded_bytes = 12 * (P - OUTSIDE) + 8 * OUTSIDE
    collectives = 3 * BLOCKS + 2
    replicated = 8 * P * share(ranks) / LINK + 2 * (ranks - 1) * HOP
    sharded = sharded_bytes * share(ranks) / LINK + collectives * (ranks - 1) * HOP
    machines = ranks // 8
    hybrid = sharded_bytes * share(8) / INSIDE + 8 * (P / 8) * share(machines) / LINK
    hybrid += 2 * (BLOCKS + 1) * (machines - 1) * HOP
    memory = (16 * P, 16 * P / ranks + gathered, 16 * P / 8 + gathered)
    return (
        f"| {ranks:,} | "
        + " / ".join(f"{x / GIB:.1f}" for x in memory)
        + " | "
        + " / ".join(f"{x:.2f}" for x in (replicated, sharded, hybrid))
        + f" | {speeds(6 * P * TOKENS / RATE, replicated)} | {speeds(recomputed, sharded)}"
        + f" | {speeds(recomputed, hybrid)} |"
    )


@pytest.mark.parametrize("ranks", [8, 64, 128, 512, 2048, 10_000])
def test_scaling_table_of_the_guide_follows_from_its_formulas(ranks: int) -> None:
    assert row(ranks) in GUIDE, row(ranks)


def test_published_memory_and_throughput_of_fsdp2_agree_with_the_formulas_of_the_guide() -> None:
    # Memory falls by 16 P / 8 - 16 P / 128 from 8 to 128 ranks; published: 77.0 and 62.0 GiB.
    assert pytest.approx(77.0 - 62.0, rel=0.07) == (16 * P / 8 - 16 * P / 128) / GIB
    # The rate is that of the published throughput on 8 ranks.
    assert pytest.approx(RATE, rel=2e-3) == 6 * P * 6667
