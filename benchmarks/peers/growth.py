"""Growth of a step's time with parameters, leaves, batch, and the steps in a call."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers import cell
from benchmarks.peers.cell import Cell
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.workloads import Workload, mlp

__all__ = ["AXES", "grow"]

_MLP_LEAVES = 2  # a weight and a bias in each layer

# By axis, the workload of each value. The models are small, because each value is compiled anew.
AXES: dict[str, dict[float, Workload]] = {
    "parameters": {
        3 * (width**2 + width): mlp(3, width, name=f"mlp-3 of width {width}")
        for width in (16, 64, 256, 1024)
    },
    "leaves": {_MLP_LEAVES * layers: mlp(layers) for layers in (3, 10, 50, 100)},
    "batch": {rows: mlp(3, 64, rows, name=f"mlp-3 of {rows} rows") for rows in (8, 64, 512, 4096)},
    "k": {k: mlp(3, name=f"mlp-3, k = {k}", scan=k) for k in (1, 2, 8, 32, 128)},
}


def grow(
    axis: str,
    names: Sequence[str],
    values: int | None = None,
    *,
    rounds: int,
    seconds: float,
    backend: str | None = "inductor",
) -> dict[float, Cell]:
    """Measure the contenders for each value of an axis.

    Args:
        axis: a key of `AXES`.
        names: the contenders; along "k" only those of ftrain and JAX are measured.
        values: the number of values to measure, from the smallest; default: all.
        rounds: the number of turns of each contender.
        seconds: the length of a turn.
        backend: the backend of `torch.compile`; `None` compiles nothing but ftrain's own graphs.
    """
    if axis == "k":
        names = [name for name in names if CONTENDERS[name].kind in ("ftrain", "jax")]
    works = list(AXES[axis].items())[:values]
    found = {}
    for value, work in works:
        found[value] = cell.measure(work, names, rounds=rounds, seconds=seconds, backend=backend)
    return found
