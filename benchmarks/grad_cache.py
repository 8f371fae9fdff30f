"""Memory and time of a contrastive step by GradCache, against the loss of the whole batch in one graph.

    python -m benchmarks.grad_cache

The model has two towers of two feed-forward blocks of width 128 on 32 tokens, with dropout. It is
trained by InfoNCE with a trained temperature and AdamW, in chunks of 64 rows of embeddings and of
scores. Peak memory is counted beyond state and batch. Time is processor time, so that other processes
cost only what they do to the caches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import ftrain
from benchmarks.measure import Report, Turns, arguments
from benchmarks.memory import MIB
from ftrain import optim
from ftrain.bench import allocated
from ftrain.tasks import functional, grad_cache

CHUNK, LENGTH, VOCABULARY = 64, 32, 1000
CACHED, WHOLE = "GradCache", "one graph"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(4 * width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Tower(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(Block(width), Block(width))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.tokens(ids)).mean(1)
        return out


class Towers(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.document = Tower(width), Tower(width)
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))


def of_embeddings(model: Any, embeddings: Any, batch: Any, chunk_size: int = CHUNK) -> Any:
    return functional.info_nce(
        embeddings["query"],
        embeddings["document"],
        temperature=model.log_temperature.exp(),
        chunk_size=chunk_size,
    )


def whole(model: Any, batch: Any) -> Any:
    both = {name: getattr(model, name)(ids) for name, ids in batch.items()}
    return of_embeddings(model, both, batch, 0)


LOSSES = {
    CACHED: grad_cache({"query": "query", "document": "document"}, of_embeddings, chunk_size=CHUNK),
    WHOLE: whole,
}


def run(
    quick: bool = False,
    *,
    width: int = 128,
    backend: Literal["inductor", "eager"] = "inductor",
    compiled: bool = True,
) -> Report:
    report = Report("grad_cache", "A contrastive step in chunks")
    torch.set_num_threads(1)
    model = functools.partial(Towers, width)
    steps = {
        name: ftrain.make_steps(model, loss_fn, optim.adamw(1e-3))
        for name, loss_fn in LOSSES.items()
    }

    def call(name: str, rows: int, step: Callable[..., Any]) -> Callable[[], Any]:
        state = steps[name].init_state(0)
        batch = {
            side: torch.randint(0, VOCABULARY, (rows, LENGTH)) for side in ("query", "document")
        }
        return lambda: step(state, batch)

    report.section("Peak memory of an eager step beyond its state and batch")
    sizes = {CACHED: (64, 128) if quick else (64, 512, 4096), WHOLE: (64, 256)}
    peaks: dict[tuple[str, int], float] = {}
    for name, rows in sizes.items():
        for n in rows:
            one = call(name, n, steps[name].train_step)
            one()
            peaks[name, n] = allocated(one).peak / MIB
            report.figure(f"memory: {name}, {n}", peaks[name, n], "MiB", f"{name}, {n} rows")
    most = max(sizes[CACHED])
    growth = peaks[CACHED, most] / peaks[CACHED, 64]
    report.target(f"{CACHED}: {most} rows over 64", growth, "at most", 1.25)
    growth = peaks[WHOLE, 256] / peaks[WHOLE, 64]
    report.figure("memory: growth of one graph", growth, "x", f"{WHOLE}: 256 rows over 64")

    kinds: dict[str, Callable[[Any], Any]] = {"eager": lambda step: step}
    if compiled:
        kinds["compiled"] = lambda step: ftrain.compile(step, backend=backend)
    for kind, made in kinds.items():
        report.section(f"Time of a step of 256 rows, {kind}, in")
        contenders = {name: call(name, 256, made(steps[name].train_step)) for name in LOSSES}
        turns = _turns(contenders, 2 if quick else 7)
        report.turns(kind, turns)
        ratio = turns.ratio(CACHED, WHOLE)
        report.target(f"{kind}: GradCache over one graph", ratio, "at most", 1.5)
        for name, one in contenders.items() if kind == "compiled" else ():
            peak = allocated(one).peak / MIB
            report.figure(f"memory: {name}, compiled", peak, "MiB", f"{name}, peak memory")
    return report


def _turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> Turns:
    """Return the processor time of each contender in each round, after one call that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for one in contenders.values():
        one()
    for _ in range(rounds):
        for name, one in contenders.items():
            start = time.process_time()
            one()
            found[name].append(time.process_time() - start)
    return Turns(found)


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
