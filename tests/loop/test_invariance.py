"""Test that trainer options keep the trained bits and that metrics are read only for rows."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import ftrain
from ftrain import tree
from ftrain.loop import Event, Log, Trainer
from tests.loop.runs import STEPS, Counts, digest, fit, train_data, trainer

PLAIN = digest(fit(trainer(), epochs=2))


class Logs:
    def on_batch_end(self, event: Any) -> Any:
        return Log({"twice": 2 * event.metrics["loss"]})


@pytest.mark.parametrize(
    "options",
    [
        {"log_every": 1},
        {"log_every": 1000},
        {"eval_every": 1},
        {"eval_every": 5},
        {"save_every": 1, "store": True},
        {"save_every": 4, "store": True, "log_every": 2},
        {"callbacks": (Counts(), Logs())},
        {"compile": {"backend": "eager"}},
        {"compile": {"backend": "eager"}, "donate": False},
        {"max_skipped": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_trainer_options_leave_the_trained_weights_bitwise_equal(
    options: dict[str, Any], tmp_path: Any
) -> None:
    options = {**options, "store": tmp_path} if options.get("store") else dict(options)
    callbacks = options.pop("callbacks", ())
    assert digest(fit(trainer(*callbacks, **options), epochs=2)) == PLAIN


def test_evaluation_leaves_the_trained_weights_bitwise_equal() -> None:
    result = trainer().fit(STEPS.init_state(0), train_data(), epochs=2)
    assert digest(result) == PLAIN


def test_events_generator_and_fit_train_bitwise_equal_weights() -> None:
    events = trainer().events(STEPS.init_state(0), train_data(), epochs=2)
    *_, last = events
    assert tree.digest(last.state) == PLAIN


def test_fit_and_a_hand_written_loop_train_bitwise_equal_weights() -> None:
    state, loader = STEPS.init_state(0), train_data()
    for batch, _ in loader.batches(epochs=2):
        state, _ = STEPS.train_step(state, batch)
    assert tree.digest(state) == PLAIN


def test_fit_does_not_change_its_initial_state() -> None:
    state = STEPS.init_state(0)
    before = tree.digest(state)
    result = trainer(compile={"backend": "eager"}).fit(state, train_data(), max_steps=3)
    assert tree.digest(state) == before != digest(result)


READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Record each read of a tensor's value and the function that reads it."""
    found: list[tuple[str, Any]] = []
    for name in READS:
        original = getattr(torch.Tensor, name)

        def counted(self: Any, *args: Any, original: Any = original, name: str = name) -> Any:
            found.append((name, current[0]))
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    current: list[Any] = [("RunBegin", 0)]
    found_at[0] = current
    return found


found_at: list[Any] = [None]


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_fit_does_not_read_metrics_between_log_rows(
    compiled: Any, reads: list[tuple[str, Any]]
) -> None:
    loader = list(train_data())
    made = Trainer(STEPS, compile=compiled, log_every=10)
    made.fit(STEPS.init_state(0), loader, max_steps=2)  # compiles and checks the metrics' names
    reads.clear()
    steps = []
    for event in made.events(STEPS.init_state(0), loader * 10, max_steps=29):
        found_at[0][0] = type(event).__name__, event.progress.step
        steps.append(len(reads))
    # An eager step reads scalars of the CPU, such as the learning rate, before its batch ends.
    at = [step for _, (kind, step) in reads if kind == "BatchEnd"]
    assert sorted({*at}) == [10, 20, 29]  # where log windows end, and the run
    assert len(at) < 3 * 10 * 10


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fit_does_not_synchronize_cuda_between_log_rows() -> None:
    state = tree.map(lambda x: x.cuda(), STEPS.init_state(0))
    batches = [tree.map(lambda x: x.cuda(), batch) for batch in train_data()]
    made = Trainer(STEPS, compile=False, log_every=10)
    made.fit(state, batches, max_steps=2)
    events = made.events(state, batches * 10, max_steps=29)
    try:
        for event in events:
            reading = type(event).__name__ == "BatchEnd" and event.progress.step % 10 == 0
            torch.cuda.set_sync_debug_mode("default" if reading else "error")
            if event.progress.step == 28:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_garbage_collection_is_restored_after_a_run() -> None:
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            fit(trainer(), max_steps=1)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_events_without_a_listener_are_not_constructed() -> None:
    kinds = {
        type(e).__name__ for e in trainer().events(STEPS.init_state(0), train_data(), max_steps=3)
    }
    assert {"BatchBegin", "BatchEnd", "WindowEnd"} <= kinds
    some = trainer().events(
        STEPS.init_state(0), train_data(), max_steps=3, kinds=(ftrain.loop.TrainEnd,)
    )
    assert [type(e).__name__ for e in some] == ["TrainEnd"]
    assert issubclass(ftrain.loop.TrainEnd, Event)
