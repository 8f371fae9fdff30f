"""Test the metrics of ensembles: monitored, logged, printed and plotted."""

from __future__ import annotations

import math
import pathlib
import statistics
from typing import Any

import pytest
import torch

import ftrain
from ftrain import Max, Metrics, checkpoint, optim, tree
from ftrain.core.errors import NonFiniteError
from ftrain.loop import Logged, LoopWarning, Trainer, callbacks, finders, plots
from tests.loop.ensembles import (
    MEMBERS,
    STEPS,
    Notices,
    ensemble,
    eval_data,
    member,
    rows_of,
    train_data,
    trainer,
    vmapped,
)


@pytest.mark.parametrize(
    ("monitor", "statistic"),
    [
        ("eval/loss", statistics.mean),
        ("eval/loss_min", min),
        ("eval/loss/member_2", lambda values: values[2]),
        ("train/loss_max", max),
    ],
)
def test_ensemble_statistics_can_be_monitored_by_name(
    monitor: str, statistic: Any, tmp_path: pathlib.Path
) -> None:
    store = checkpoint.Store(tmp_path, keep_last=1, keep_best=1, metric=monitor)
    watching = [
        callbacks.EarlyStopping(1, monitor=monitor, min_delta=0.2),
        callbacks.Checkpointing(best=1, monitor=monitor),
    ]
    found = trainer(*watching, store=store).fit(
        ensemble(None), train_data(8), eval_data(), epochs=20
    )
    assert found.status == "stopped"
    split = monitor.partition("/")[0]
    values = [statistic(e.members["loss"]) for e in found.history if e.split == split]
    stop = next(i for i in range(1, 20) if values[i] >= values[i - 1] - 0.2)
    assert found.step == 8 * (stop + 1)
    assert f"best {values[stop - 1]:.6g} at step {8 * stop}" in found.reason
    best = checkpoint.Store(tmp_path, metric=monitor).best()
    assert best is not None
    assert int(best.name[-4:]) == 8 * (1 + values.index(min(values)))


@pytest.mark.parametrize("monitor", ["eval/loss/min", "eval/loss/member_7", "eval/loss_mean"])
def test_an_unknown_ensemble_statistic_is_refused_before_the_first_step(monitor: str) -> None:
    steps: list[Any] = []
    made = trainer(callbacks.EarlyStopping(1, monitor=monitor))
    with pytest.raises(ValueError, match="unknown metric 'eval/loss.* Did you mean 'eval/loss"):
        made.fit(ensemble(), _noted(train_data(), steps), eval_data(), epochs=1)
    assert not steps


def _noted(batches: Any, seen: list[Any]) -> Any:
    def epoch(i: int) -> Any:
        for batch in batches:
            seen.append(batch)
            yield batch

    return epoch


def test_an_unknown_ensemble_statistic_is_refused_at_the_first_evaluation_over_any_iterable() -> (
    None
):
    """The evaluation data cannot be inspected before the first step."""
    made = trainer(callbacks.EarlyStopping(1, monitor="eval/loss/min"))
    batches = [batch for batch, _ in eval_data().batches()]
    with pytest.raises(ValueError, match="unknown metric 'eval/loss/min'"):
        made.fit(ensemble(), train_data(), _noted(batches, []), epochs=1)


def test_evaluate_returns_values_by_ensemble_member() -> None:
    found = trainer().evaluate(ensemble(), eval_data())
    alone = [trainer(single=True).evaluate(member(i), eval_data()) for i in range(MEMBERS)]
    assert found.members["loss"] == tuple(each.loss for each in alone)
    assert found.loss == pytest.approx(statistics.mean(each.loss for each in alone))
    assert found.step == 0


def test_an_ensemble_prints_means_and_extremes(capsys: Any) -> None:
    made = trainer(callbacks.ConsoleLogger(None, every=0))
    found = made.fit(ensemble(None), train_data(), eval_data(), epochs=1)
    lines = capsys.readouterr().out.splitlines()
    low, high = (found.eval.metrics[f"loss_{which}"] for which in ("min", "max"))
    said = f"loss {found.eval.loss:<6.4g} ({low:.4g} to {high:.4g})"
    assert any(said in line for line in lines if " eval " in line)
    assert not any("member_" in line for line in lines)
    assert f"loss {found.eval.loss:.4g} ({low:.4g} to {high:.4g})" in str(found)
    assert "skipped" not in str(found)


