"""Test reports of `ftrain.benchmark`: counted figures, variants and errors; times only by agreement."""

from __future__ import annotations

import gc
import math
import statistics
import time
from typing import Any

import pytest
import torch

import ftrain
from ftrain.bench import sweep
from ftrain.bench._cases import MISSING, Subject
from tests.bench import steps

QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.0, "backend": "eager"}


def test_benchmark_measures_eager_compiled_and_donated_variants_of_an_ftrain_step() -> None:
    step, state, batch = steps.pure()
    before = ftrain.tree.digest(state)
    report = ftrain.benchmark(step, state, batch, **QUICK)
    assert ftrain.tree.digest(state) == before
    assert [row.variant for row in report.measurements] == ["eager", "compiled", "donated"]
    assert report.notes == ()
    for row in report.measurements:
        assert (row.samples, row.tokens) == (8, 0)
        # The FLOPs of the matrix product and of the gradient of its weight.
        assert row.flops == {"float32": 2 * (2 * 8 * 6 * 3)}
        assert len(row.seconds) == 2
        assert row.p5 <= row.p95
        assert row.kernels > 2
        assert row.device_seconds + row.host_seconds == pytest.approx(row.median)
        assert row.first_call > 0
        assert row.matrix_share is not None
        assert math.isinf(row.noise)
    text = str(report)
    assert "in too few turns to tell it from noise" in text
    assert "tokens/s" not in text  # there are none


def test_benchmark_measures_a_hand_written_pure_step_without_donation() -> None:
    step, params, batch = steps.by_hand()
    report = ftrain.benchmark(step, params, batch, **QUICK)
    assert [row.variant for row in report.measurements] == ["eager", "compiled"]
    assert [dict(row.flops) for row in report.measurements] == [{"float32": 2 * 2 * 8 * 6}] * 2
    asked = ftrain.benchmark(step, params, batch, variants=["eager", "donated"], **QUICK)
    (note,) = asked.notes
    assert "donated was not measured: donation needs a state that is a frozen dataclass" in note


def test_benchmark_measures_an_in_place_step_in_eager_mode_and_under_torch_compile() -> None:
    step, batch = steps.plain()
    report = ftrain.benchmark(step, batch=batch, **QUICK)
    assert [row.variant for row in report.measurements] == ["eager", "compiled"]
    eager = report["eager"]
    assert eager.flops == {"float32": 2 * (2 * 8 * 6 * 3)}
    assert (eager.samples, eager.tokens) == (8, 48)
    assert "tokens/s" in str(report)


