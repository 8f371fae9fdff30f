"""Times and rates of a cost, on a simulated machine whose operators take known times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from ftrain.core.cost import CostRow, call_cost
from ftrain.core.cost._kernels import kernels_of
from ftrain.core.cost.rates import Rates, fastest_product, measure_rates

CPU = torch.device("cpu")
FLOAT16 = 2.0**28  # FLOP/s of a processor without float16 instructions


class Machine(TorchDispatchMode):
    """Machine whose clock moves only while an operator runs.

    On a disturbed machine, the first call of an operator with a shape takes a second longer, and of
    three measured times two are too long.

    Attributes:
        now: the time (s).
        takes: the seconds of an operator, by its name and its first argument.
        late: the seconds of a disturbance.
        device: the time at which a device will have run the operators so far, if one runs them while
            Python goes on.
    """

    def __init__(self, takes: Callable[[str, torch.Tensor], float], late: float) -> None:
        super().__init__()
        self.now, self.takes, self.late = 0.0, takes, late
        self.device: float | None = None
        self._readings = 0
        self._warm: set[Any] = set()

    def clock(self) -> float:
        self._readings += 1
        if self._readings % 6 in (2, 4):
            self.now += self.late
        return self.now

    def spend(self, seconds: float) -> None:
        if self.device is None:
            self.now += seconds
        else:
            self.device = max(self.device, self.now) + seconds

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        seconds = self.takes(name, args[0]) if args and isinstance(args[0], torch.Tensor) else 0.0
        if not seconds:
            return func(*args, **(kwargs or {}))
        if self.late and (name, args[0].shape, args[0].dtype) not in self._warm:
            self._warm.add((name, args[0].shape, args[0].dtype))
            self.now += 1.0
        self.spend(seconds)
        return args[0] if name == "copy_" or args[0].is_mkldnn else torch.empty_like(args[0])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Return a function that starts a machine, on which the remaining test runs."""
    entered: list[Machine] = []

    def start(takes: Callable[[str, torch.Tensor], float], late: float = 0.0) -> Machine:
        one = Machine(takes, late)
        monkeypatch.setattr(time, "perf_counter", one.clock)
        entered.append(one.__enter__())
        return one

    yield start
    for one in entered:
        one.__exit__(None, None, None)


def bandwidth(size: int) -> float:
    """Return the bytes a second of a copy that reads and writes `size` bytes."""
    return 2.0**60 / size


def speeds(mm: float, onednn: float) -> Callable[[str, torch.Tensor], float]:
    def takes(name: str, x: torch.Tensor) -> float:
        if name == "copy_":
            size = 2 * x.numel() * x.element_size()
            return float(size / bandwidth(size))
        rate = {"mm": FLOAT16 if x.dtype == torch.float16 else mm, "mkldnn_linear": onednn}
        return 2 * x.shape[0] ** 3 / rate[name] if name in rate else 0.0

    return takes


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")
@pytest.mark.parametrize("onednn", [2.0**39, 2.0**41])
def test_measured_rates_are_those_of_the_fastest_undisturbed_calls(
    onednn: float, machine: Any
) -> None:
    machine(speeds(2.0**40, onednn), late=2.0**-6)
    rates = measure_rates(["float32", "bfloat16", "float64", "float16", "float32"], CPU)
    best = max(2.0**40, onednn)
    expected = {"float32": best, "bfloat16": best, "float64": 2.0**40, "float16": FLOAT16}
    assert rates.flops == expected
    assert list(rates.flops) == list(expected)
    assert rates.bandwidth == {size: bandwidth(size) for size in (2**20, 2**23, 2**26)}


def test_small_copies_are_timed_together_so_that_a_time_is_not_too_short(machine: Any) -> None:
    copied: Counter[int] = Counter()

    def takes(name: str, x: torch.Tensor) -> float:
        copied[2 * x.nbytes] += name == "copy_"
        return speeds(2.0**40, 2.0**40)(name, x)

    machine(takes)
    sizes = [size for size in measure_rates([], CPU).bandwidth if size <= 2**23]
    assert len({copied[size] * size for size in sizes}) == 1
    assert copied[2**23] == copied[2**26]


