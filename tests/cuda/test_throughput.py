"""Time of a step against hand-written loops on a GPU, in turns within one run; prints the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.contenders import Sizes, Task, gpt_task, hand_written, mlp_task, ours
from ftrain import tree
from ftrain.bench.machine import machine
from ftrain.bench.turns import event_times, take_turns
from tests.nullcuda.device import is_null

#: A step of ftrain may take this many times as long as the fastest hand-written loop.
SLOWEST = 1.1

TASKS: dict[str, Callable[[], Task]] = {
    "mlp": lambda: mlp_task(width=256, batch=64),
    "gpt": lambda: gpt_task(Sizes(layers=6, heads=6, width=384, context=256, batch=16)),
}
BY_HAND = {
    "by hand, eager, fused AdamW": ("eager", "fused"),
    "by hand, compiled loss, fused AdamW": ("compiled loss", "fused"),
}


def on_cuda(task: Task) -> Task:
    batches = [tree.map(torch.Tensor.cuda, batch) for batch in task.batches]
    return dataclasses.replace(task, model=lambda: task.model().cuda(), batches=batches)


@pytest.mark.inductor
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", TASKS)
def test_step_is_as_fast_as_the_best_hand_written_loop(
    name: str, precision: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the null device, every contender runs (without machine code), and times say nothing."""
    torch.use_deterministic_algorithms(False)  # the fixture restores it
    task = on_cuda(mlp_task() if is_null() else TASKS[name]())
    options: dict[str, Any] = {"backend": "eager" if is_null() else "inductor"}
    contenders = {
        label: hand_written(task, *how, precision=precision, **options)
        for label, how in BY_HAND.items()
    }
    contenders |= {
        "ftrain, eager": ours(task, compiled=False, precision=precision),
        "ftrain, compiled, donated": ours(task, precision=precision, **options),
        "ftrain, one CUDA graph": ours(
            task, mode="reduce-overhead", precision=precision, **options
        ),
    }
    few = is_null()
    turns = take_turns(
        contenders, rounds=2 if few else 7, seconds=0.0 if few else 0.3, warmup=6, timer=event_times
    )
    with capsys.disabled():
        print(f"\n{name}, {precision}, {machine('cuda')['device']}, torch {torch.__version__}")
        for label in contenders:
            print(f"  {label:<40}{turns.median(label) * 1e6:10.1f} µs")
    if is_null():
        return
    best = turns.fastest(list(BY_HAND))
    mine = turns.fastest([label for label in contenders if label.startswith("ftrain")])
    assert turns.ratio(mine, best) <= SLOWEST