def test_large_ensembles_have_statistics_but_no_member_columns() -> None:
    found = Trainer(vmapped(), compile=False).fit(
        ensemble(None, 70), train_data(4), eval_data(), epochs=1
    )
    assert len(found.eval.members["loss"]) == 70
    assert not [name for name in found.eval.values() if "member_" in name]
    assert found.eval.metrics["loss_max"] == max(found.eval.members["loss"])


def vectors(state: Any, batch: Any) -> Any:
    return {"w": state["w"] + 1}, {
        "loss": state["w"],
        "both": Max(torch.stack([state["w"]] * 2, 1)),
    }


def test_a_custom_step_with_a_vector_loss_is_an_ensemble() -> None:
    """The state does not give the number of members, and each member has a vector metric."""
    made = Trainer(vectors, compile=False)
    found = made.fit({"w": torch.tensor([1.0, 5.0])}, [torch.zeros(1)] * 3, epochs=1).train
    assert found.members == {"loss": (2.0, 6.0), "both/0": (3.0, 7.0), "both/1": (3.0, 7.0)}
    expected = {"loss": 4.0, "loss_min": 2.0, "loss_max": 6.0}
    expected |= {f"both/{i}": 5.0 for i in (0, 1)}
    expected |= {f"both/{i}_{w}": x for i in (0, 1) for w, x in (("min", 3.0), ("max", 7.0))}
    assert found.metrics == expected


def test_per_sample_losses_are_not_taken_for_an_ensemble() -> None:
    """The state is that of a single run, or the number of losses changes from step to step."""

    def of_samples(state: Any, batch: Any) -> Any:
        return state, {"loss": batch}

    batches = [torch.zeros(4), torch.zeros(3)]
    with pytest.raises(TypeError, match=r"'loss': expected a 0-d tensor.*got shape \(4,\)"):
        Trainer(of_samples, compile=False).fit(member(0), batches, epochs=1)
    with pytest.raises(
        ValueError, match="'loss': expected one entry for each member.*got 3, 4 entries"
    ):
        Trainer(of_samples, compile=False).fit({}, batches, epochs=1)
    with pytest.raises(
        ValueError, match="one number for each of 4 members.*got one number for each of 3 members"
    ):
        Trainer(of_samples, compile=False, log_every=1).fit({}, batches, epochs=1)


class Rows:
    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_logged(self, event: Logged) -> None:
        self.found.append((event.split, dict(event.values)))


def test_callbacks_report_values_by_ensemble_member() -> None:
    """Check windowed averages, learning rates, averaged weights, and gradients by layer."""

    def wide(model: Any, batch: Any) -> Any:
        y = model[1](model[0](batch["x"]).detach())
        return (y.squeeze(-1) - batch["y"]).square().mean()

    net = lambda: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))  # noqa: E731
    optimizer = optim.ema(optim.with_hyperparams(optim.sgd, learning_rate=0.1), 0.5)
    steps = callbacks.monitored_steps(net, wide, optimizer)
    states = tree.map(lambda *x: torch.stack(x), *(steps.init_state(i) for i in range(2)))
    rows, notices = Rows(), Notices()
    watching = [
        callbacks.WindowedAverage(rows=2),
        callbacks.LearningRateMonitor(),
        callbacks.EMAEvaluation(),
        callbacks.GradientMonitor(),
        rows,
        notices,
    ]
    own = torch.vmap(steps.train_step, in_dims=(0, None))

    def step(state: Any, batch: Any) -> Any:
        state, metrics = own(state, batch)
        entries = {k: v for k, v in metrics.entries.items() if k != "learning_rate"}
        return state, Metrics(entries)

    evaluation = torch.vmap(steps.eval_step, in_dims=(0, None))
    made = Trainer((step, evaluation), watching, compile=False, log_every=2)
    made.fit(states, train_data(4), eval_data(), epochs=1)
    train = [values for split, values in rows.found if split == "train"]
    assert train[1]["loss_windowed"] == pytest.approx((train[0]["loss"] + train[1]["loss"]) / 2)
    assert train[0]["learning_rate"] == train[0]["learning_rate/member_1"]
    assert train[0]["learning_rate"] == pytest.approx(0.1)
    (evaluated,) = (values for split, values in rows.found if split == "eval")
    assert evaluated["ema/loss_min"] < evaluated["ema/loss_max"]
    assert {"ema/loss/member_0", "ema/loss/member_1"} <= evaluated.keys()
    assert "vanishing gradient in layer 0 of member 0" in notices.said[0]
    assert "vanishing gradient in layer 0 of member 1" in notices.said[0]
    assert train[0]["grad_norm/0"] == train[0]["grad_norm/0/member_1"] == 0
    assert {"grad_norm/1/member_0", "grad_norm/member_0", "grad_norm/1_max"} <= train[0].keys()


