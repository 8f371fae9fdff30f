"""Speed of a sweep: many models in one graph, compared with the same models one after another.

    python -m benchmarks.sweep

The models are MLPs of three 16-wide layers on batches of 8, with AdamW and clipping by norm, and
LeNet-5 on batches of 8 and 32 images, one batch for all models. Each contender trains n models for one
step: as one compiled graph; with ftrain's single compiled step, called once for each model; and with
eager loops written by hand, of which the fastest of three counts. All run on one thread: at these sizes,
waiting for a second thread costs more than it saves, especially on a busy machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

import ftrain
from benchmarks.contenders import HandUpdate, Task, hand_written, mlp_task, steps
from benchmarks.measure import Report, arguments, take_turns
from ftrain import transforms
from ftrain.tasks import models

Backend = Literal["inductor", "eager"]

UPDATES: tuple[HandUpdate, ...] = ("fused", "foreach", "single")
GRAPH, SINGLE = "one graph", "single compiled steps"


def run(
    quick: bool = False, *, sizes: Sequence[int] = (1, 4, 8, 32, 128), backend: Backend = "inductor"
) -> Report:
    report = Report("sweep", "Speed of many models in one graph")
    rounds, seconds = (2, 0.0) if quick else (9, 0.1)
    most = max(n for n in sizes if n <= 32)
    for n in sizes:
        compare(report, "mlp", mlp_task(), n, rounds, seconds, backend, (10.0, 6.0), n == most)
    count = 2 if quick else 16
    for rows in (8, 32):  # at 32, convolutions take nearly all of the time
        name, task = f"lenet5 of {rows} images", lenet5(rows)
        compare(report, name, task, count, rounds, seconds, backend, (2.0, None), rows == 8)
    return report


def compare(
    report: Report,
    name: str,
    task: Task,
    n: int,
    rounds: int,
    seconds: float,
    backend: Backend,
    bounds: tuple[float, float | None],
    is_target: bool,
) -> None:
    """Time one step of `n` models; print times, and ratios beside their bounds if they are targets."""
    by_hand = {f"by hand: {update} AdamW": loops(task, n, update) for update in UPDATES}
    contenders = {GRAPH: graph(task, n, backend), SINGLE: singles(task, n, backend), **by_hand}
    turns = take_turns(contenders, rounds=rounds, seconds=seconds)
    report.section(f"{n} x {name}, a step of all in")
    report.turns(f"{name} {n}", turns)
    rivals = (turns.fastest(list(by_hand)), SINGLE)
    for rival, bound in zip(rivals, bounds, strict=True):
        ratio, what = turns.ratio(rival, GRAPH), f"{n} x {name}: speed over {rival}"
        if is_target and bound is not None:
            report.target(what, ratio, "at least", bound)
        report.figure(f"{name} {n}: speedup over {rival}", ratio, "x", what)


def graph(task: Task, n: int, backend: Backend) -> Callable[[], object]:
    """Return a step of all models as one compiled graph."""
    swept = transforms.sweep(steps(task), n)
    states = swept.init_state(0)
    step = ftrain.compile(swept.train_step, donate=True, backend=backend)
    batches = itertools.cycle(task.batches)

    def one() -> object:
        nonlocal states
        states, metrics = step(states, next(batches))
        return metrics

    return one


def singles(task: Task, n: int, backend: Backend) -> Callable[[], object]:
    """Return a step of all models by one compiled program, which is called once for each model."""
    init_state, train_step, _ = steps(task)
    states = [init_state(seed) for seed in range(n)]
    step = ftrain.compile(train_step, donate=True, backend=backend)
    batches = itertools.cycle(task.batches)

    def one() -> object:
        batch, metrics = next(batches), None
        for i in range(n):
            states[i], metrics = step(states[i], batch)
        return metrics

    return one


def loops(task: Task, n: int, update: HandUpdate) -> Callable[[], object]:
    """Return a step of all models by eager loops written by hand."""
    each = [hand_written(task, "eager", update, seed=seed) for seed in range(n)]
    return lambda: [step() for step in each]


def lenet5(rows: int) -> Task:
    g = torch.Generator().manual_seed(0)
    batches = [
        {
            "x": torch.randn(rows, 1, 32, 32, generator=g),
            "y": torch.randint(10, (rows,), generator=g),
        }
        for _ in range(8)
    ]
    return Task(models.LeNet5, _class_loss, batches)


def _class_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


if __name__ == "__main__":
    options = arguments(__doc__)
    torch.set_num_threads(1)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
