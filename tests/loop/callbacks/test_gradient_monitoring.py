"""Test reports of gradients by module: counts of steps, first non-finite modules, histograms."""

from __future__ import annotations

import pathlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tree
from ftrain.config.build import build
from ftrain.config.load import load
from ftrain.loop import CallbackWarning, Notice, Trainer, callbacks
from ftrain.tasks.metrics import log_edges
from tests.loop.callbacks.test_services import Calls, calls  # noqa: F401  # a fixture

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 1))
EDGES = log_edges(1e-3, 10.0)


class Notices:
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_notice(self, event: Notice) -> None:
        self.said.append(event.message)


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def started(steps: ftrain.Steps, members: int) -> tuple[Any, Any]:
    """Return a state and a step, of a single run or of an ensemble."""
    if not members:
        return steps.init_state(0), steps.train_step
    states = [steps.init_state(i) for i in range(members)]
    stacked = tree.map(lambda *x: torch.stack(x), *states)
    return stacked, torch.vmap(steps.train_step, (0, None))


def batches(*scales: float) -> list[Tensor]:
    return [torch.ones(4, 3) * scale for scale in scales]


def reported(data: list[Tensor], loss_fn: Any = loss_fn, **options: Any) -> list[str]:
    """Return the notices of a run with log windows of four steps."""
    steps, notices = callbacks.monitored_steps(MODEL, loss_fn, optim.sgd(0.0), **options), Notices()
    trainer = Trainer(steps, [callbacks.GradientMonitor(), notices], compile=False, log_every=4)
    trainer.fit(steps.init_state(0), data, epochs=1)
    return notices.said


def test_gradient_monitor_reports_a_single_step_with_exploding_gradients() -> None:
    (said,) = reported(batches(1, 1e4, 1, 1, 1, 1, 1, 1), exploding_above=1e3)
    assert said.startswith("step 4: exploding gradient in layer 0 in 1 of 4 steps. Clip gradients")
    assert "exploding gradient in layer 2 in 1 of 4 steps" in said
    assert reported(batches(1, 1e4, 1, 1)) == []
    assert reported(batches(1, 1, 1, 1), exploding_above=1e3) == []


def test_steps_with_vanishing_gradients_are_counted_by_layer() -> None:
    def gated(model: Any, x: Tensor) -> Tensor:
        return model[2](model[0](x) * x[0, 0]).mean()  # type: ignore[no-any-return]

    assert reported(batches(1, 0, 1, 0), gated, vanishing_below=0.0) == [
        "step 4: vanishing gradient in layer 0 in 2 of 4 steps"
    ]
    assert reported(batches(1, 0, 1, 0), gated) == []


@pytest.mark.parametrize("members", [0, 2])
def test_module_where_nonfinite_values_begin_is_reported_though_its_step_is_skipped(
    members: int,
) -> None:
    class Rooted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2]((self[0](x) * x[0, 0]).log())  # type: ignore[no-any-return]

    steps = callbacks.monitored_steps(Rooted(*MODEL), loss_fn, optim.sgd(0.0), first_nonfinite=True)
    state, step = started(steps, members)
    notices = Notices()
    trainer = Trainer(step, [callbacks.GradientMonitor(), notices], compile=False, log_every=2)
    trainer.fit(state, batches(0, 0), epochs=1, max_steps=2)
    whose = " of member 0" if members else ""
    wanted = f"step 2: first non-finite output in layer model{whose} in 2 of 2 steps"
    assert any(each.startswith(wanted) for each in notices.said)


def test_layer_with_nonfinite_output_is_reported_again_only_after_finite_outputs() -> None:
    from ftrain.loop import Progress, WindowEnd

    monitor = callbacks.GradientMonitor()
    state, said = monitor.init(), []
    for step in range(1, 45):
        bad = float(step in (1, 2, 3, 4, 30))
        values = {"grad_norm/0": 1.0, "nonfinite_output/(loss)": bad}
        event = WindowEnd(Progress(step=step), 0.0, None, values, 1, 1, 0, None)
        state, actions = monitor(state, event)
        said += [action.message for action in actions]  # type: ignore[attr-defined]
    assert [each.partition(":")[0] for each in said] == ["step 1", "step 30"]


def test_gradient_monitor_refuses_statistics_without_norms() -> None:
    with pytest.raises(ValueError, match="expected a list with 'norm'.*got \\('max',\\)"):
        callbacks.GradientMonitor(statistics=("max",))


