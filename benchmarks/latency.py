"""Compile latency: the time of the first call, in a fresh process with an empty cache.

    python -m benchmarks.latency

"Cold" is a process with an empty inductor cache, "warm" a second process with the cache of the first,
"saved" a process that loads the program which another one compiled and saved.
The clock starts at the call of the first training step, when model, state and batch exist already. The
time from the start of the process (which imports torch and builds the model) is reported as well.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any, Literal, NamedTuple

import torch
import torch._inductor.config

import ftrain
from benchmarks.contenders import Sizes, Step, gpt_task, hand_written, ours, steps
from benchmarks.measure import Report, arguments
from ftrain.bench import run_fresh

Kind = Literal["ours", "ours dropout", "ours attention dropout", "hand", "ours accumulate 16"]
TITLES: dict[Kind, str] = {
    "ours": "ftrain, compiled and donated",
    "ours dropout": "ftrain, dropout 0.1 twice in every block",
    "ours attention dropout": "ftrain, dropout 0.1 twice in every block and in attention",
    "hand": "by hand: torch.compile of model and loss, fused AdamW",
    "ours accumulate 16": "ftrain, 16 micro-batches",
}
KINDS: tuple[Kind, ...] = ("ours", "ours dropout", "ours attention dropout", "hand")
DROPOUT = 0.1
CHILD_LIMIT = 300  # seconds


class First(NamedTuple):
    """Times of a new process that runs one training step, in seconds.

    Attributes:
        call: from the call of the step to its result.
        process: from the start of the process to the result.
        work: processor time of all cores, compilers included; other load hardly changes it.
    """

    call: float
    process: float
    work: float


def first_step(kind: Kind, sizes: Sizes, backend: Literal["inductor", "eager"]) -> float:
    """Run the first training step in this process; return the seconds from its call to its result."""
    step = _step(kind, sizes, backend)
    start = time.perf_counter()
    step().item()
    return time.perf_counter() - start


def saved_step(program: pathlib.Path, sizes: Sizes) -> float:
    """Save the program of the training step, or load it and run its first step; return the seconds."""
    task = gpt_task(sizes)
    init_state, train_step, _ = steps(task)
    state, batch = init_state(0), task.batches[0]
    start = time.perf_counter()
    if program.exists():
        _, metrics = ftrain.load_executable(program)(state, batch)
    else:
        step = ftrain.compile(train_step, donate=True, cpp_wrapper=True)
        executable = step.lower(state, batch).compile()
        _, metrics = executable(state, batch)
        executable.save(program)
    metrics["loss"].item()
    return time.perf_counter() - start


def _step(kind: Kind, sizes: Sizes, backend: Literal["inductor", "eager"]) -> Step:
    if kind == "hand":
        return hand_written(gpt_task(sizes), "compiled loss", "fused", backend=backend)
    if kind == "ours dropout":
        sizes = dataclasses.replace(sizes, dropout=DROPOUT)
    elif kind == "ours attention dropout":
        sizes = dataclasses.replace(sizes, dropout=DROPOUT, attention_dropout=DROPOUT)
    elif kind == "ours accumulate 16":
        sizes = dataclasses.replace(sizes, batch=16 * sizes.batch)
        return ours(gpt_task(sizes), backend=backend, accumulate=16)
    return ours(gpt_task(sizes), backend=backend)


def in_fresh_process(
    kind: Kind,
    cache: pathlib.Path,
    sizes: Sizes | None = None,
    backend: Literal["inductor", "eager"] = "inductor",
) -> First:
    """Run `first_step` in a new process with a given cache directory for compiled code."""
    return _in_process({"kind": kind, "sizes": sizes, "backend": backend}, cache)


def from_saved_program(folder: pathlib.Path, sizes: Sizes | None = None) -> First:
    """Run the first step of a program that another process compiled and saved."""
    wanted = {"program": str(folder / "step.program"), "sizes": sizes}
    _in_process(wanted, folder)
    return _in_process(wanted, folder / "unused")


def _in_process(wanted: dict[str, Any], cache: pathlib.Path) -> First:
    wanted = {**wanted, "sizes": dataclasses.asdict(wanted["sizes"] or Sizes())}
    command = [sys.executable, "-m", "benchmarks.latency", "--child", json.dumps(wanted)]
    root = pathlib.Path(__file__).parent.parent
    done = run_fresh(command, cache, folder=root, limit=CHILD_LIMIT)
    found = json.loads(done.output)
    return First(found["call"], found["end"] - done.started, done.work)


def child(wanted: dict[str, Any]) -> None:
    sizes = Sizes(**wanted["sizes"])
    if "program" in wanted:
        seconds = saved_step(pathlib.Path(wanted["program"]), sizes)
    else:
        seconds = first_step(wanted["kind"], sizes, wanted["backend"])
    print(json.dumps({"call": seconds, "end": time.time()}), flush=True)


def run(
    quick: bool = False,  # one turn is as quick as it gets
    *,
    sizes: Sizes | None = None,
    backend: Literal["inductor", "eager"] = "inductor",
    kinds: tuple[Kind, ...] = KINDS,
) -> Report:
    report = Report("latency", "Compile latency of the GPT step, 0.8 M parameters")
    report.note(f"TORCHINDUCTOR_COMPILE_THREADS {torch._inductor.config.compile_threads}")
    cold: dict[Kind, list[First]] = {kind: [] for kind in kinds}
    warm: dict[Kind, list[First]] = {kind: [] for kind in kinds}
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="ftrain-latency-") as folder:
            cold[kind].append(in_fresh_process(kind, pathlib.Path(folder), sizes, backend))
            warm[kind].append(in_fresh_process(kind, pathlib.Path(folder), sizes, backend))
    for name, found in (("cold", cold), ("warm", warm)):
        report.section(f"{name}: seconds from the call of the first step to its result")
        for kind, times in found.items():
            process = statistics.median(first.process for first in times)
            work = statistics.median(first.work for first in times)
            what = f"{TITLES[kind]} ({process:.1f} from the start of the process; work {work:.1f})"
            report.figure(f"{name}: {kind}", _call(times), "s", what)
            report.content["figures"][f"{name}: {kind}"]["all"] = [list(first) for first in times]
    if backend == "inductor":
        with tempfile.TemporaryDirectory(prefix="ftrain-latency-") as folder:
            saved = from_saved_program(pathlib.Path(folder), sizes)
        what = f"{TITLES['ours']}, a program that was saved ({saved.process:.1f} from the start)"
        report.section(
            "saved: seconds from the load of the program to the result of its first step"
        )
        report.figure("saved: ours", saved.call, "s", what)
    _targets(report, cold, warm)
    return report


def _targets(report: Report, cold: dict[Kind, list[First]], warm: dict[Kind, list[First]]) -> None:
    if "hand" in cold:
        ratio = _ratio(cold["ours"], cold["hand"])
        report.target("cold: ftrain over the loop by hand", ratio, "at most", 1.5)
    report.target("warm: seconds from call to result", _call(warm["ours"]), "at most", 6.0)
    for kind in ("ours dropout", "ours attention dropout"):
        if kind in cold:
            ratio = _ratio(cold[kind], cold["ours"])
            report.target(f"cold: {TITLES[kind]}, over without", ratio, "at most", 1.3)
    report.note("before: one graph 33.7 s cold, the loop by hand 31.4; warm 3.9 s")


def _call(times: list[First]) -> float:
    return statistics.median(first.call for first in times)


def _ratio(numerator: list[First], denominator: list[First]) -> float:
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(a.call / b.call for a, b in pairs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        options = arguments(__doc__)
        finished = run(options.quick)
        if not options.no_save:
            finished.save()