def test_benchmark_measures_an_impure_step_in_eager_mode_and_notes_missing_variants() -> None:
    def step(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return w.add_(x.mean(0))

    report = ftrain.benchmark(step, torch.zeros(3), torch.ones(2, 3), **QUICK)
    assert [row.variant for row in report.measurements] == ["eager"]
    assert report.notes[0].startswith("compiled was not measured: ImpureFunctionError: ")


def test_benchmark_advances_the_state_within_a_timing_round_and_resets_it_for_the_next() -> None:
    seen: list[float] = []

    def step(count: torch.Tensor) -> torch.Tensor:
        seen.append(count.item())
        return count + 1

    ftrain.benchmark(step, torch.zeros(()), variants=["eager"], rounds=2, seconds=0.0)
    last_turn = seen[-2:]  # one call to warm up, one timed
    assert last_turn == [0.0, 1.0]


def test_benchmark_passes_the_same_arguments_to_a_function_that_returns_no_state() -> None:
    init_state, _, eval_step = ftrain.make_steps(
        lambda: torch.nn.Linear(2, 1), lambda model, x: model(x).sum(), ftrain.optim.sgd(0.1)
    )
    report = ftrain.benchmark(eval_step, init_state(0), torch.ones(4, 2), **QUICK)
    assert [row.variant for row in report.measurements] == ["eager", "compiled"]


def test_reported_peak_memory_of_a_pure_step_is_its_arguments_plus_its_allocations() -> None:
    n = 1000

    def step(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return w + (x * 2)

    report = ftrain.benchmark(step, torch.ones(n), torch.ones(n), variants=["eager"], **QUICK)
    row = report["eager"]
    assert row.steady_bytes == 2 * 4 * n
    assert row.peak_bytes == 4 * 4 * n


def test_reported_memory_of_an_in_place_step_includes_gradients_and_optimizer_state() -> None:
    step, batch = steps.plain(batch_size=1)
    gc.unfreeze()  # the collector does not list frozen objects, tensors of earlier tests among them
    before = ftrain.benchmark(step, batch=batch, variants=["eager"], **QUICK)["eager"].steady_bytes
    kept = torch.zeros(10_000)
    after = ftrain.benchmark(step, batch=batch, variants=["eager"], **QUICK)["eager"].steady_bytes
    # Other tests may leave tensors that are collected between the two.
    assert before >= 4 * 21 * 4  # weight and bias, with gradients and two moments
    assert after <= before + kept.nbytes + 10_000


def test_sweep_measures_every_combination_and_compares_the_values_of_a_setting() -> None:
    values = {"batch_size": [4, 8], "accumulate": [1, 2]}
    report = sweep(steps.pure, values, variants=["eager", "compiled"], **QUICK)
    assert [row.name for row in report.measurements] == [
        f"{variant}, batch_size={size}, accumulate={k}"
        for size in (4, 8)
        for k in (1, 2)
        for variant in ("eager", "compiled")
    ]
    flops = {row.name: sum(row.flops.values()) for row in report.measurements}
    assert flops["eager, batch_size=8, accumulate=2"] == 2 * (2 * 8 * 6 * 3)
    assert (
        flops["eager, batch_size=8, accumulate=1"] == flops["compiled, batch_size=8, accumulate=2"]
    )
    text = str(report)
    assert "compiled, batch_size=8, accumulate=2, against batch_size=4" in text
    assert "compiled, batch_size=8, accumulate=2, against accumulate=1" in text
    assert "compiled, batch_size=8, accumulate=2, against eager" in text


def test_report_compares_each_precision_with_the_rate_of_matrix_products_in_its_dtype() -> None:
    values = {"precision": ["32-true", "bf16-mixed"]}
    report = sweep(steps.pure, values, variants=["eager"], **QUICK)
    rates = [set(row.rates) for row in report.measurements]
    assert rates == [{"float32"}, {"bfloat16"}]
    assert "bfloat16" in str(report).splitlines()[1]


def test_report_of_a_benchmark_with_explain_contains_the_costs_of_kernels() -> None:
    step, state, batch = steps.pure()
    report = ftrain.benchmark(step, state, batch, variants=["donated"], explain=True, **QUICK)
    cost = report["donated"].cost
    assert cost is not None
    assert sum(row.calls for row in cost.kernels) == report["donated"].kernels
    assert "operators before fusion" in str(report)


def test_reported_times_agree_with_times_measured_by_hand() -> None:
    watch: list[float] = []

    def step(x: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        time.sleep(0.004)
        x = x + 1
        watch.append(time.perf_counter() - start)
        return x

    report = ftrain.benchmark(step, torch.zeros(3), variants=["eager"], rounds=3, seconds=0.02)
    row = report["eager"]
    # The same calls by both clocks, so that other load does not matter.
    assert row.p5 >= min(watch) >= 0.004
    assert statistics.median(watch) / 2 <= row.median <= max(watch) + 0.004
    assert row.samples_per_second == pytest.approx(row.samples / row.median)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"seconds": -1.0}, "seconds: expected a number >= 0, got -1.0"),
        ({"seconds": math.nan}, "seconds: expected a number >= 0"),
        (
            {"variants": ["compild"]},
            "variants: expected some of eager, compiled, donated, got 'compild'. Did you mean",
        ),
    ],
)
def test_benchmark_refuses_options_out_of_range(options: Any, message: str) -> None:
    step, state, batch = steps.pure()
    with pytest.raises(ValueError, match=message):
        ftrain.benchmark(step, state, batch, **options)


def test_benchmark_times_a_step_on_cuda_if_the_process_uses_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, batch = steps.plain()  # its model may be on the device, and its batch copied to it
    assert Subject.of(step, MISSING, batch).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert Subject.of(step, MISSING, batch).device.type == "cuda"


def test_benchmark_raises_the_error_of_the_step_itself() -> None:
    step, state, batch = steps.fails()
    with pytest.raises(ValueError, match="the step is broken"):
        ftrain.benchmark(step, state, batch)


def test_benchmark_refuses_an_argument_that_is_not_a_step() -> None:
    not_callable: Any = torch.nn.Linear(2, 2).weight
    with pytest.raises(TypeError, match="step: expected a function, got a Parameter"):
        ftrain.benchmark(not_callable, torch.zeros(2), torch.zeros(2))
    with pytest.raises(TypeError, match=r"wrong: expected \(step, state, batch\), .* got 1 value"):
        sweep(steps.wrong, {})
    with pytest.raises(TypeError, match="got int"):
        sweep(lambda: 3, {})  # type: ignore[arg-type, return-value]  # on purpose


def test_benchmark_names_a_missing_batch_before_it_measures_anything() -> None:
    calls = []

    def step(state: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return state - batch

    with pytest.raises(TypeError, match=r"\(state, batch\), got 1: .*'batch'.*Write benchmark"):
        ftrain.benchmark(step, torch.zeros(3), backend="eager")
    assert not calls
