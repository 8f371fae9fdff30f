"""Test reading logs as curves: truncated, repeated and non-finite rows."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.core.errors import DataError
from ftrain.loop import plots
from ftrain.loop.plots.curves import smoothed
from ftrain.loop.plots.page import thinned
from tests.campaign import examples


def write(folder, rows, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder


def test_read_run_returns_one_curve_per_split(tmp_path):
    rows = [
        {
            "step": 5,
            "epoch": 0,
            "split": "train",
            "time": 1.5,
            "loss": 2.0,
            "note": "warm",
            "ok": True,
        },
        {"step": 10, "epoch": 0, "split": "train", "time": 2.5, "loss": None},
        {"step": 10, "epoch": 1, "split": "eval", "time": 3.0, "loss": 1.0, "accuracy": 0.5},
    ]
    log = plots.read_run(write(tmp_path / "first", rows, tail='{"step": 15, "lo'))
    assert log.name == "first"
    assert log.step == 10
    assert set(log.curves) == {"loss", "accuracy"}
    train = log.curves["loss"]["train"]
    assert train.steps == (5, 10)
    assert train.times == (1.5, 2.5)
    assert train.values[0] == 2.0
    assert math.isnan(train.values[1])
    assert log.curves["loss"]["eval"] == plots.Curve((10,), (1.0,), (3.0,), (1.0,))


def test_read_run_keeps_the_last_row_of_a_repeated_step(tmp_path):
    rows = [
        {"step": step, "split": "train", "loss": loss} for step, loss in ((5, 1), (10, 2), (5, 3))
    ]
    curve = plots.read_run(write(tmp_path / "a", rows)).curves["loss"]["train"]
    assert (curve.steps, curve.values) == ((5, 10), (3.0, 2.0))


def test_read_run_computes_fractional_epochs_from_logged_epoch_ends(tmp_path):
    rows = [
        *(
            {"step": step, "split": "train", "epoch": 1, "loss": 1.0}
            for step in (5, 10, 15, 20, 25)
        ),
        *({"step": step, "split": "train_epoch", "epoch": 1, "loss": 1.0} for step in (10, 20)),
    ]
    curve = plots.read_run(write(tmp_path / "a", rows)).curves["loss"]["train"]
    assert curve.epochs == (0.5, 1.0, 1.5, 2.0, 2.5)


def test_read_runs_gives_distinct_names_to_runs_with_equal_directory_names(tmp_path):
    row = [{"step": 1, "split": "train", "loss": 1.0}]
    folders = [write(tmp_path / name, row) for name in ("x/lr", "y/lr", "z")]
    names = [log.name for log in plots.read_runs([*folders, folders[2]])]
    assert names[:2] == ["x/lr", "y/lr"]
    assert len(set(names)) == 4


def test_read_run_error_lists_the_runs_in_a_directory_without_a_log(tmp_path):
    write(tmp_path / "runs" / "good", [{"step": 1, "split": "train", "loss": 1.0}])
    with pytest.raises(DataError, match=r"got one without metrics.jsonl\. Choose one of .*good"):
        plots.read_run(tmp_path / "runs")
    with pytest.raises(DataError, match=r"got no such path\. Choose one of .*good"):
        plots.read_run(tmp_path / "runs" / "goood")
    with pytest.raises(DataError, match="expected a row with a step and a metric"):
        plots.read_run(write(tmp_path / "empty", []))
    with pytest.raises(DataError, match="expected at least one run"):
        plots.read_runs([])


def test_summary_contains_best_and_last_values_and_differing_settings(tmp_path):
    folders = []
    for name, rate in (("a", 1e-3), ("b", 3e-4)):
        rows = [
            {"step": 1, "split": "eval", "loss": 1.0, "accuracy": 0.9, "time": 2.0},
            {"step": 2, "split": "eval", "loss": 3.0, "accuracy": 0.5, "time": 4.0},
        ]
        folders.append(write(tmp_path / name, rows))
        config = f"seed: 0\noutput_dir: {name}\noptimizer: {{name: adamw, learning_rate: {rate}}}\n"
        (tmp_path / name / "config.yaml").write_text(config)
    rows = plots.summary(folders)
    assert rows[0] == {
        "run": "a",
        "optimizer.learning_rate": "0.001",
        "step": 2,
        "seconds": 4.0,
        "eval/loss (best)": 1.0,
        "eval/loss": 3.0,
        "eval/accuracy (best)": 0.9,
        "eval/accuracy": 0.5,
    }
    assert rows[1]["optimizer.learning_rate"] == "0.0003"


values = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=300)


@given(values, st.integers(4, 40))
@settings(max_examples=examples(40, 100), deadline=None)
def test_thinning_a_curve_keeps_ends_extremes_and_nan_gaps(found, points):
    curve = plots.Curve(*[tuple(map(float, range(len(found))))] * 3, tuple(found))
    kept = thinned(curve, points)
    assert kept == sorted(set(kept))
    assert {0, len(found) - 1} <= set(kept)
    assert len(kept) <= max(len(found) if len(found) <= points else 0, 3 * (points // 2) + 2)
    left = [found[i] for i in kept]
    finite = [value for value in found if math.isfinite(value)]
    if finite:
        assert min(v for v in left if math.isfinite(v)) == min(finite)
        assert max(v for v in left if math.isfinite(v)) == max(finite)
    assert any(map(math.isnan, left)) == any(map(math.isnan, found))


@given(values, st.floats(0, 0.99))
@settings(max_examples=examples(40, 100), deadline=None)
def test_smoothing_a_curve_stays_within_the_range_of_earlier_values(found, weight):
    even = smoothed(found, weight)
    for i, value in enumerate(even):
        seen = [v for v in found[: i + 1] if math.isfinite(v)]
        assert math.isnan(value) == math.isnan(found[i])
        if math.isfinite(value):
            assert min(seen) - 1e-6 <= value <= max(seen) + 1e-6


def test_read_run_drops_numbers_beyond_the_range_of_float(tmp_path):
    """Rows that the JSON parser cannot read are dropped, too."""
    rows = [
        {"step": 1, "loss": 2.0, "time": 10**400},
        {"step": 2, "loss": 10**400},
        {"step": 10**400, "loss": 1.0},
        {"step": math.inf, "loss": 1.0},
        {"step": 3, "loss": 1.0, "split": ["train"]},
    ]
    log = plots.read_run(write(tmp_path / "run", rows, tail="[" * 100_000 + "\n"))
    assert log.curves["loss"]["train"].steps == (1, 2)
    assert math.isnan(log.curves["loss"]["train"].values[1])
    assert math.isnan(log.curves["loss"]["train"].times[0])


@pytest.mark.parametrize(
    "config",
    [
        "a: &a [x]\nb: [*a, *a]",
        "a: &a {b: *a}",
        "".join(f"k{n}: 1\n" for n in range(60_000)),
        "a: " + 10_000 * "1",
        "a: 2024-99-99",
        10_000 * "[",
        "a: !!python/object/apply:os.system [false]",
    ],
    ids=["aliases", "recursive", "long", "digits", "date", "deep", "object"],
)
def test_summary_leaves_out_settings_of_a_config_that_ftrain_did_not_write(tmp_path, config):
    folder = write(tmp_path / "run", [{"step": 1, "split": "eval", "loss": 1.0}])
    (folder / "config.yaml").write_text(config)
    other = write(tmp_path / "other", [{"step": 1, "split": "eval", "loss": 1.0}])
    (other / "config.yaml").write_text("seed: 3")
    rows = plots.summary([folder, other])
    assert [row["seed"] for row in rows] == ["", "3"]
