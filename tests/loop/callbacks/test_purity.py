"""Test that callbacks do not change the trained bits, and that their states are JSON."""

from __future__ import annotations

import json
import pathlib
import signal
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim, tree
from ftrain.core.metrics import Mean
from ftrain.loop import BackwardEnd, BatchEnd, Logged, Trainer, callbacks
from tests.loop.runs import (
    STEPS,
    Interrupts,
    digest,
    eval_data,
    fit,
    loss_fn,
    model,
    rows,
    steps,
    train_data,
    trainer,
)


def monitored(**options: Any) -> ftrain.Steps:
    schedule = optim.warmup_cosine(1e-2, 5, 100)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(schedule))
    return callbacks.monitored_steps(model, loss_fn, optimizer, **options)


def observers(folder: pathlib.Path) -> list[Any]:
    return [
        callbacks.Throughput(),
        callbacks.LearningRateMonitor(),
        callbacks.GradientMonitor(),
        callbacks.WindowedAverage("eval/loss", rows=2),
        callbacks.RunningAverage(),
        callbacks.MemoryMonitor(),
        callbacks.PhaseTimes(),
        callbacks.Profiler(folder / "traces", start=1, steps=1),
        callbacks.EarlyStopping(100),
        callbacks.TimeLimit(hours=1),
        callbacks.Checkpointing(every=5, minutes=1e-9, best=2),
        callbacks.JSONLLogger(folder / "metrics.jsonl"),
        callbacks.CSVLogger(folder / "metrics.csv"),
        callbacks.FileLogger(folder / "train.log"),
        callbacks.ConsoleLogger(None),
        callbacks.TextSamples(lambda state: str(torch.rand(())), folder / "texts", every=2),
        callbacks.ImageGrid(lambda state: torch.rand(2, 4, 4), folder / "images"),
        callbacks.Curves(folder / "curves.png"),
        callbacks.ProgressBar(every=0),
    ]


def test_shipped_callbacks_do_not_change_the_training_state(tmp_path: pathlib.Path) -> None:
    expected = fit(trainer(), epochs=2)
    made = trainer(*observers(tmp_path), steps=monitored(), store=tmp_path / "checkpoints")
    result = fit(made, epochs=2)
    assert result.status == "completed"
    assert digest(result) == digest(expected)
    assert result.eval.metrics == expected.eval.metrics  # type: ignore[union-attr]
    (manifest,) = [json.loads(p.read_text()) for p in tmp_path.glob("*/*14/manifest.json")]
    states = manifest["metadata"]["callbacks"]
    assert len(states) == len(observers(tmp_path))


def test_shipped_callbacks_resume_with_their_states(tmp_path: pathlib.Path) -> None:
    """The last checkpoint of an interrupted run equals that of an uninterrupted one."""

    def run(folder: str, *steps: int) -> Any:
        where = tmp_path / folder
        for step in (*steps, 1000):
            stop = Interrupts(signal.SIGTERM, BatchEnd, step)
            made = trainer(*observers(where), stop, steps=monitored(), store=where / "checkpoints")
            fit(made, epochs=2, resume="auto")
        (path,) = (tmp_path / folder).glob("checkpoints/step-000000000014")
        return json.loads((path / "manifest.json").read_text())["metadata"]

    assert run("resumed", 3, 1, 6) == run("uninterrupted")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"nonfinite": "ignore"}])
def test_monitored_steps_train_the_bits_of_plain_steps_and_report_gradient_norms_by_layer(
    compiled: bool, options: Any
) -> None:
    ours, theirs = monitored(**options), steps(**options)
    step = ftrain.compile(ours.train_step, backend="eager") if compiled else ours.train_step
    state = other = ours.init_state(0)
    batch = {name: value[:8] for name, value in rows().items()}
    for _ in range(3):
        gradient = ftrain.gradients(model, loss_fn, **options)(state, batch).grads
        state, metrics = step(state, batch)
        other, plain = theirs.train_step(other, batch)
        assert tree.digest(state) == tree.digest(other)
        extra = [name for name in metrics if name not in plain]
        assert extra == ["grad_norm/0", "grad_norm/3"]
        for name in plain:
            assert float(metrics[name]) == float(plain[name])
        for name in extra:
            layer = name.removeprefix("grad_norm/")
            squares = sum(
                g.double().square().sum() for k, g in gradient.items() if k.startswith(layer)
            )
            torch.testing.assert_close(
                metrics[name].double(), torch.as_tensor(squares).sqrt(), rtol=1e-6, atol=0
            )
    assert tree.structure(ours.init_state(0)) == tree.structure(theirs.init_state(0))


def test_gradient_norms_of_a_skipped_step_have_weight_zero() -> None:
    batch = {name: value[:8].clone() for name, value in rows().items()}
    batch["x"][0] = torch.nan
    _, metrics = monitored().train_step(STEPS.init_state(0), batch)
    entry = metrics.entries["grad_norm/0"]
    assert isinstance(entry, Mean)
    assert (float(entry.total), float(entry.weight)) == (0.0, 0.0)


def test_monitored_steps_emit_norms_by_layer_as_events() -> None:
    made = Trainer(monitored(), compile=False)
    events = made.events(STEPS.init_state(0), train_data(), max_steps=2, kinds=(BackwardEnd,))
    assert [sorted(event.norms) for event in events] == [["0", "3"]] * 2  # type: ignore[attr-defined]


def test_monitored_steps_and_make_steps_give_learning_rates_the_same_names() -> None:
    groups = {"first": ("^0", optim.sgd(0.1)), "rest": (optim.everything, optim.sgd(0.2))}
    optimizer = optim.partition(groups)
    ours = callbacks.monitored_steps(model, loss_fn, optimizer)
    theirs = ftrain.make_steps(model, loss_fn, optimizer)
    batch = {name: value[:8] for name, value in rows().items()}
    _, metrics = ours.train_step(ours.init_state(0), batch)
    _, plain = theirs.train_step(theirs.init_state(0), batch)
    assert {*plain} < {*metrics}
    rates = [name for name in plain if name.startswith("learning_rate")]
    assert len(rates) == 2
    made = Trainer(theirs, [callbacks.LearningRateMonitor()], compile=False, log_every=1)
    events = made.events(theirs.init_state(0), train_data(), eval_data(), max_steps=1)
    row = next(
        event.values for event in events if isinstance(event, Logged) and event.split == "train"
    )
    assert [name for name in row if name.startswith("learning_rate")] == rates
