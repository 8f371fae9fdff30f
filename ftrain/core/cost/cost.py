"""Cost of one call of a function: a row for each operator and kernel."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ftrain.core.cost._flops import NONE, Work, graph_work
from ftrain.core.cost._kernels import Kernel, kernels_of
from ftrain.core.cost.rates import Rates, measure_rates

__all__ = ["Cost", "CostRow", "call_cost"]

_RUNS = 5
_SHOWN = 20  # rows of a printed table


class CostRow(NamedTuple):
    """Cost of all calls of one operator or kernel.

    Attributes:
        name: the operator, or the name that inductor gave to a fused kernel.
        calls: the number of calls in one call of the function.
        seconds: its total time in one call of the function, or None without timing.
        flops: floating-point operations of products, convolutions and attention.
        bytes: bytes that it reads and writes.
        floor: the least possible seconds for these FLOPs and bytes, at the machine's measured rates.
    """

    name: str
    calls: int
    seconds: float | None
    flops: int
    bytes: int
    floor: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operators and kernels of one call of a function, with time, least possible time, FLOPs and bytes.

    The floor of a row is the larger of FLOPs over the machine's matrix rate and bytes over its memory
    bandwidth, both measured together with the times. Kernels are timed one by one, which adds about a
    microsecond to each: `seconds` is the sum of these times, without the time between kernels.

    Attributes:
        operators: rows of the traced graph, before operators are fused; `()` if nothing was traced.
        kernels: rows of the kernels that ran, the longest first.
        flops: floating-point operations by dtype, counted in the graph, or without a graph in the
            kernels.
        seconds: the time in kernels.
        floor: the sum of the floors of the kernels.
        rates: the measured rates.

    Example:
        >>> from ftrain import compile
        >>> cost = compile(lambda a, b: (a @ b).sum(), backend="eager").cost(
        ...     torch.ones(4, 8), torch.ones(8, 2)
        ... )
        >>> cost.flops, [(row.name, row.calls) for row in cost.operators]
        ({'float32': 128}, [('aten.mm', 1), ('aten.sum', 1)])
    """

    operators: tuple[CostRow, ...]
    kernels: tuple[CostRow, ...]
    flops: Mapping[str, int]
    seconds: float
    floor: float
    rates: Rates

    def __str__(self) -> str:
        parts = [self._table("kernels", self.kernels)]
        if self.operators:
            parts.append(self._table("operators before fusion", self.operators))
        rates = [f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in self.rates.flops.items()]
        rates += [
            f"copies of {size / 2**20:.0f} MiB {rate / 1e9:.1f} GB/s"
            for size, rate in self.rates.bandwidth.items()
        ]
        parts.append(f"measured rates: {', '.join(rates)}")
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON values."""
        return {
            "operators": [row._asdict() for row in self.operators],
            "kernels": [row._asdict() for row in self.kernels],
            "flops": dict(self.flops),
            "seconds": self.seconds,
            "floor": self.floor,
            "rates": {
                "flops": dict(self.rates.flops),
                "bandwidth": {str(size): rate for size, rate in self.rates.bandwidth.items()},
            },
        }

    def _table(self, title: str, rows: Sequence[CostRow]) -> str:
        timed = any(row.seconds is not None for row in rows)
        head = ["calls", *(["ms", "share"] if timed else []), "MFLOP", "MB", "floor ms"]
        cells = [[title, *head]]
        for row in rows[:_SHOWN]:
            share = (row.seconds or 0.0) / self.seconds if self.seconds else 0.0
            times = [f"{(row.seconds or 0.0) * 1e3:.3f}", f"{share:.1%}"] if timed else []
            cells.append([_shortened(row.name), f"{row.calls:,}", *times, *_amounts(row)])
        if len(rows) > _SHOWN:
            rest = rows[_SHOWN:]
            seconds = sum(row.seconds or 0.0 for row in rest)
            share = seconds / self.seconds if self.seconds else 0.0
            times = [f"{seconds * 1e3:.3f}", f"{share:.1%}"] if timed else []
            total = _row("", rest)
            name = f"... {len(rest)} more kinds"
            cells.append([name, f"{total.calls:,}", *times, *_amounts(total)])
        total = _row("", rows)
        times = [f"{self.seconds * 1e3:.3f}", ""] if timed else []
        cells.append(["together", f"{total.calls:,}", *times, *_amounts(total)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            line[0].ljust(widths[0])
            + "".join(
                f"  {cell.rjust(width)}" for cell, width in zip(line[1:], widths[1:], strict=True)
            )
            for line in cells
        )


def call_cost(
    prepare: Callable[[], Callable[[], Any]],
    device: torch.device,
    *,
    graph: fx.GraphModule | None = None,
    rates: Rates | None = None,
) -> Cost:
    """Measure the cost of a call by making the call several times.

    Args:
        prepare: returns a function that makes the call; `prepare` itself is not timed.
        device: the device on which the call runs.
        graph: the traced graph of the call; `None`: it cannot be traced.
        rates: rates of the machine; `None`: measure them.
    """
    works = graph_work(graph) if graph is not None else {}
    prepare()()
    runs = [kernels_of(prepare(), device) for _ in range(_RUNS)]
    *_, last = runs
    total = NONE
    for work in works.values() if works else (kernel.work for kernel in last):
        total = total.plus(work)
    rates = rates or measure_rates(total.flops, device)
    kernels = _kernel_rows(runs, rates)
    operators = [
        CostRow(name, work.calls, None, _sum(work), work.bytes, rates.floor(work.flops, work.bytes))
        for name, work in works.items()
    ]
    operators.sort(key=lambda row: -row.floor)
    return Cost(
        tuple(operators),
        tuple(kernels),
        total.flops,
        statistics.median(sum(kernel.seconds for kernel in run) for run in runs),
        sum(row.floor for row in kernels),
        rates,
    )


def _kernel_rows(runs: Sequence[Sequence[Kernel]], rates: Rates) -> list[CostRow]:
    """Return a row for each kind of kernel, with its median time over the runs."""
    times: dict[str, list[float]] = {}
    for run in runs:
        of_run: dict[str, float] = {}
        for kernel in run:
            of_run[kernel.name] = of_run.get(kernel.name, 0.0) + kernel.seconds
        for name, seconds in of_run.items():
            times.setdefault(name, []).append(seconds)
    works: dict[str, Work] = {}
    floors: dict[str, float] = {}
    *_, last = runs
    for kernel in last:
        works[kernel.name] = works.get(kernel.name, NONE).plus(kernel.work)
        floor = rates.floor(kernel.work.flops, kernel.work.bytes)
        floors[kernel.name] = floors.get(kernel.name, 0.0) + floor
    rows = [
        CostRow(
            name, work.calls, statistics.median(times[name]), _sum(work), work.bytes, floors[name]
        )
        for name, work in works.items()
    ]
    return sorted(rows, key=lambda row: -(row.seconds or 0.0))


def _sum(work: Work) -> int:
    return sum(work.flops.values())


def _row(name: str, rows: Sequence[CostRow]) -> CostRow:
    return CostRow(
        name,
        sum(row.calls for row in rows),
        None,
        sum(row.flops for row in rows),
        sum(row.bytes for row in rows),
        sum(row.floor for row in rows),
    )


def _amounts(row: CostRow) -> list[str]:
    return [f"{row.flops / 1e6:,.2f}", f"{row.bytes / 1e6:,.2f}", f"{row.floor * 1e3:.3f}"]


def _shortened(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"
