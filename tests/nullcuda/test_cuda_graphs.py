"""Compiled steps are replayed as CUDA graphs, or run without one and say why."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, tree
from tests.nullcuda.device import counted

pytestmark = pytest.mark.inductor

MODELS: dict[str, Any] = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.Linear(16, 4)),
    "batchnorm": lambda: nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)),
}


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def on_device(made: Any) -> Any:
    return tree.map(lambda t: t.cuda(), made)


def batch_of(n: int = 8) -> dict[str, torch.Tensor]:
    return {name: torch.randn(n, 4, device="cuda") for name in "xy"}


def steps_of(model: str = "mlp", optimizer: Any = None, **options: Any) -> Any:
    steps = ftrain.make_steps(MODELS[model], loss_fn, optimizer or optim.adamw(1e-3), **options)
    return steps, on_device(steps.init_state(0))


@pytest.mark.parametrize(
    ("model", "optimizer", "options"),
    [
        ("batchnorm", None, {}),
        ("mlp", None, {"accumulate": 4}),
        ("mlp", None, {"precision": "16-mixed"}),
        ("dropout", optim.muon(1e-3), {}),
    ],
    ids=["batchnorm", "accumulate", "16-mixed", "muon-dropout"],
)
def test_donated_step_is_one_cuda_graph_launch_without_a_wait(
    model: str, optimizer: Any, options: dict[str, Any]
) -> None:
    steps, state = steps_of(model, optimizer, **options)
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kept = [batch_of() for _ in range(6)]
        for batch in kept[:5]:
            state, metrics = step(state, batch)
    before = state.step.data_ptr()
    with counted() as counts:
        state, after = step(state, kept[5])
    assert counts.graphs == 1
    assert counts.waits == 0
    assert counts.launches <= 12, counts
    assert state.step.data_ptr() == before
    addresses = [{t.data_ptr() for t in tree.leaves(each)} for each in (metrics, after)]
    assert not addresses[0] & addresses[1]


def test_a_cuda_graph_is_replayed_only_for_shapes_and_state_memory_equal_to_those_captured() -> (
    None
):
    steps, state = steps_of()
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")

    def graphs(state: Any, n: int, size: int = 8) -> tuple[Any, list[int]]:
        found = []
        for _ in range(n):
            batch = batch_of(size)
            with counted() as counts:
                state, _ = step(state, batch)
            found.append(counts.graphs)
        return state, found

    state, found = graphs(state, 5)
    assert found[-1] == 1
    # Another state runs, first without a graph, and is written in its own memory.
    _, found = graphs(on_device(steps.init_state(1)), 5)
    assert found[0] == 0
    assert found[-1] == 1
    # The first one's graph is still there.
    state, found = graphs(state, 2)
    assert found == [1, 1]
    # A leaf that somebody holds is copied, so that the state moves: no graph of other memory is used.
    held = state.params
    state, found = graphs(state, 1)
    assert found == [0]
    del held
    with pytest.warns(ftrain.core.errors.RecompileWarning):
        state, found = graphs(state, 5, size=6)
    assert found[-1] == 1
    assert step.n_compiles == 2


def test_undonated_step_is_replayed_by_cuda_graph_with_new_memory_for_its_outputs() -> None:
    steps, state = steps_of()
    step = ftrain.compile(steps.train_step, mode="reduce-overhead")
    kept, batches = [], [batch_of() for _ in range(9)]  # memory of its own for each
    for batch in batches[:-1]:
        state, metrics = step(state, batch)
        kept.append((state, metrics))
    with counted() as counts:
        kept.append(step(state, batches[-1]))
    assert counts.graphs == 1
    assert counts.waits == 0
    addresses = [t.data_ptr() for each in kept for t in tree.leaves(each)]
    assert len(set(addresses)) == len(addresses)


def test_step_that_waits_for_the_device_runs_without_a_cuda_graph_and_warns_with_the_reason() -> (
    None
):
    steps, state = steps_of(optimizer=optim.soap(1e-3))
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    state, _ = step(state, batch_of())
    with pytest.warns(UserWarning, match="waits for the device"):
        state, _ = step(state, batch_of())
    with counted() as counts:
        for _ in range(3):
            state, _ = step(state, batch_of())
    assert counts.graphs == 0
    assert counts.bad_captures == 0


def test_failed_cuda_graph_capture_keeps_the_state_and_warns_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, state = steps_of()
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    state, _ = step(state, batch_of())
    state, _ = step(state, batch_of())
    from torch._inductor.codecache import PyCodeCache

    with monkeypatch.context() as patch:
        for module in PyCodeCache.modules:
            if hasattr(module, "call"):
                allocate = module.empty_strided_cuda

                def fails(*args: Any, allocate: Any = allocate) -> Any:
                    if torch.cuda.is_current_stream_capturing():
                        raise torch.OutOfMemoryError("injected")
                    return allocate(*args)

                patch.setattr(module, "empty_strided_cuda", fails)
        with pytest.warns(UserWarning, match=r"capture failed \(OutOfMemoryError: injected\)"):
            state, _ = step(state, batch_of())
    assert not torch.cuda.is_current_stream_capturing()
    state, _ = step(state, batch_of())


def test_warning_about_cuda_graph_capture_names_require_finite_as_the_cause() -> None:
    steps, state = steps_of(nonfinite="raise")
    step = ftrain.compile(steps.train_step, donate=True, mode="reduce-overhead")
    # The step itself may raise: values mean nothing here.
    with (
        pytest.warns(UserWarning, match="`require_finite` acts on the host"),
        contextlib.suppress(FloatingPointError),
    ):
        step(state, batch_of())