def test_gradient_monitor_warns_for_ensemble_steps_without_layer_norms() -> None:
    with pytest.warns(ftrain.loop.CallbackWarning, match="expected gradient norms by layer"):
        trainer(callbacks.GradientMonitor()).fit(ensemble(), train_data(10), max_steps=10)


def test_learning_rate_finder_accepts_an_ensemble() -> None:
    """For equal members, the mean loss and the suggestion equal those of a single run."""
    options = {"n_steps": 40, "compile": False, "highest": 1.0}
    alone = finders.learning_rate(STEPS, member(0), train_data(), **options)
    alike = tree.map(lambda leaf: torch.stack([leaf] * 3), member(0))
    found = finders.learning_rate(vmapped()[0], alike, train_data(), **options)
    assert found.suggestion == alone.suggestion
    assert found.losses == pytest.approx(alone.losses, rel=1e-6)


def test_a_metric_named_like_an_ensemble_statistic_is_refused() -> None:
    def step(state: Any, batch: Any) -> Any:
        return state, {"loss": torch.zeros(2), "loss_max": torch.zeros(2)}

    with pytest.raises(
        ValueError,
        match="metric 'loss_max': expected a name that the log does not use.* computes from 'loss'",
    ):
        Trainer(step, compile=False).fit({}, [torch.zeros(1)], epochs=1)


def test_a_diverged_ensemble_member_is_left_out_of_the_extremes() -> None:
    state = ensemble(None)
    weight = state.params["weight"].clone()
    weight[0] = torch.nan
    with pytest.warns(LoopWarning, match="member 0"):
        found = trainer().fit(
            state.replace(params={"weight": weight}), train_data(), eval_data(), epochs=1
        )
    assert math.isnan(found.eval.loss)
    assert found.eval.metrics["loss_min"] < found.eval.metrics["loss_max"]
    assert math.isnan(found.eval.members["loss"][0])


def test_ensemble_charts_show_the_mean_in_a_band(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    log = callbacks.JSONLLogger(tmp_path / "metrics.jsonl")
    trainer(log, log_every=4).fit(ensemble(None), train_data(), eval_data(), epochs=2)
    figure = plots.curves(tmp_path, tmp_path / "curves.png")
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert titles == ["loss", "learning rate", "grad norm", "samples per second", "largest", "rows"]
    (band, *_) = figure.axes[0].collections
    rows = [row for row in rows_of(log.path) if row["split"] == "train"]
    heights = {round(float(y), 9) for y in band.get_paths()[0].vertices[:, 1]}
    assert {round(row[f"loss_{which}"], 9) for row in rows for which in ("min", "max")} <= heights
    page = plots.page(tmp_path)
    assert '"name":"loss_min","label":"loss min","group":"more"' in page
    assert '"name":"loss/member_0","label":"loss / member 0","group":"loss"' in page
    (summary,) = plots.summary(tmp_path)
    assert "eval/loss" in summary
    assert not [name for name in summary if "member" in name]


def test_batch_size_finder_accepts_an_ensemble() -> None:
    batch = train_data(1)[0]
    found = finders.batch_size(vmapped()[0], ensemble(), batch, start=2, highest=8, compile=False)
    assert found.size == 8


def test_ensemble_members_along_two_axes_are_refused() -> None:
    state = tree.map(lambda leaf: leaf.unflatten(0, (2, 2)), ensemble(None, 4))
    with pytest.raises(ValueError, match=r"got shape \(2, 2\). Stack all members.*along one axis"):
        trainer().fit(state, train_data(), epochs=1)


def test_an_ensemble_without_members_is_refused() -> None:
    state = ensemble(None).replace(step=torch.zeros(0, dtype=torch.int64))
    made = Trainer(lambda state, batch: (state, {"loss": torch.zeros(())}), compile=False)
    with pytest.raises(ValueError, match=r"got shape \(0,\). Stack all members along"):
        made.fit(state, [torch.ones(1)], epochs=1)


def test_ensemble_members_with_non_finite_state_are_named() -> None:
    state = ensemble(None)
    weight = state.params["weight"].clone()
    weight[1:] = torch.nan
    made = trainer(max_skipped=1, log_every=1)
    with pytest.warns(LoopWarning, match="members 1, 2 skipped 1 or more"):
        made.fit(state.replace(params={"weight": weight}), train_data(1), max_steps=1)
    weight[0, 0] = torch.inf
    with pytest.warns(LoopWarning), pytest.raises(NonFiniteError, match="members 0, 1, 2"):
        made.fit(state.replace(params={"weight": weight}), train_data(1), max_steps=1)