def histograms(calls: Calls, tmp_path: pathlib.Path, members: int = 0, **options: Any) -> Any:  # noqa: F811
    writer = types.SimpleNamespace(
        **{name: calls.method(name) for name in ("add_histogram_raw", "flush", "close")}
    )
    sys.modules["torch.utils.tensorboard"].SummaryWriter = calls.method("SummaryWriter", writer)  # type: ignore[attr-defined]
    steps = callbacks.monitored_steps(MODEL, loss_fn, optim.sgd(0.0), histogram_edges=EDGES)
    state, step = started(steps, members)
    callback = callbacks.GradientHistograms(tmp_path, every=2, histogram_edges=EDGES)
    trainer = Trainer(step, [callback], compile=False, store=tmp_path / "store")
    for end in (3, 6):
        trainer = Trainer(step, [callback], compile=False, store=tmp_path / "store")
        trainer.fit(state, batches(1, 2, torch.nan, torch.nan, 1, 1), max_steps=end, resume="auto")
    return [
        kwargs | {"tag": args[0]} for name, args, kwargs in calls if name == "add_histogram_raw"
    ]


def test_histograms_are_written_every_n_steps_except_at_skipped_steps(
    calls: Calls,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    written = histograms(calls, tmp_path)
    assert [(each["tag"], each["global_step"]) for each in written] == [
        (f"train/grad_histogram/{layer}", step) for step in (2, 6) for layer in (0, 2)
    ]
    grads = ftrain.gradients(MODEL, loss_fn)
    state = ftrain.make_steps(MODEL, loss_fn, optim.sgd(0.0)).init_state(0)
    expected = grads(state, batches(2)[0]).grads
    values = torch.cat([expected["0.weight"].flatten(), expected["0.bias"]])
    first = written[0]
    assert sum(first["bucket_counts"]) == first["num"] == 16
    assert first["min"] <= values.min()
    assert values.max() <= first["max"]
    below = sum(
        n for n, e in zip(first["bucket_counts"], first["bucket_limits"], strict=True) if e <= 0
    )
    assert below == int((values <= -1e-3).sum())
    purges = [kwargs["purge_step"] for name, _, kwargs in calls if name == "SummaryWriter"]
    assert purges == [None, 4]


def test_ensembles_have_a_histogram_for_each_member(
    calls: Calls,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    tags = [each["tag"] for each in histograms(calls, tmp_path, members=2)[:4]]
    assert tags == [
        f"train/grad_histogram/{layer}/member_{i}" for layer in (0, 2) for i in range(2)
    ]


@pytest.mark.parametrize(
    ("edges", "message"), [(None, "got none. Make the steps"), ((0.0,), "with 8 edges, got 1")]
)
def test_gradient_histograms_refuses_steps_with_other_histogram_edges_or_none(
    edges: Any,
    message: str,
    calls: Calls,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    steps = callbacks.monitored_steps(MODEL, loss_fn, optim.sgd(0.0), histogram_edges=edges)
    callback = callbacks.GradientHistograms(
        tmp_path, every=1, histogram_edges=log_edges(1e-2, 10.0)
    )
    with pytest.warns(CallbackWarning, match=message):
        Trainer(steps, [callback], compile=False).fit(steps.init_state(0), batches(1), epochs=1)


def test_tensorboard_reads_back_the_histograms(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = callbacks.monitored_steps(MODEL, loss_fn, optim.sgd(0.0), histogram_edges=EDGES)
    callback = callbacks.GradientHistograms(tmp_path, every=1, histogram_edges=EDGES)
    Trainer(steps, [callback], compile=False).fit(steps.init_state(0), batches(1, 1), epochs=1)
    found = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})  # 0: no limit
    found.Reload()
    events = found.Histograms("train/grad_histogram/0")
    assert [event.step for event in events] == [1, 2]
    assert events[0].histogram_value.num == 16


def test_histograms_have_no_columns_in_the_log() -> None:
    steps = callbacks.monitored_steps(MODEL, loss_fn, optim.sgd(0.0), histogram_edges=EDGES)
    result = Trainer(steps, compile=False).fit(steps.init_state(0), batches(1, 1), epochs=1)
    assert result.train is not None
    assert not any("histogram" in name for name in result.train.values())


def test_configured_steps_compute_the_statistics_that_gradient_callbacks_need(
    calls: Calls,  # noqa: F811
    tmp_path: pathlib.Path,
) -> None:
    content = f"""
data: digits
model: {{name: mlp, inputs: 64, outputs: 10}}
loss: cross_entropy
epochs: 1
output_dir: {tmp_path}
callbacks:
  - {{name: GradientMonitor, depth: 0, statistics: [norm, max], exploding_above: 100.0}}
  - {{name: GradientHistograms, folder: {tmp_path}, histogram_edges: [-1.0, 0.0, 1.0]}}
"""
    (tmp_path / "run.yaml").write_text(content)
    parts = build(load(tmp_path / "run.yaml"))
    batch = next(iter(parts.train.batches()))[0]
    _, metrics = parts.steps.train_step(parts.init_state(), batch)
    names = sorted(name for name in metrics if "/" in name)
    assert names == [
        "grad_exploding/model",
        "grad_histogram/model",
        "grad_max/model",
        "grad_norm/model",
    ]
    assert metrics["grad_histogram/model"].shape == (4,)
