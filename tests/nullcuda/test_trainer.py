"""Runs on CUDA: the host waits at boundaries of the log, of evaluations and of saves, not in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ftrain
from ftrain import checkpoint, data, loop, optim, transforms, tree
from tests.nullcuda.device import Counts, counted
from tests.zoo import ZOO

CASE = ZOO["mlp"]
ROWS = 4
DEVICE = f"cuda:{max(torch.cuda.device_count() - 1, 0)}"


def steps_of(**options: Any) -> Any:
    return ftrain.make_steps(CASE.model, CASE.loss_fn, optim.adamw(1e-3), **options)


def on_device(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.to(DEVICE), value)


def loader(steps: int, **options: Any) -> data.Loader:
    return data.Loader(CASE.batch(0, ROWS * steps), batch_size=ROWS, device=DEVICE, **options)


def counts_of_run(n_steps: int, steps: Any, tmp_path: Path | None = None, **options: Any) -> Counts:
    """Return the counts of a run of one epoch, with one row of the log and no evaluation."""
    trainer = loop.Trainer(
        steps, log_every=10**6, progress=False, store=tmp_path, **{"compile": False, **options}
    )
    state = on_device(steps.init_state(0))
    with counted() as counts:
        result = trainer.fit(state, loader(n_steps), epochs=1)
    assert result.step == n_steps
    return counts


@pytest.mark.parametrize("form", ["eager", "traced"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_steps_of_a_run_copy_batches_from_pinned_memory_and_do_not_wait(
    precision: Any, form: str
) -> None:
    steps = steps_of(precision=precision)
    options: dict[str, Any] = {} if form == "eager" else {"compile": {"backend": "eager"}}
    counts_of_run(4, steps, **options)
    few, many = (counts_of_run(n, steps, **options) for n in (6, 16))
    assert many.syncs == few.syncs
    assert many.to_host == few.to_host
    assert many.to_device - few.to_device == 10 * 2  # two leaves of a batch
    assert many.pageable == few.pageable


def test_each_save_of_a_run_copies_to_pinned_memory_and_reads_the_metrics_twice(
    tmp_path: Path,
) -> None:
    steps = steps_of()
    state = on_device(steps.init_state(0))

    def counts_with(saves: int) -> Counts:
        store = checkpoint.Store(tmp_path / str(saves), asynchronous=True)
        trainer = loop.Trainer(
            steps,
            log_every=10**6,
            save_every=20 // saves,
            progress=False,
            store=store,
            compile=False,
        )
        with counted() as counts:
            trainer.fit(state, loader(20), epochs=1)
        return counts

    counts_with(2)
    few, many = counts_with(1), counts_with(4)
    leaves = len(tree.leaves(state))
    # A checkpoint has the metrics since the last row of the log, in one copy for each dtype.
    assert many.to_host - few.to_host == 3 * (leaves + 2)
    assert many.syncs - few.syncs == 3 * 2
    assert many.pageable == few.pageable


def test_resumed_run_keeps_the_state_on_its_device(tmp_path: Path) -> None:
    steps = steps_of(precision="16-mixed")
    trainer = loop.Trainer(steps, log_every=10**6, progress=False, store=tmp_path, compile=False)
    state = on_device(steps.init_state(0))
    trainer.fit(state, loader(5), epochs=1)
    result = trainer.fit(state, loader(5), epochs=2, resume="auto")
    assert result.step == 10
    assert {leaf.device for leaf in tree.leaves(result.state)} == {torch.device(DEVICE)}


def test_checkpoint_is_restored_to_the_device_of_the_given_state(tmp_path: Path) -> None:
    state = on_device(steps_of(precision="16-mixed").init_state(0))
    checkpoint.save(tmp_path / "a", state)
    loaded, _ = checkpoint.load(tmp_path / "a", state)
    assert {leaf.device for leaf in tree.leaves(loaded)} == {torch.device(DEVICE)}
    assert tree.structure(loaded) == tree.structure(state)


def test_training_steps_vmapped_over_seeds_do_not_wait_for_the_device() -> None:
    steps = transforms.sweep(steps_of(), 3)
    few, many = (counts_of_run(n, steps) for n in (6, 16))
    assert (many.syncs, many.to_host) == (few.syncs, few.to_host)


def test_benchmark_on_cuda_measures_the_eager_compiled_and_donated_step() -> None:
    steps = steps_of()
    state, batch = on_device(steps.init_state(0)), on_device(CASE.batch(0, ROWS))
    report = ftrain.benchmark(
        steps.train_step, state, batch, rounds=2, seconds=0.0, backend="eager"
    )
    assert [row.variant for row in report.measurements] == ["eager", "compiled", "donated"]
    assert "NULL" in str(report)
