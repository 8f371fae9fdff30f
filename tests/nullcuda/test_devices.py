"""Advice, memory figures and scalers concern the device of the state (two devices: NC_DEVICES=2)."""

from __future__ import annotations

import pytest
import torch

import ftrain
from ftrain import optim, tree
from ftrain.loop import callbacks, finders
from ftrain.loop.events import Plan, Progress, TrainBegin, WindowEnd
from tests.nullcuda.device import counted, is_null
from tests.zoo import ZOO

DEVICE = f"cuda:{torch.cuda.device_count() - 1}" if is_null() else "cuda:0"


def test_error_about_a_missing_loss_scaler_names_the_device():
    steps = [
        ftrain.make_steps(
            torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1), precision=precision
        )
        for precision in ("32-true", "16-mixed")
    ]
    state = tree.map(lambda leaf: leaf.to(DEVICE), steps[0].init_state(0))
    with pytest.raises(ValueError, match=rf"LossScale\(\).init_state\('{DEVICE}'\)"):
        steps[1].train_step(state, torch.ones(4, 3, device=DEVICE))


@pytest.mark.inductor
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices (NC_DEVICES=2)")
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled_step_runs_on_the_second_device_alone(mode: str | None) -> None:
    case = ZOO["mlp"]
    steps = ftrain.make_steps(case.model, case.loss_fn, optim.adamw(1e-3), precision="16-mixed")
    state, batches = tree.map(
        lambda leaf: leaf.to("cuda:1"),
        (steps.init_state(0), [case.batch(seed, 8) for seed in range(6)]),
    )
    step = ftrain.compile(steps.train_step, donate=True, mode=mode)
    before = torch.cuda.memory_allocated(0)
    for batch in batches[:5]:
        state, _ = step(state, batch)
    with counted() as counts:
        outputs = step(state, batches[5])
    assert (counts.waits, counts.bad_captures) == (0, 0)
    assert counts.graphs == (mode is not None)
    assert {leaf.device for leaf in tree.leaves(outputs)} == {torch.device("cuda:1")}
    assert torch.cuda.memory_allocated(0) == before
    assert torch.cuda.current_device() == 0


def test_memory_monitor_reports_the_device_of_the_state():
    monitor = callbacks.MemoryMonitor()
    held = torch.empty(64 << 20, dtype=torch.uint8, device=DEVICE)
    plan = Plan(1, None, 1, 1, None, devices=(DEVICE,))
    monitor(None, TrainBegin(Progress(), 0.0, None, plan))
    end = WindowEnd(Progress(), 0.0, None, {}, 1, 1, 0, 1.0)
    _, (log,) = monitor(None, end)
    peak = log.values["memory/peak_mib"]
    assert peak == torch.cuda.max_memory_allocated(DEVICE) / 2**20
    assert peak >= held.numel() / 2**20


def test_batch_size_finder_reports_the_device_of_the_state():
    def step(state, batch):
        kept = torch.empty(len(batch) << 20, dtype=torch.uint8, device=DEVICE)
        return state, {"bytes": kept.numel()}

    state = {"w": torch.zeros(1, device=DEVICE)}
    found = finders.batch_size(
        step, state, lambda size: torch.zeros(size, device=DEVICE), highest=32
    )
    assert found.size == 32
    assert found.trials[-1].peak_bytes >= 32 << 20
