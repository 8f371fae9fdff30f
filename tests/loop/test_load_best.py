"""Test results that hold the state of the best checkpoint instead of the last one."""

from __future__ import annotations

import pathlib

import pytest

from ftrain import checkpoint, tree
from ftrain.loop import LoopWarning, Stop, callbacks
from tests.loop.runs import STEPS, digest, fit, trainer


def best_store(folder: pathlib.Path, mode: str = "max") -> checkpoint.Store:
    return checkpoint.Store(folder, keep_last=1, keep_best=1, metric="eval/loss", mode=mode)


# Saves the checkpoint after the first epoch, because the loss falls.
WORST = callbacks.Checkpointing(best=1, monitor="eval/loss", mode="max")


def test_load_best_returns_the_state_of_the_best_checkpoint(tmp_path: pathlib.Path) -> None:
    store = best_store(tmp_path)
    result = fit(trainer(WORST, store=store), epochs=3, load_best=True)
    path = store.best()
    assert path is not None
    expected, _ = checkpoint.load(path, like=STEPS.init_state(0))
    assert tree.digest(result.state) == tree.digest(expected)
    assert int(result.state.step) < result.step
    assert (result.status, result.checkpoint) == ("completed", str(path))
    assert digest(fit(trainer(), epochs=3)) != digest(result)


def test_load_best_applies_to_stopped_but_not_to_interrupted_runs(
    tmp_path: pathlib.Path,
) -> None:
    class Ends:
        def on_epoch_end(self, event):
            if event.progress.epoch == 2:
                return Stop("enough")
            return None

    result = fit(trainer(WORST, Ends(), store=best_store(tmp_path)), epochs=9, load_best=True)
    assert (result.status, result.step, int(result.state.step)) == ("stopped", 14, 7)


def test_load_best_warns_and_returns_the_last_state_if_no_checkpoint_has_the_metric(
    tmp_path: pathlib.Path,
) -> None:
    store = best_store(tmp_path)
    with pytest.warns(LoopWarning, match="load_best: no checkpoint has the metric of the store"):
        result = fit(trainer(store=store), epochs=2, load_best=True)
    assert int(result.state.step) == result.step == 14


def test_load_best_without_a_store_that_keeps_the_best_is_refused_before_the_first_step(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(ValueError, match="load_best: expected .*, got no store. Write Trainer"):
        fit(trainer(), epochs=1, load_best=True)
    for store in (tmp_path / "run", checkpoint.Store(tmp_path / "run")):
        with pytest.raises(ValueError, match="got a store that keeps none"):
            fit(trainer(store=store), epochs=1, load_best=True)
    assert not (tmp_path / "run").exists()
