"""Run the benchmarks at a tiny size without a C++ compiler; figures are not checked.

Outside a campaign, what a benchmark measures in new processes is measured in this one.
"""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import (
    chains,
    checkpoints,
    digests,
    distributed,
    draws,
    grad_cache,
    latency,
    loading,
    measure,
    memory,
    speed,
    sweep,
    trainers,
)
from benchmarks.contenders import Sizes
from ftrain.bench import allocated
from tests.campaign import CAMPAIGN, long

TINY = Sizes(layers=1, heads=2, width=16, context=8, batch=4, vocabulary=11)


def test_take_turns_interleaves_contenders_and_computes_ratios_within_each_round():
    order = []
    turns = measure.take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        seconds=0.0,
        warmup=0,
    )
    assert order[-4:] == ["a", "b", "b", "a"]  # each round starts with another
    assert {len(seconds) for seconds in turns.seconds.values()} == {2}
    # A machine twice as slow in the second round changes medians, not ratios.
    turns = measure.Turns({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 3.0]})
    assert turns.ratio("b", "a") == 3.0
    assert turns.fastest(["b", "a"]) == "a"


def test_benchmark_report_is_saved_with_figures_and_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    report = measure.Report("name", "Title")
    report.figure("key", 1.5, "ms", "what it is")
    report.target("ratio", 1.1, "at least", 1.15)
    content = json.loads(report.save().read_text())
    assert content["figures"]["key"] == {"value": 1.5, "unit": "ms", "what": "what it is"}
    assert content["targets"][0]["met"] is False
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"] == torch.__version__
    assert "MISSED" in capsys.readouterr().out


def test_measured_allocations_of_a_function_equal_its_known_peak_memory():
    def known():
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a, b
        return torch.empty(500)

    assert allocated(known) == (12_000, 2_000)


@long
def test_benchmark_of_speed_prints_the_ratio_to_the_best_loop(capsys):
    speed.run(True, sizes=TINY, leaves=5, backend="eager")
    assert "GPT: speed over the best compiled loop" in capsys.readouterr().out


def test_benchmark_of_sweeps_returns_a_report():
    report = sweep.run(True, sizes=(1, 2), backend="eager")
    assert "mlp 2: one graph" in report.content["figures"]
    assert len(report.content["targets"]) == 3


def test_benchmark_of_memory_returns_a_report():
    report = memory.run(True, width=32, backend="eager")
    assert report.content["figures"]["step: by hand: eager, fused AdamW"]["value"] > 1


def test_benchmark_of_random_draws_returns_a_report():
    report = draws.run(True, numbers=1000, backend="eager")
    assert len(report.content["targets"]) == 4


def test_benchmark_of_data_loading_returns_a_report():
    report = loading.run(True)
    assert len(report.content["targets"]) == 3


@pytest.mark.parametrize("kind", latency.TITLES)
def test_latency_of_the_first_step_is_positive(kind):
    assert latency.first_step(kind, TINY, "eager") > 0


@long
def test_benchmark_of_latency_works_in_a_fresh_process():
    report = latency.run(True, sizes=TINY, backend="eager", kinds=("ours",))
    assert report.content["figures"]["cold: ours"]["value"] > 0


def test_benchmark_of_trainers_returns_a_report():
    report = trainers.run(True, backend="eager")
    assert len(report.content["targets"]) == 1


def test_benchmark_of_checkpoints_returns_a_report(monkeypatch):
    if not CAMPAIGN:

        def here(kind, cache, sizes, backend):
            cache.mkdir(parents=True, exist_ok=True)  # the benchmark moves it
            seconds = latency.first_step(kind, sizes, backend)
            return latency.First(seconds, seconds, seconds)

        monkeypatch.setattr(checkpoints, "in_fresh_process", here)
    report = checkpoints.run(True, megabytes=1, sizes=TINY, backend="eager")
    assert len(report.content["targets"]) == 3
    assert report.content["figures"]["compile: speed-up"]["value"] > 0


def test_benchmark_of_optimizer_chains_returns_a_report(monkeypatch):
    if not CAMPAIGN:
        monkeypatch.setattr(chains, "_in_fresh_process", chains.child)
    report = chains.run(True, size=chains.Size(layers=2, width=8, batch=4), backend="eager")
    whats = [target["what"] for target in report.content["targets"]]
    assert whats == [
        "a training step: the chain over AdamW",
        "cold compile, processor time: the chain over AdamW",
    ]


def test_benchmark_of_state_digests_returns_a_report():
    report = digests.run(True, sizes=TINY, backend="eager")
    whats = [target["what"] for target in report.content["targets"]]
    assert whats == [
        "one digest in 50 steps, % of a compiled step",
        "one digest in 50 steps, % of an eager step",
    ]


def test_benchmark_of_grad_cache_returns_a_report():
    report = grad_cache.run(True, width=8, compiled=False)
    whats = [target["what"] for target in report.content["targets"]]
    assert whats == ["GradCache: 128 rows over 64", "eager: GradCache over one graph"]


@long
def test_benchmark_of_distributed_training_returns_a_report():
    report = distributed.run(True, "eager")
    assert [target["what"] for target in report.content["targets"]] == [
        "eager: time of ftrain over DDP",
        "compiled: time of ftrain over DDP",
    ]
    sizes = [report.content["figures"][f"traffic: {name}"]["value"] for name in ("ftrain", "DDP")]
    # Beside the gradients, ftrain sends their weight and the loss metric.
    assert sizes[0] == pytest.approx(sizes[1], abs=16 / 1024)
