"""Test context managers that count compilations, host syncs and memory, and restore what they change."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from ftrain import compile, make_steps, optim
from ftrain.core.compile._observers import observed, observers
from ftrain.testing import (
    assert_max_compiles,
    assert_no_host_sync,
    assert_peak_memory,
    deterministic,
)
from ftrain.testing._global_state import changes, world


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


STEPS = make_steps(
    lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1)),
    loss_fn,
    optim.adamw(optim.warmup_cosine(1e-3, 2, 10)),
)
BATCH = torch.ones(3, 4)


def test_max_compiles_counts_one_program_over_a_run_with_a_schedule() -> None:
    step, state = compile(STEPS.train_step, backend="eager"), STEPS.init_state(0)
    with assert_max_compiles(1) as compiles:
        for _ in range(3):
            state, _ = step(state, BATCH)
    assert compiles.count == 1
    with assert_max_compiles(0):
        step(state, BATCH)


def test_max_compiles_names_function_line_and_reason_of_each_program() -> None:
    step, state = compile(STEPS.train_step, backend="eager"), STEPS.init_state(0)
    step(state, BATCH)
    with pytest.raises(AssertionError) as caught, warnings.catch_warnings(action="ignore"):
        with assert_max_compiles(0):
            step(state, torch.ones(5, 4))
    message = str(caught.value)
    assert message.startswith("expected at most 0 compilations, got 1:\n`train_step`, called at")
    assert "test_counters.py" in message
    assert "step(state, torch.ones(5, 4))" in message
    assert re.search(r"batch.*3.*5", message)


def test_max_compiles_counts_graphs_of_torch_compile() -> None:
    double = torch.compile(lambda x: 2 * x, backend="eager")
    with assert_max_compiles(1) as compiles:
        double(torch.ones(2))
        double(torch.ones(2))
    assert compiles.graphs == 1
    with pytest.raises(AssertionError, match="1 graphs of torch.compile"):
        with assert_max_compiles(0):
            double(torch.ones(2, dtype=torch.float64))


def test_max_compiles_does_not_hide_an_error_of_the_block() -> None:
    def fail() -> None:
        compile(lambda x: x + 1, backend="eager")(torch.ones(1))
        raise KeyError

    with pytest.raises(KeyError), assert_max_compiles(0):
        fail()


def test_counters_remove_their_observers_at_the_end_of_the_block() -> None:
    with assert_max_compiles(5), assert_no_host_sync():
        assert len(observers) == 2
    assert observers == []


READS: dict[str, Any] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "branch": lambda x: 1 if x.sum() > 0 else 0,
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "print": lambda x: str(x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "written mask": lambda x: x.clone().__setitem__(x > 0, 1.0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1])),
}


def test_vmap_works_after_no_host_sync_has_raised_for_a_printed_tensor() -> None:
    with pytest.raises(AssertionError, match="__repr__") as held, assert_no_host_sync():
        print(torch.ones(2))
    rows = torch.vmap(lambda x: x.sum())(torch.ones(3, 2))
    assert rows.tolist() == [2.0, 2.0, 2.0], held


@pytest.mark.parametrize("name", READS)
def test_no_host_sync_raises_at_every_read(name) -> None:
    with pytest.raises(AssertionError, match="expected no read of a tensor's value") as caught:
        with assert_no_host_sync():
            READS[name](torch.tensor([1.0, 2.0, 3.0]))
    assert f'"{name}": lambda' in str(caught.value)


def test_no_host_sync_allows_reads_while_a_program_is_compiled() -> None:
    with assert_no_host_sync():
        with observed("step", ""):
            torch.ones(1).item()
        with pytest.raises(AssertionError, match="expected no read"):
            torch.ones(1).item()


def test_no_host_sync_restores_the_methods_of_tensors() -> None:
    before = {name: vars(torch.Tensor).get(name) for name in ("tolist", "numpy", "__array__")}
    with assert_no_host_sync():
        assert vars(torch.Tensor).get("tolist") is not before["tolist"]
    assert {name: vars(torch.Tensor).get(name) for name in before} == before
    assert torch.ones(2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("index", [torch.tensor([0, 2]), slice(1), [0, 1]])
def test_no_host_sync_allows_indices_of_known_size(index) -> None:
    with assert_no_host_sync():
        torch.ones(3)[index]


@pytest.mark.parametrize("backend", [None, "eager"])
def test_no_host_sync_passes_on_training_with_the_compilation_inside(backend) -> None:
    step = STEPS.train_step if backend is None else compile(STEPS.train_step, backend=backend)
    state = STEPS.init_state(0)
    with assert_no_host_sync():
        for _ in range(2):
            state, metrics = step(state, BATCH)
    with pytest.raises(AssertionError, match="expected no read"), assert_no_host_sync():
        float(metrics["loss"])


@pytest.mark.inductor
def test_no_host_sync_passes_on_inductor_steps_with_the_compilation_inside() -> None:
    doubled = compile(lambda x: 2 * x)
    with assert_no_host_sync():
        doubled(torch.ones(3))
        doubled(torch.ones(3))


def test_no_host_sync_sees_a_read_in_the_loss_of_an_eager_step() -> None:
    def reading(model: Any, batch: Any) -> torch.Tensor:
        loss = model(batch).square().mean()
        if loss.detach() > 1e9:
            loss = 2 * loss
        return loss

    steps = make_steps(lambda: torch.nn.Linear(4, 1), reading, optim.sgd(0.1))
    state = steps.init_state(0)
    with pytest.raises(AssertionError, match=r"if loss.detach\(\) > 1e9"), assert_no_host_sync():
        steps.train_step(state, BATCH)


def test_peak_memory_measures_temporaries_and_names_the_limit() -> None:
    x = torch.zeros(1000, 100)
    with assert_peak_memory(None) as memory:
        y = (x + 1) * 2
    assert memory.peak is not None
    assert 800_000 <= memory.peak < 801_000
    with pytest.raises(AssertionError, match=r"at most 500,000 bytes .* on cpu, got 800,0"):
        with assert_peak_memory(500_000):
            y = (x + 1) * 2
    del y
    with assert_peak_memory(500_000):
        x.add(1)


def test_peak_memory_refuses_a_device_that_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="expected 'cpu' or a CUDA device, got 'meta'"):
        with assert_peak_memory(1, device="meta"):
            pass


def test_deterministic_sets_and_restores_its_settings() -> None:
    before = world()
    torch.rand(1), np.random.rand(), random.random()
    start = world()
    with deterministic(threads=2, seed=3):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert torch.get_num_threads() == 2
        drawn = torch.rand(2).tolist(), np.random.rand(), random.random()
    assert changes(start) == []
    assert changes(before) != []  # the draws before the block
    with deterministic(seed=3):
        assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == drawn


def test_deterministic_restores_its_settings_after_an_error() -> None:
    start = world()
    with pytest.raises(KeyError), deterministic(threads=2, seed=0):
        raise KeyError
    assert changes(start) == []
