"""Time to draw a dropout mask of a million elements from a key, compared with torch's generator.

    python -m benchmarks.draws

Four cases are timed: the mask alone and the whole dropout, eager and compiled. The rival is torch's
fastest way to compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

import ftrain
from benchmarks.measure import Report, arguments, take_turns

KEEP, DROP = 0.9, 0.1


def run(
    quick: bool = False,
    *,
    numbers: int = 1_000_000,
    backend: Literal["inductor", "eager"] = "inductor",
) -> Report:
    report = Report("draws", "Draws from a key against torch's generator")
    rounds, seconds = (2, 0.0) if quick else (21, 0.2)
    key, x = ftrain.random.key(0), torch.randn(numbers)

    def mask(key: torch.Tensor) -> torch.Tensor:
        return ftrain.random.bernoulli(key, KEEP, (numbers,))

    def dropout(key: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with ftrain.random.keyed(key):
            return F.dropout(x, DROP)

    def torch_dropout(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, DROP)

    def bool_mask() -> torch.Tensor:
        return torch.empty(numbers, dtype=torch.bool).bernoulli_(KEEP)

    def below() -> torch.Tensor:
        return torch.rand(numbers) < KEEP

    masks: dict[str, Callable[[], Any]] = {
        "torch: empty(bool).bernoulli_": bool_mask,
        "torch: empty(float32).bernoulli_": lambda: torch.empty(numbers).bernoulli_(KEEP),
        "torch: rand < p": below,
    }
    _pair(report, "mask, eager", masks, lambda: mask(key), 1.5, rounds, seconds)
    eager = {"torch: F.dropout": lambda: torch_dropout(x)}
    _pair(report, "dropout, eager", eager, lambda: dropout(key, x), 1.5, rounds, seconds)

    torch._dynamo.reset()
    compiled = {
        "torch.compile: empty(bool).bernoulli_": _torch_compiled(bool_mask, backend),
        "torch.compile: rand < p": _torch_compiled(below, backend),
    }
    ours = ftrain.compile(mask, backend=backend)
    _pair(report, "mask, compiled", compiled, lambda: ours(key), 1.0, rounds, seconds)

    by_torch = _torch_compiled(torch_dropout, backend)
    by_us = ftrain.compile(dropout, backend=backend)
    contenders = {"torch.compile: F.dropout": lambda: by_torch(x)}
    _pair(report, "dropout, compiled", contenders, lambda: by_us(key, x), 1.0, rounds, seconds)
    report.note("before: Threefry as plain torch operators took 12 times torch.rand in eager mode")
    return report


def _torch_compiled(fn: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return torch.compile(fn, fullgraph=True, dynamic=False, backend=backend)


def _pair(
    report: Report,
    what: str,
    rivals: dict[str, Callable[[], Any]],
    ours: Callable[[], Any],
    bound: float,
    rounds: int,
    seconds: float,
) -> None:
    turns = take_turns(rivals | {"ftrain": ours}, rounds=rounds, seconds=seconds)
    report.section(f"A million-element {what}, in")
    report.turns(what, turns)
    rival = turns.fastest(list(rivals))
    report.target(f"{what}: time over {rival}", turns.ratio("ftrain", rival), "at most", bound)
    low, high = turns.spread("ftrain", rival)
    report.note(f"quartiles of the ratio {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