def test_rates_of_a_device_count_the_time_until_its_work_is_done(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    with FakeTensorMode():
        takes = speeds(2.0**50, 0.0)
        computer = machine(takes)
        computer.device = 0.0

        def copy_(b: torch.Tensor, a: torch.Tensor) -> None:  # torch's needs a real device
            computer.spend(takes("copy_", a))

        def synchronize(device: Any) -> None:
            assert device == cuda
            computer.now = max(computer.now, computer.device)

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        rates = measure_rates(["float32"], cuda)
        assert rates.flops == {"float32": 2.0**50}
        assert rates.bandwidth == {2**30: bandwidth(2**30)}
        assert fastest_product("float32", cuda).flops == 2 * 8192**3


@pytest.mark.parametrize(
    ("dtype", "mm", "size"),
    [
        ("float64", 2.0**40, 1024),
        ("float64", 2.0**35, 512),  # 1/16 s, then 1/128 s
        ("float64", 2.0, 64),
        ("float16", 2.0**40, 128),
    ],
)
def test_products_are_smaller_on_a_machine_on_which_large_ones_take_long(
    dtype: str, mm: float, size: int, machine: Any
) -> None:
    machine(speeds(mm, mm), late=2.0**-6)
    product = fastest_product(dtype, CPU)
    assert product.flops == 2 * size**3
    assert product.call().shape == (size, size)


def test_product_of_a_given_size_has_this_size_also_on_a_slow_machine(machine: Any) -> None:
    machine(speeds(2.0, 2.0))
    assert fastest_product("float64", CPU, 256).flops == 2 * 256**3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_is_torchs_on_a_processor_for_which_onednn_has_none(
    dtype: str, machine: Any
) -> None:
    def takes(name: str, x: torch.Tensor) -> float:
        if name == "mkldnn_linear":
            raise RuntimeError("could not create a primitive descriptor")
        return speeds(2.0**40, 2.0**41)(name, x)

    machine(takes)
    assert measure_rates([dtype], CPU).flops == {dtype: 2.0**40}


def chain(a: torch.Tensor) -> torch.Tensor:
    return (a @ a).sin().sin().neg().relu()


RATES = Rates({"float32": 409.6}, {1: 256.0})
# Of matrices of 8 x 8 in float32: FLOPs, bytes, and the least time.
MM = 2 * 8**3, 2 * 256, 2.5
SIN = 0, 2 * 256, 2.0
ROWS = [  # an operator takes its seconds times 3, the median of the five runs below
    CostRow("aten.sin", 2, 3 * 2 * 4.0, 0, 2 * SIN[1], 2 * SIN[2]),
    CostRow("aten.mm", 1, 3 * 5.0, *MM),
    CostRow("aten.relu", 1, 3 * 0.25, *SIN),
    CostRow("aten.neg", 1, 0.0, *SIN),
]


@pytest.mark.parametrize("traced", [True, False])
def test_cost_has_the_median_times_of_kernels_and_their_least_times(
    traced: bool, machine: Any
) -> None:
    a = torch.ones(8, 8)
    graph = ftrain.compile(chain).graph(a) if traced else None
    times = iter([100, 1, 9, 2, 50, 3, 1000])  # the first call is not timed
    factor = 0

    def prepare() -> Callable[[], Any]:
        nonlocal factor
        factor = next(times)
        return lambda: chain(a)

    seconds = {"mm": 5.0, "sin": 4.0, "relu": 0.25}
    machine(lambda name, _: factor * seconds.get(name, 0.0))
    cost = call_cost(prepare, CPU, graph=graph, rates=RATES)
    assert next(times) == 1000
    assert list(cost.kernels) == ROWS
    assert cost.seconds == 3 * 13.25
    assert cost.floor == 4.0 + 2.5 + 2.0 + 2.0
    assert cost.flops == {"float32": MM[0]}
    by_least_time = [ROWS[i] for i in (0, 1, 3, 2) if traced]
    assert list(cost.operators) == [row._replace(seconds=None) for row in by_least_time]
    assert cost.rates == RATES


def test_kernels_of_a_call_are_in_order_with_their_own_times(machine: Any) -> None:
    machine(lambda name, _: {"mm": 5.0, "sin": 4.0, "relu": 0.25}.get(name, 0.0))
    found = kernels_of(lambda: chain(torch.ones(8, 8)), CPU)
    names = ["aten.ones", "aten.mm", "aten.sin", "aten.sin", "aten.neg", "aten.relu"]
    assert [(each.name, each.seconds) for each in found] == [
        *zip(names, [0.0, 5.0, 4.0, 4.0, 0.0, 0.25], strict=True)
    ]


def test_printed_cost_shows_times_of_kernels_shares_and_measured_rates() -> None:
    rates = Rates({"float32": 3e12, "bfloat16": 4.5e9}, {2**20: 5.25e10, 2**26: 1e9})
    operators = tuple(row._replace(seconds=None) for row in ROWS)
    whole = ftrain.Cost(operators, tuple(ROWS), {"float32": MM[0]}, 42.0, 10.5, rates)
    kernels, before, measured = str(whole).split("\n\n")
    assert [line.split() for line in kernels.splitlines()] == [
        ["kernels", "calls", "ms", "share", "MFLOP", "MB", "floor", "ms"],
        ["aten.sin", "2", "24000.000", "57.1%", "0.00", "0.00", "4000.000"],
        ["aten.mm", "1", "15000.000", "35.7%", "0.00", "0.00", "2500.000"],
        ["aten.relu", "1", "750.000", "1.8%", "0.00", "0.00", "2000.000"],
        ["aten.neg", "1", "0.000", "0.0%", "0.00", "0.00", "2000.000"],
        ["together", "5", "42000.000", "0.00", "0.00", "10500.000"],
    ]
    assert before.splitlines()[0].split()[3:] == ["calls", "MFLOP", "MB", "floor", "ms"]
    assert before.splitlines()[1].split() == ["aten.sin", "2", "0.00", "0.00", "4000.000"]
    assert len({len(line) for line in kernels.splitlines()}) == 1  # columns end at the same place
    assert measured == (
        "measured rates: float32 3,000 GFLOP/s, bfloat16 4 GFLOP/s, copies of 1 MiB 52.5 GB/s, "
        "copies of 64 MiB 1.0 GB/s"
    )
    assert "operators before fusion" not in str(ftrain.Cost((), tuple(ROWS), {}, 42.0, 8.5, rates))


@pytest.mark.parametrize("n", [20, 22])
def test_printed_cost_of_kernels_too_short_to_be_timed_has_no_shares(n: int) -> None:
    rows = tuple(CostRow(f"item{i:02}", 1, 0.0, 0, 0, 0.0) for i in range(n))
    lines = str(ftrain.Cost((), rows, {}, 0.0, 0.0, Rates({}, {}))).splitlines()
    shares = [line.split()[-4] for line in lines[1 : n - 1]]
    assert set(shares) == {"0.0%"}
    more = ["...", "2", "more", "kinds", "2", "0.000", "0.0%", "0.00", "0.00", "0.000"]
    assert [line.split() for line in lines if "more" in line] == ([more] if n > 20 else [])
