"""The goals of the training step, each measured and compared with its bound.

A function measures one row of the table of goals. It returns one or more `Goal`s.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ftrain
from benchmarks import latency, memory
from benchmarks.contenders import ours, steps
from benchmarks.peers import cell, nanogpt, table
from benchmarks.peers.cell import Cell
from benchmarks.peers.contenders import DONATED, DONATED_CPP, HAND, TORCH_PEERS
from benchmarks.peers.floor import step_floor
from benchmarks.peers.results import Results
from benchmarks.peers.workloads import GPTS, TINY, TINY_SIZES, WORKLOADS, Workload
from ftrain.bench import Measurement, compare_turns, sweep, take_turns

__all__ = ["GOALS", "Goal", "Measured", "over"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """Goal of the training step, with its bound and the measured value.

    Attributes:
        what: a description of the value, with its unit.
        kind: the side of the bound on which the value must be.
        bound: the bound.
        value: the measured value; `None`: it could not be measured here.
        note: the contenders that were compared and the noise, or why there is no value.
        at_floor: the value if ftrain took the least time that its work needs; `None`: not measured.
    """

    what: str
    kind: Literal["at least", "at most"]
    bound: float
    value: float | None
    note: str = ""
    at_floor: float | None = None

    @property
    def verdict(self) -> str:
        """ "met", "missed" or "not measured"."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.bound if self.kind == "at least" else self.value <= self.bound
        return "met" if met else "missed"

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:.3g}; "
        if self.at_floor is not None:
            value += f"at the floor {self.at_floor:.3g}; "
        note = f" ({self.note})" if self.note else ""
        word = self.verdict.upper() if self.verdict == "missed" else self.verdict
        return f"{word}: {self.what}: {value}goal: {self.kind} {self.bound:g}{note}"

    def to_json(self) -> dict[str, Any]:
        """Return the goal as JSON values."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


class Measured:
    """Cells that goals share; each is measured, printed and stored when a goal first needs it."""

    def __init__(
        self, results: Results, quick: bool, contenders: Sequence[str], settings: dict[str, Any]
    ) -> None:
        self.results, self.quick = results, quick
        self.contenders, self.settings = contenders, settings
        self.rounds, self.seconds = settings["rounds"], settings["seconds"]
        self.compiler: Any = settings["backend"] or "eager"
        self._cells: dict[str, Cell] = {}

    def work(self, name: str, **changes: Any) -> Workload:
        """Return the workload of a name, with changed fields."""
        return dataclasses.replace((TINY if self.quick else WORKLOADS)[name], **changes)

    def cell(self, work: Workload) -> Cell:
        """Return the cell of a workload, which is measured at the first call."""
        if work.key not in self._cells:
            found = cell.measure(work, self.contenders, **self.settings)
            print(*table.lines(found), sep="\n", flush=True)
            self.results.add_cell(found)
            self._cells[work.key] = found
        return self._cells[work.key]


def over(
    found: Cell,
    what: str,
    kind: Literal["at least", "at most"],
    bound: float,
    numerator: Sequence[str],
    denominator: Sequence[str],
) -> Goal:
    """Return the goal for the ratio of the times of two contenders, each the fastest of a list."""
    above, below = found.best(numerator), found.best(denominator)
    if above is None or below is None:
        missing = [*numerator] if above is None else [*denominator]
        reasons = [found.outcomes[n].reason for n in missing if n in found.outcomes]
        note = (
            "; ".join(dict.fromkeys(reasons)) or f"not among the contenders: {', '.join(missing)}"
        )
        return Goal(what, kind, bound, None, note)
    seconds = found.turns.seconds
    ratio = compare_turns(seconds[above], seconds[below])
    noise = f"{ratio.low:.3g} to {ratio.high:.3g}" if ratio.low else "too few turns for the noise"
    return Goal(what, kind, bound, ratio.ratio, f"{above} over {below}; {noise}")


def gpt_torch(m: Measured) -> list[Goal]:
    work = m.work("gpt-0.8m")
    what = "GPT 0.8 M: time of the best PyTorch loop over ftrain's"
    found = over(m.cell(work), what, "at least", 1.25, TORCH_PEERS, [DONATED])
    least = step_floor(work.task())
    ours = m.cell(work).best([DONATED])
    if found.value is None or ours is None:
        return [found]
    share = least.seconds / statistics.median(m.cell(work).turns.seconds[ours])
    note = f"{found.note}; {least}, {share:.0%} of ftrain's step"
    return [dataclasses.replace(found, note=note, at_floor=found.value / share)]


def gpt_jax(m: Measured) -> list[Goal]:
    what = "GPT 0.8 M: time of JAX over ftrain's"
    return [over(m.cell(m.work("gpt-0.8m")), what, "at least", 1.8, ["jax"], [DONATED])]


def gpt_7m(m: Measured) -> list[Goal]:
    """Measure the GPT of 7 M parameters in both precisions, in turns with matrix products."""
    names = ["32-true"]
    bf16 = _has_bf16_products()
    report = sweep(
        functools.partial(_gpt_7m_step, m),
        {"precision": ["32-true", "bf16-mixed"] if bf16 else names},
        variants=["donated"],
        rounds=m.rounds,
        seconds=m.seconds,
        backend=m.compiler,
    )
    rows: dict[str, Measurement] = {r.settings["precision"]: r for r in report.measurements}
    single = rows["32-true"]
    least = {name: step_floor(m.work("gpt-7m").task(), precision=name) for name in rows}
    of_single = least["32-true"]
    note = f"{single.median * 1e3:.3g} ms a step, noise {single.noise:.1%}; {of_single}"
    reached = (single.matrix_share or 0.0) * single.median / of_single.seconds
    share = "GPT 7 M, float32: share of the measured rate of float32 products"
    speed = "GPT 7 M: time in float32 over time in bf16-mixed"
    goals = [Goal(share, "at least", 0.85, single.matrix_share, note, reached)]
    if not bf16:
        note = "not applicable: this processor has no bfloat16 products (AVX512-BF16 or AMX)"
        return [*goals, Goal(speed, "at least", 2.8, None, note)]
    ratio = compare_turns(single.seconds, rows["bf16-mixed"].seconds)
    of_half = least["bf16-mixed"]
    note = f"{ratio}; in bf16-mixed {of_half}"
    return [
        *goals,
        Goal(speed, "at least", 2.8, ratio.ratio, note, single.median / of_half.seconds),
    ]


def _gpt_7m_step(m: Measured, precision: Any) -> tuple[Any, Any, Any]:
    task = m.work("gpt-7m").task()
    made = steps(task, precision=precision)
    return made.train_step, made.init_state(0), task.batches[0]


def _has_bf16_products() -> bool:
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def mlp_3(m: Measured) -> list[Goal]:
    goals, ours = [], [DONATED, DONATED_CPP]
    for clip in (True, False):
        found = m.cell(m.work("mlp-3", clip=clip))
        name = f"MLP of 3 layers, {'clipped' if clip else 'not clipped'}"
        best = f"{name}: time of the best PyTorch peer over ftrain's"
        goals.append(over(found, best, "at least", 8.0, TORCH_PEERS, ours))
        jax = f"{name}: time of ftrain over JAX's jit"
        goals.append(over(found, jax, "at most", 1.0, ours, ["jax"]))
    return goals


def mlp_50(m: Measured) -> list[Goal]:
    found = m.cell(m.work("mlp-50"))
    best = "MLP of 50 layers: time of the best PyTorch peer over ftrain's"
    jax = "MLP of 50 layers: time of ftrain over JAX's jit"
    return [
        over(found, best, "at least", 4.0, TORCH_PEERS, [DONATED]),
        over(found, jax, "at most", 1.2, [DONATED], ["jax"]),
    ]


def eager(m: Measured) -> list[Goal]:
    what = "GPT 0.8 M, eager: time of ftrain over the best eager loop by hand"
    by_hand = [name for name in HAND if name.startswith("eager")]
    found = m.cell(m.work("gpt-0.8m"))
    return [over(found, what, "at most", 1.15, ["ftrain-eager"], by_hand)]


def scan(m: Measured) -> list[Goal]:
    what = "MLP of 3 layers: time of single calls over a scan of 32 steps, a step"
    found = m.cell(m.work("mlp-3"))
    return [over(found, what, "at least", 2.0, [DONATED], ["ftrain-scan", "ftrain-scan-cpp"])]


def accumulate(m: Measured) -> list[Goal]:
    """Measure a step of 16 micro-batches against 16 times the gradients of one micro-batch."""
    k = 16
    one, many = m.work("gpt-0.8m").task(), m.work("gpt-0.8m", accumulate=k).task()
    state = steps(one).init_state(0)
    gradients = ftrain.compile(ftrain.gradients(one.model, one.loss_fn), backend=m.compiler)
    batches = itertools.cycle(one.batches)
    turns = take_turns(
        {
            "step": ours(many, accumulate=k, backend=m.compiler),
            "gradients": lambda: gradients(state, next(batches)),
        },
        rounds=m.rounds,
        seconds=m.seconds,
    )
    ratio = compare_turns(turns.seconds["step"], [k * t for t in turns.seconds["gradients"]])
    what = "GPT 0.8 M: time of a step of 16 micro-batches over 16 times one gradient"
    cold = [_first_calls(m, kind)[0] for kind in ("ours accumulate 16", "ours")]
    note = f"{cold[0]:.3g} s and {cold[1]:.3g} s, empty cache, one turn"
    latency_ = "GPT 0.8 M: compile latency with 16 micro-batches over that with one"
    return [
        Goal(what, "at most", 1.03, ratio.ratio, str(ratio)),
        Goal(latency_, "at most", 1.1, cold[0] / cold[1], note),
    ]


def compile_time(m: Measured) -> list[Goal]:
    """Measure first calls in fresh processes, with an empty and with a full cache."""
    cold, warm = _first_calls(m, "ours")
    by_hand, _ = _first_calls(m, "hand")
    what = "GPT 0.8 M: cold compile, ftrain over the compiled loop by hand"
    return [
        Goal(what, "at most", 1.0, cold / by_hand, f"{cold:.3g} s and {by_hand:.3g} s, one turn"),
        Goal("GPT 0.8 M: first call in a new process, warm cache, s", "at most", 2.0, warm),
        *_saved_program(m),
    ]


def _saved_program(m: Measured) -> list[Goal]:
    if m.compiler != "inductor":  # only machine code is saved
        return []
    sizes = TINY_SIZES if m.quick else GPTS["gpt-0.8m"][0]
    with tempfile.TemporaryDirectory(prefix="ftrain-peers-") as name:
        first = latency.from_saved_program(pathlib.Path(name), sizes)
    what = "GPT 0.8 M: load of a saved program and its first call in a new process, s"
    return [Goal(what, "at most", 2.0, first.call)]


@functools.cache
def _first_calls(m: Measured, kind: latency.Kind) -> tuple[float, float]:
    sizes = TINY_SIZES if m.quick else GPTS["gpt-0.8m"][0]
    with tempfile.TemporaryDirectory(prefix="ftrain-peers-") as name:
        folder = pathlib.Path(name)
        calls = [latency.in_fresh_process(kind, folder, sizes, m.compiler).call for _ in range(2)]
    return calls[0], calls[1]


def nanogpt_run(m: Measured) -> list[Goal]:
    count = 5 if m.quick else 2000
    found = {by: nanogpt.in_fresh_process(by, count, m.compiler) for by in nanogpt.LOOPS}
    what = f"nanoGPT's sizes for a CPU, {count} steps with compile: ftrain over nanoGPT's loop"
    least = count * step_floor(m.work("gpt-0.8m").task()).seconds
    note = "; ".join(f"{by} {seconds:.3g} s" for by, seconds in found.items())
    note += f"; floor {least:.3g} s of steps alone, without compilation and evaluations"
    ratio = found["ftrain"] / found["nanogpt"]
    return [Goal(what, "at most", 0.5, ratio, note, least / found["nanogpt"])]


def peak_memory(m: Measured) -> list[Goal]:
    """Measure the peak memory of a step of an MLP with activations smaller than one weight."""
    width = 64 if m.quick else 2048
    peak, gradients, weight = memory.donated_peak(width, m.compiler)
    what = "MLP, donated: bytes at the peak beyond state and gradients, over those of one weight"
    note = f"peak beyond the state {peak / 2**20:.2f} MiB, gradients {gradients / 2**20:.2f} MiB"
    # A second copy of a weight, moment or gradient would add 1; activations of 16 rows add 0.04.
    return [Goal(what, "at most", 0.5, (peak - gradients) / weight, note)]


GOALS: dict[str, Callable[[Measured], list[Goal]]] = {
    "gpt-torch": gpt_torch,
    "gpt-jax": gpt_jax,
    "gpt-7m": gpt_7m,
    "mlp-3": mlp_3,
    "mlp-50": mlp_50,
    "eager": eager,
    "scan": scan,
    "accumulate": accumulate,
    "compile": compile_time,
    "nanogpt": nanogpt_run,
    "memory": peak_memory,
}
