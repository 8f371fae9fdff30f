"""Cost of digests in the log, and of recording a step, for a GPT of 0.8 M parameters.

    python -m benchmarks.digests

A digest is the row of `log_digests`: sha256 of every leaf of state and batch, as JSON. A recorded step
runs operator by operator with digest, norm, extremes and source line of every result. Time is the
processor time of the one thread that does all the work, so that other processes cost only what they do
to the caches.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

import ftrain
from benchmarks.contenders import Sizes, gpt_task
from benchmarks.contenders import steps as steps_of
from benchmarks.measure import Report, Turns, arguments
from ftrain.core import tree
from ftrain.loop.callbacks._digest_row import digest_row
from ftrain.testing import record
from ftrain.testing.divergence.variant import Variant

EVERY = 50  # steps between digests
COMPILED, EAGER = "compiled step", "eager step"
DIGEST = "row of digests"
RECORDED = "eager step, operators recorded"
GRAPH = "compiled step, operators of its graph recorded (it is traced again)"


def run(
    quick: bool = False,
    *,
    sizes: Sizes | None = None,
    backend: Literal["inductor", "eager"] = "inductor",
) -> Report:
    report = Report("digests", "What digests and recorded operators cost")
    torch.set_num_threads(1)
    rounds = 2 if quick else 31
    task = gpt_task(sizes)
    steps = steps_of(task)
    compiled = ftrain.compile(steps.train_step, donate=True, backend=backend)
    held: list[Any] = [compiled(steps.init_state(0), task.batches[0])[0]]
    state, batch = steps.init_state(0), task.batches[1]

    def donated() -> None:
        held[0] = compiled(held[0], batch)[0]

    turns = _turns(
        {
            COMPILED: donated,
            EAGER: lambda: steps.train_step(state, batch),
            DIGEST: lambda: json.dumps(digest_row(state, batch)),
        },
        rounds,
    )
    n_leaves, size = len(tree.leaves(state)), tree.nbytes(state)
    report.section(f"Digests of {n_leaves} leaves, {size / 1e6:.1f} MB, in")
    report.turns("digests", turns)
    share = 100 * turns.ratio(DIGEST, COMPILED) / EVERY
    report.target(f"one digest in {EVERY} steps, % of a compiled step", share, "at most", 1.0)
    share = 100 * turns.ratio(DIGEST, EAGER) / EVERY
    report.target(f"one digest in {EVERY} steps, % of an eager step", share, "at most", 1.0)

    eager, graph = Variant.of(steps), Variant.of(compiled)
    recorded = _turns(
        {
            EAGER: lambda: steps.train_step(state, batch),
            RECORDED: lambda: eager.record(state, batch),
            GRAPH: lambda: graph.record(state, batch),
        },
        min(rounds, 5),
    )
    report.section("A full trace, in")
    report.turns("trace", recorded)
    report.figure("ratio", recorded.ratio(RECORDED, EAGER), "times", "recorded over eager step")
    with tempfile.NamedTemporaryFile() as file:
        trace = record(steps, state, [batch], path=file.name)
        content = len(file.read())
    count = len(trace.steps[0].operators or ())
    report.figure("size", content / 1e3, "kB", f"file of one step with {count} operators")
    return report


def _turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> Turns:
    """Return the processor time of each contender in each round, after one untimed call."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.thread_time()
            call()
            found[name].append(time.thread_time() - start)
    return Turns(found)


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
