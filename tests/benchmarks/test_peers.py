"""Test that peers compute the step of the eager loop, and the tables and goals of measured times."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import measure
from benchmarks.contenders import initial_model
from benchmarks.peers import cell, floor, goals, loops, table
from benchmarks.peers.__main__ import main
from benchmarks.peers.cell import Cell, Outcome
from benchmarks.peers.contenders import CONTENDERS, HAND
from benchmarks.peers.results import Results
from benchmarks.peers.workloads import TINY, WORKLOADS
from ftrain import optim

# All tiny GPTs are one model, and all tiny MLPs are another. Because tracing is slow, other programs of
# ftrain and JAX are left to `python -m benchmarks.peers --quick`, which refuses contenders that compute
# another step.
KINDS = ["mlp-3", "lenet-5", "resnet", "gpt-0.8m", "lstm"]
TRACED = ("ftrain", "ftrain-scan")


def check(work, names, backend=None):
    outcomes, running = cell.start(work, names, backend)
    for name, one in outcomes.items():
        assert not one.reason.startswith(("failed", "refused")), (name, one.reason)
        installed = not CONTENDERS[name].missing
        assert (name in running) == (installed and not one.reason)
    return outcomes


@pytest.mark.parametrize("name", KINDS)
def test_contender_computes_the_same_losses_as_the_eager_loop(name):
    slow = {"mlp-3": ("ftrain",), "gpt-0.8m": (*TRACED, "jax")}.get(name, TRACED)
    outcomes = check(TINY[name], [each for each in CONTENDERS if each not in slow])
    if TINY[name].jax_loss is None:
        assert outcomes["jax"].reason == f"unsupported: {name} is not written in JAX here"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_contenders_with_micro_batches_and_a_mask_compute_the_same_losses_as_the_eager_loop(
    precision,
):
    work = dataclasses.replace(
        TINY["mlp-3"], accumulate=4, precision=precision, mask=optim.matrices
    )
    slow = (*TRACED, "ftrain-donated", *(["jax"] if precision != "32-true" else []))
    check(work, [name for name in CONTENDERS if name not in slow])


def test_jax_gpt_computes_the_loss_and_gradients_of_the_torch_gpt():
    jax = pytest.importorskip("jax")
    work = TINY["gpt-0.8m"]
    task = work.task()
    model = initial_model(task)
    loss = task.loss_fn(model, task.batches[0])
    loss.backward()
    params = {name: jax.numpy.array(p.detach().numpy()) for name, p in model.named_parameters()}
    batch = {name: jax.numpy.array(t.numpy()) for name, t in task.batches[0].items()}
    step = jax.jit(
        jax.value_and_grad(lambda params: work.jax_loss(params, batch, jax.numpy.matmul))
    )
    found, grads = step(params)
    assert float(found) == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        theirs = torch.tensor(np.asarray(grads[name]))
        # Sums of up to 32 tokens in another order: some ulps of the largest element.
        assert (theirs - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_compiled_hand_written_loops_compute_the_losses_of_the_eager_loop():
    torch.compiler.reset()
    check(TINY["mlp-3"], [name for name in HAND if name != "compiled-loss"], "eager")


@pytest.mark.parametrize(
    "change", [{"clip": False}, {"decay": 0.0}, {"mask": optim.matrices}, {"rate": 1.1e-2}]
)
def test_contender_whose_step_computes_other_losses_is_refused(change, monkeypatch):
    other = functools.partial(dataclasses.replace, **change)
    build = CONTENDERS["eager-fused"].build
    changed = dataclasses.replace(
        CONTENDERS["eager-fused"], build=lambda work, backend: build(other(work), backend)
    )
    monkeypatch.setitem(CONTENDERS, "eager-fused", changed)
    outcomes, running = cell.start(TINY["mlp-3"], ["eager-foreach", "eager-fused"], None)
    assert outcomes["eager-fused"].reason.startswith(
        "refused: expected the losses of eager-foreach"
    )
    assert list(running) == ["eager-foreach"]


def test_contender_that_fails_or_is_not_installed_is_reported_with_the_reason(monkeypatch):
    def fail(work, backend):
        raise RuntimeError("no kernel\nwith more lines")

    one = CONTENDERS["keras"]
    monkeypatch.setitem(CONTENDERS, "keras", dataclasses.replace(one, build=fail, packages=()))
    missing = dataclasses.replace(one, packages=("no_such_package",))
    monkeypatch.setitem(CONTENDERS, "torchopt", missing)
    outcomes, running = cell.start(TINY["mlp-3"], ["eager-fused", "keras", "torchopt"], None)
    assert list(running) == ["eager-fused"]
    assert outcomes["keras"].reason == "failed: RuntimeError: no kernel"
    assert outcomes["torchopt"].reason == "not installed: no_such_package"


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2))
def test_timed_data_feed_measures_seconds_per_step_of_a_trainer_that_prefetches_batches(
    steps, accumulate, ahead
):
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.time, "perf_counter", lambda: now)
        feed = loops.Feed([{"x": torch.zeros(1)}], accumulate)
        feed.start(steps, timed=True)
        batches, now = iter(feed), 100.0  # seconds of the set-up
        queue = list(itertools.islice(batches, ahead))
        for batch in batches:
            queue.append(batch)
            queue.pop(0)
            now += 1 / accumulate
    assert feed.seconds() == pytest.approx(1.0)


def timed(**medians):
    noise = [0.99, 1.0, 1.01, 1.0, 0.99, 1.0, 1.01, 1.0, 1.0]
    outcomes = {
        name.replace("_", "-"): Outcome(tuple(median * x for x in noise))
        for name, median in medians.items()
    }
    outcomes["keras"] = Outcome(reason="not installed: keras")
    return Cell(WORKLOADS["mlp-3"], outcomes, {"cpu": "a"}, {})


def test_table_names_the_winning_peer_and_peers_that_are_not_installed():
    text = "\n".join(table.lines(timed(ftrain_donated=1e-3, eager_fused=5e-4, jax=2e-3)))
    assert "eager-fused WINS; ftrain-donated takes 2.00 times" in text
    assert "ftrain-donated wins; jax takes 2.00 times" in text
    assert "not installed: keras" in text
    text = "\n".join(table.lines(timed(ftrain_donated=1e-3, eager_fused=1e-3)))
    assert "ftrain-donated and eager-fused: no difference beyond the noise" in text


def test_verdict_of_a_goal_is_met_missed_or_not_measured():
    found = timed(ftrain_donated=1e-3, eager_fused=8e-3, compiled_loss=9e-3)
    best = ["eager-fused", "compiled-loss", "keras"]
    goal = goals.over(found, "speed", "at least", 7.9, best, ["ftrain-donated"])
    assert (goal.verdict, goal.value) == ("met", pytest.approx(8.0))
    assert "eager-fused over ftrain-donated" in goal.note
    assert dataclasses.replace(goal, bound=8.1).verdict == "missed"
    assert dataclasses.replace(goal, kind="at most", bound=8.1).verdict == "met"
    goal = goals.over(found, "speed", "at least", 8.0, ["keras"], ["ftrain-donated"])
    assert (goal.verdict, goal.note) == ("not measured", "not installed: keras")
    goal = goals.over(found, "speed", "at least", 8.0, ["jax"], ["ftrain-donated"])
    assert (goal.verdict, goal.note) == ("not measured", "not among the contenders: jax")


def test_results_file_keeps_the_results_of_earlier_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    names = "--contenders=eager-foreach,eager-fused"
    assert main(["--quick", "--workloads=mlp-3", names]) == 0
    assert main(["--quick", "--growth=batch", "--goals=scan", names]) == 0
    (path,) = tmp_path.glob("peers-*.json")
    content = json.loads(path.read_text())
    rows = content["cells"]["mlp-3, accumulate 1, 32-true"]["contenders"]
    assert {len(row["seconds"]) for row in rows.values()} == {2}
    assert list(content["growth"]["batch"]) == ["8", "64"]
    (goal,) = content["goals"]["scan"]["goals"]
    assert (goal["verdict"], goal["bound"]) == ("not measured", 2.0)
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert "goal scan\n  not measured: " in capsys.readouterr().out


def test_measurement_that_several_goals_need_is_made_once(monkeypatch):
    measured = []

    def measure_once(work, names, **settings):
        measured.append(work.key)
        return timed(ftrain_donated=1e-3, eager_fused=2e-3, jax=3e-3)

    monkeypatch.setattr(goals.cell, "measure", measure_once)
    shared = goals.Measured(
        Results(save=False), True, [], {"rounds": 2, "seconds": 0.0, "backend": None}
    )
    found = [*goals.gpt_torch(shared), *goals.gpt_jax(shared), *goals.mlp_3(shared)]
    assert [goal.value for goal in found] == pytest.approx([2.0, 3.0, 2.0, 1 / 3, 2.0, 1 / 3])
    assert measured == [
        "gpt-0.8m, accumulate 1, 32-true",
        "mlp-3, accumulate 1, 32-true",
        "mlp-3, accumulate 1, 32-true, not clipped",
    ]


def test_peers_command_refuses_unknown_names_and_stops_at_the_time_limit(capsys):
    with pytest.raises(SystemExit):
        main(["--workloads", "gpt-9"])
    assert "expected some of mlp-3, mlp-50" in capsys.readouterr().err
    main(["--quick", "--no-save", "--workloads=mlp-3", "--minutes=0"])
    assert "mlp-3, accumulate 1, 32-true: not measured" in capsys.readouterr().out


def test_floor_counts_the_products_of_a_step_and_the_memory_of_adamw():
    least = floor.step_floor(TINY["mlp-3"].task())
    # Three products of the forward pass; three by weights and two by inputs of the backward pass.
    assert least.calls == 8
    assert min(least.products, least.memory) > 0
    assert least.seconds == least.products + least.memory
    assert str(least).startswith("floor ")
