"""Test `ftrain diff`, which compares two run directories or two traces."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

from ftrain.cli import main
from ftrain.testing import Trace
from tests.testing.divergence.variants import VARIANTS

CONFIG = """
model: {name: mlp, inputs: 64, outputs: 10, hidden: [8]}
data: digits
max_steps: 10
batch_size: 16
compile: false
progress: false
threads: 1
log_every: 5
log_digests: 1
checkpoint: {every: 5}
"""

#: Python module with two optimizers, of which the second adds one ulp to one weight at step 7.
OPTIMIZERS = """
import torch
from ftrain import optim

def plain(learning_rate):
    return optim.adamw(learning_rate)

def planted(learning_rate):
    inner = optim.adamw(learning_rate)
    def update(grads, state, params, **extra):
        updates, new = inner.update(grads, state, params, **extra)
        name = [name for name in params if name.endswith("weight")][0]
        value = updates[name].clone()
        # An ulp of the weight, which is larger than one of the update.
        here = params[name][3, 5]
        ulp = torch.nextafter(here.abs(), torch.tensor(9.0)) - here.abs()
        value[3, 5] += torch.where(state.count == 6, ulp, 0.0)
        return {**updates, name: value}, new
    return optim.GradientTransformation(inner.init, update)
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "optimizers.py").write_text(OPTIMIZERS)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.path[:] = path


Captured = pytest.CaptureFixture[str]


def train(name: str, *overrides: str) -> None:
    assert main(["train", "config.yaml", f"output_dir={name}", *overrides]) == 0


def compared(capsys: Captured, *arguments: str, code: int = 1) -> str:
    capsys.readouterr()
    assert main(["diff", *arguments]) == code
    return capsys.readouterr().out


def test_diff_of_equal_runs_reports_no_difference(folder: pathlib.Path, capsys: Captured) -> None:
    train("a", "ema=0.9")  # its evaluation logs ema/duration and ema/samples_per_second
    train("b", "ema=0.9")
    said = compared(capsys, "a", "b", code=0)
    assert "no difference in anything that both runs recorded" in said
    assert "digests: equal at all 11 common steps" in said
    assert "checkpoints: equal at all common steps: 5, 10" in said


def test_diff_locates_a_change_of_one_ulp_by_step_and_leaf(
    folder: pathlib.Path, capsys: Captured
) -> None:
    train("a", "optimizer.name=optimizers.py:plain")
    train("b", "optimizer.name=optimizers.py:planted")
    said = compared(capsys, "a", "b", "--html", "diff.html")
    assert 'optimizer.name  "../optimizers.py:plain"  "../optimizers.py:planted"' in said
    assert "digests: first difference at step 7: state at .params['1.weight']\n" in said
    assert "7   equal" not in said.split("\n\n")[0]
    assert "checkpoints: first difference at step 10: " in said
    page = (folder / "diff.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "optimizers.py:planted" in page


def test_diff_of_runs_with_different_seeds_lists_configuration_initial_state_and_batches(
    folder: pathlib.Path, capsys: Captured
) -> None:
    train("a")
    train("b", "seed=1")
    said = compared(capsys, "a", "b")
    assert said.startswith("A and B differ in configuration, digests, metrics, checkpoints\n")
    assert re.search(r"configuration: 1 of \d+ keys differ\n  seed  0  1\n", said)
    assert "digests: the initial states differ at .params['1.bias'], " in said
    assert "metrics: first difference in the row of step 5, train: loss" in said
    assert "checkpoints: first difference at step 5: " in said


def test_diff_of_digests_at_every_fourth_step_reports_a_range_of_steps(
    folder: pathlib.Path, capsys: Captured
) -> None:
    train("a", "optimizer.name=optimizers.py:plain", "log_digests=4")
    train("b", "optimizer.name=optimizers.py:planted", "log_digests=4")
    said = compared(capsys, "a", "b")
    assert "first difference after step 4 and up to step 8 (log_digests=1 finds the step): " in said


def test_diff_finds_a_swapped_sample_and_a_changed_library_version_in_the_log(
    folder: pathlib.Path, capsys: Captured
) -> None:
    train("a")
    train("b")
    log = folder / "b" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    digests = {row["step"]: row for row in lines if row["split"] == "digest"}
    digests[0]["environment"]["numpy"] = "0.9"
    x = digests[6]["rows"]["['x']"]
    x[2], x[9] = x[9], x[2]
    digests[6]["batch"]["['x']"] = "0" * 16
    log.write_text("\n".join(map(json.dumps, lines)) + "\n")
    said = compared(capsys, "a", "b")
    assert "environment: 1 of " in said
    assert "0.9" in said
    assert (
        "digests: first difference at step 6: batch['x'] of step 6 (rows 2, 9 differ: B has the rows of "
        "A in another order)\n" in said
    )


def test_diff_compares_runs_without_digests_by_metrics_and_checkpoints(
    folder: pathlib.Path, capsys: Captured
) -> None:
    train("a", "log_digests=null")
    train("b", "log_digests=null", "optimizer.learning_rate=0.002")
    said = compared(capsys, "a", "b")
    assert "digests: no step has digests in both runs; train with log_digests=1" in said
    assert "environment: equal" in said
    assert re.search(r"  optimizer.learning_rate  \S+ +0.002\n", said)
    assert "checkpoints: first difference at step 5: " in said


def test_diff_refuses_to_compare_a_run_with_a_trace(folder: pathlib.Path, capsys: Captured) -> None:
    train("a")
    (folder / "b.trace").write_bytes(b"")
    assert main(["diff", "a", "b.trace"]) == 2
    assert "expected two directories of runs, or two traces" in capsys.readouterr().err
    assert main(["diff", "b.trace", "b.trace"]) == 1
    assert "expected a trace written by ftrain.testing.record" in capsys.readouterr().err


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a directory with the traces of two steps."""
    found = tmp_path_factory.mktemp("traces")
    for name in ("base", "eps"):
        VARIANTS[name]().save(found / f"{name}.trace")
    return found


def test_diff_command_reports_another_library_version_even_if_all_steps_agree(
    traces: pathlib.Path, tmp_path: pathlib.Path, capsys: Captured
) -> None:
    base = Trace.load(traces / "base.trace")
    other = Trace(base.form, {**base.environment, "numpy": "0.9"}, base.initial, base.steps)
    other.save(tmp_path / "other.trace")
    assert main(["diff", str(traces / "base.trace"), str(tmp_path / "other.trace")]) == 1
    said = capsys.readouterr().out
    assert "the traces are equal in all common steps" in said
    assert "environment: 1 differ\n  numpy" in said


def test_diff_command_prints_the_first_difference_and_writes_a_page(
    traces: pathlib.Path, tmp_path: pathlib.Path, capsys: Captured
) -> None:
    page = tmp_path / "diff.html"
    names = [str(traces / f"{name}.trace") for name in ("base", "eps")]
    assert main(["diff", *names, "--html", str(page)]) == 1
    assert "first difference: step 1, operator aten.add.Tensor" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert not any(each in text for each in ("http://", "https://", "<script", "src="))
    assert "(_, 1e-06)" in text
    assert "<td>differs by about" in text


def test_diff_command_returns_0_for_equal_traces(traces: pathlib.Path) -> None:
    names = [str(traces / "base.trace")] * 2
    assert main(["diff", *names]) == 0
