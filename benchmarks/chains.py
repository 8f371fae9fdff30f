"""Cost of an optimizer chain (AdamW, clipping, schedule, weight average), compared with plain AdamW.

    python -m benchmarks.chains

Two ratios are measured for one model with 300 parameters (150 layers with biases), compiled and donated:
of whole training steps (forward, backward, the gradients' norm that a step reports, the update), and of
the update alone. The second ratio has a floor, the memory that must be moved, which is reported too.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

import ftrain
from benchmarks.measure import Report, arguments, take_turns
from ftrain import optim

Kind = Literal["alone", "chain"]
Backend = Literal["inductor", "eager"]
TITLES: dict[Kind, str] = {"alone": "AdamW", "chain": "AdamW + clip + schedule + EMA"}
CHILD_LIMIT = 1800  # seconds


class Size(NamedTuple):
    """Sizes of the benchmarked model, a stack of linear layers with `2 * layers` parameter tensors."""

    layers: int = 150
    width: int = 64
    batch: int = 64


class Residual(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size.width, size.width) for _ in range(size.layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x).relu() / len(self.layers)
        return x


def optimizer_of(kind: Kind) -> optim.GradientTransformation:
    if kind == "alone":
        return optim.adamw(1e-3, weight_decay=0.1)
    schedule = optim.warmup_cosine(1e-3, 100, 10_000)
    return optim.ema(
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(schedule, weight_decay=0.1)), 0.999
    )


def whole_step(kind: Kind, size: Size, backend: Backend) -> Callable[[], torch.Tensor]:
    """Return a function that runs one training step per call, always on the same batch."""
    init_state, train_step, _ = ftrain.make_steps(
        lambda: Residual(size),
        lambda model, batch: (model(batch) - 1).square().mean(),
        optimizer_of(kind),
    )
    state: Any = init_state(0)
    batch = torch.randn(size.batch, size.width, generator=torch.Generator().manual_seed(0))
    step = ftrain.compile(train_step, donate=True, backend=backend)

    def one() -> torch.Tensor:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return one


@ftrain.tree.register_dataclass
class Moving:
    """State that an optimizer update replaces: parameters and optimizer state."""

    params: dict[str, torch.Tensor]
    opt_state: Any


def update_alone(kind: Kind, size: Size, backend: Backend) -> Callable[[], object]:
    """Return a function that runs one optimizer update per call, always with the same gradients."""
    optimizer = optimizer_of(kind)
    params = {name: p.detach().clone() for name, p in Residual(size).named_parameters()}
    grads = {name: p / 100 for name, p in params.items()}
    moving: Any = Moving(params, optimizer.init(params))

    def update(old: Moving, grads: dict[str, torch.Tensor]) -> tuple[Moving, torch.Tensor]:
        updates, new = optimizer.update(grads, old.opt_state, old.params)
        return Moving(optim.apply_updates(old.params, updates), new), optim.global_norm(grads)

    step = ftrain.compile(update, donate=True, backend=backend)

    def one() -> object:
        nonlocal moving
        moving, norm = step(moving, grads)
        return norm

    return one


def run(quick: bool = False, *, size: Size | None = None, backend: Backend = "inductor") -> Report:
    size = size or Size()
    report = Report("chains", f"A chain in the step's graph, {2 * size.layers} parameters")
    rounds, seconds = (2, 0.0) if quick else (15, 0.3)

    for key, what, make, target in (
        ("step", "a training step", whole_step, True),
        ("update", "the update alone", update_alone, False),
    ):
        turns = take_turns(
            {TITLES[kind]: make(kind, size, backend) for kind in TITLES},
            rounds=rounds,
            seconds=seconds,
        )
        report.section(f"{what}, width {size.width}, batch {size.batch}, in")
        report.turns(key, turns)
        ratio = turns.ratio(TITLES["chain"], TITLES["alone"])
        low, high = turns.spread(TITLES["chain"], TITLES["alone"])
        if target:
            report.target(f"{what}: the chain over AdamW", ratio, "at most", 1.15)
        else:
            report.figure(f"{key}: ratio", ratio, "x", f"{what}: the chain over AdamW")
            report.note(
                "floor: AdamW moves 7 numbers an element (reads p, g, m, v, writes p, m, v), the norm "
                "reads one more; the average reads and writes one: (8 + 2) / 8 = 1.25 where memory is "
                "the limit"
            )
        report.note(f"quartiles of the ratio {low:.2f} to {high:.2f}")
    _latency(report, 1 if quick else 2, size, backend)
    return report


def _latency(report: Report, rounds: int, size: Size, backend: Backend) -> None:
    """Report the time of the first step, including compilation, in new processes with empty caches."""
    found: dict[Kind, list[tuple[float, float]]] = {kind: [] for kind in TITLES}
    for turn in range(rounds):
        for kind in list(TITLES)[:: -1 if turn % 2 else 1]:
            found[kind].append(_in_fresh_process(kind, size, backend))
    report.section("cold: seconds from the call of the first step to its result")
    for kind, times in found.items():
        wall, work = (statistics.median(column) for column in zip(*times, strict=True))
        report.figure(f"cold: {kind}", wall, "s", f"{TITLES[kind]} (processor time {work:.1f})")
    for index, what, is_target in ((0, "", False), (1, ", processor time", True)):
        ratios = [c[index] / a[index] for c, a in zip(found["chain"], found["alone"], strict=True)]
        ratio = statistics.median(ratios)
        if is_target:
            report.target(f"cold compile{what}: the chain over AdamW", ratio, "at most", 1.3)
        else:
            report.figure("cold: ratio", ratio, "x", f"cold compile{what}: the chain over AdamW")


def _in_fresh_process(kind: Kind, size: Size, backend: Backend) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="ftrain-chains-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.chains", "--child", json.dumps([kind, size, backend])],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "FTRAIN_CACHE_DIR": folder,
                 "TMPDIR": folder},
            cwd=pathlib.Path(__file__).parent.parent,
            capture_output=True, text=True, timeout=CHILD_LIMIT, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{kind} failed:\n{done.stderr[-3000:]}")
    wall, work = json.loads(done.stdout.splitlines()[-1])
    return wall, work


def child(kind: Kind, size: Size, backend: Backend) -> tuple[float, float]:
    """Run the first step in this process; return its wall-clock and processor seconds."""
    step = whole_step(kind, size, backend)
    start, before = time.perf_counter(), _work()
    step().item()
    return time.perf_counter() - start, _work() - before


def _work() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        wanted = json.loads(sys.argv[2])
        print(json.dumps(child(wanted[0], Size(*wanted[1]), wanted[2])), flush=True)
    else:
        options = arguments(__doc__)
        finished = run(options.quick)
        if not options.no_save:
            finished.save()
