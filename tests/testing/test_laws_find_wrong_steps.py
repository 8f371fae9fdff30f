"""Test that the checks of laws 5 to 10 find faults in plain PyTorch steps, and name the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, testing
from tests.testing.faults import BATCHES, STATE, line_with, violation

HERE = Path(__file__).name


# Law 5


def masked_mean(model: Any, batch: Any) -> Any:
    errors = (model(batch["x"]) - batch["y"]).square().sum(-1)
    return (errors * batch["mask"]).sum() / batch["mask"].sum()


def masked_sum(model: Any, batch: Any) -> Any:
    errors = (model(batch["x"]) - batch["y"]).square().sum(-1)
    return ftrain.Mean((errors * batch["mask"]).sum(), batch["mask"].sum())


def masked_batches() -> list[Any]:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 1])
    x = torch.randn(8, 4, generator=g)
    return [{"x": x, "y": torch.randn(8, 2, generator=g), "mask": mask}]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_check_accumulation_finds_a_mean_of_means_under_dropout(accumulate: int) -> None:
    def steps(loss_fn: Any) -> Any:
        return ftrain.make_steps(
            lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
            loss_fn,
            optim.adamw(1e-3),
            accumulate=accumulate,
        )

    found = violation(testing.check_accumulation, steps(masked_mean), masked_batches())
    assert "another gradient than the whole batch: ['" in found.summary
    assert "ftrain.Mean(total, weight)" in str(found.remedy)
    report = testing.check_accumulation(steps(masked_sum), masked_batches(), ragged=True)
    assert "2 unequal micro-batches" in str(report)


def test_check_accumulation_accepts_a_custom_step() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": state["w"] - 0.1 * batch.mean(0)}, {}

    def parts_of(weights: Any) -> Any:
        def accumulated(state: Any, parts: Any) -> Any:
            grads = [w * part.mean(0) for w, part in zip(weights(parts), parts, strict=True)]
            return {"w": state["w"] - 0.1 * sum(grads)}, {}

        return accumulated

    batches, state = [torch.randn(8, 3)], {"w": torch.zeros(3)}
    right = parts_of(lambda parts: [len(p) / sum(map(len, parts)) for p in parts])
    wrong = parts_of(lambda parts: [1.0 for _ in parts])
    testing.check_accumulation(step, batches, state=state, accumulated=right, ragged=True)
    found = violation(testing.check_accumulation, step, batches, state=state, accumulated=wrong)
    assert "2 micro-batches give another update" in found.summary


# Law 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s, b, ok: {"w": s["w"] - b, "n": s["n"], "m": s["m"]},
            r"at \['w'\]: first at \(0,\)",
        ),
        (lambda s, b, ok: {**s, "n": s["n"] + 1}, r"at \['n'\]: expected 4, got 5"),
        (lambda s, b, ok: {**s, "m": 0.9 * s["m"]}, r"at \['m'\]"),
    ],
)
def test_check_skip_names_the_leaf_that_a_skipped_step_changes(change: Any, said: str) -> None:
    def step(state: Any, batch: Any) -> Any:
        ok = batch.isfinite().all()
        good = {"w": state["w"] - batch, "n": state["n"] + 1, "m": 0.9 * state["m"] + batch}
        bad = change(state, batch, ok)
        new = {name: torch.where(ok, good[name], bad[name]) for name in good}
        return new, {"loss": batch.sum(), "skipped": ~ok}

    state = {"w": torch.zeros(8), "n": torch.tensor(1), "m": torch.ones(8)}
    found = violation(testing.check_skip, step, BATCHES, state=state)
    with pytest.raises(AssertionError, match=said):
        raise found
    assert found.difference is not None
    assert found.difference.count >= 1


def test_check_skip_finds_a_step_that_is_not_skipped_and_refuses_a_batch_with_finite_gradients() -> (
    None
):
    def step(state: Any, batch: Any) -> Any:
        return dict(state), {"skipped": torch.tensor(0)}

    assert "was not skipped" in violation(testing.check_skip, step, BATCHES, state=STATE).summary
    with pytest.raises(ValueError, match="poison: expected a batch with non-finite gradients"):
        testing.check_skip(lambda s, b: (dict(s), {"n": torch.ones(())}), BATCHES, state=STATE)
    with pytest.raises(ValueError, match=r"poison: expected a function.*no floats"):
        testing.check_skip(lambda s, b: (dict(s), {}), [torch.tensor([1])], state=STATE)


def validated(model: Any, batch: Any) -> torch.Tensor:
    normal = torch.distributions.Normal(model(batch["x"]), 1.0, validate_args=True)
    return -normal.log_prob(batch["y"]).mean()


@pytest.mark.parametrize(
    ("loss_fn", "nonfinite", "reason"),
    [(validated, "skip", "raised ValueError"), (masked_mean, "raise", "raised NonFiniteError")],
)
def test_check_all_reports_law_skip_as_not_applicable_if_the_step_raises_for_the_non_finite_batch(
    loss_fn: Any, nonfinite: Any, reason: str
) -> None:
    steps = ftrain.make_steps(nn.Linear(4, 2), loss_fn, optim.sgd(0.1), nonfinite=nonfinite)
    reports = testing.check_all(steps, masked_batches() * 2, fast=True)
    assert not reports["skip"].applies
    assert reason in str(reports["skip"].reason)
    assert "Pass poison=" in str(reports["skip"].reason)
    assert reports.passed


# Law 7


def test_check_resume_finds_state_outside_of_the_checkpoint() -> None:
    weight = torch.zeros(8)
    built: list[Any] = []

    def step(state: Any, batch: Any) -> Any:
        if not built:  # built at the first call, and never saved
            built.append(torch.optim.Adam([weight.requires_grad_()], lr=0.1))
        with torch.no_grad():
            weight.copy_(state["w"])
        weight.grad = batch.clone()
        built[0].step()
        return {"w": weight.detach().clone()}, {}

    found = violation(testing.check_resume, step, BATCHES, state={"w": torch.zeros(8)})
    assert found.summary.startswith("resuming before step 0 gave another state: ['w'] at (0,)")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (lambda s, b: ({**s, "rate": 0.1}, {}), "cannot be saved"),
        (lambda s, b: ({**s, "m": s["w"] * 1}, {}), "cannot be loaded into an initial state"),
    ],
)
def test_check_resume_finds_states_that_no_checkpoint_restores(step: Any, said: str) -> None:
    found = violation(testing.check_resume, step, BATCHES, state={"w": torch.zeros(8)})
    assert said in found.summary
    assert "before step 1" in found.summary


# Law 8


def test_check_vmap_finds_steps_that_mix_rows_or_cannot_be_mapped() -> None:
    def mixes(state: Any, batch: Any) -> Any:
        return {"w": state["w"] + batch}, {"loss": torch.tensor(0.0)}

    states = [{"w": torch.full((8,), float(i))} for i in range(3)]
    testing.check_vmap(mixes, BATCHES, state=states[0], states=states)

    shared = torch.zeros(8)

    def writes(state: Any, batch: Any) -> Any:
        shared.copy_(state["w"])  # writes a mapped tensor
        return {"w": shared + batch}, {}

    found = violation(testing.check_vmap, writes, BATCHES, state=states[0], states=states)
    assert "cannot be mapped" in found.summary
    assert line_with(__file__, "writes a mapped tensor") in str(found.line)


def test_check_vmap_of_a_function_finds_a_row_that_differs() -> None:
    class Rows(torch.autograd.Function):
        """Function whose rule for vmap sums over the rows."""

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            """Keep nothing."""

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
            return (x * 2).roll(1, dims=0), 0

    found = violation(testing.check_vmap, Rows.apply, args=(torch.arange(6.0).view(3, 2),))
    assert "row 0 of the vmapped apply differs" in found.summary


# Law 9


def test_check_donation_finds_a_state_whose_leaves_share_memory() -> None:
    w = torch.zeros(8)

    def step(state: Any, batch: Any) -> Any:
        new = state["w"] - batch
        return {"w": new, "ema": new}, {}

    found = violation(testing.check_donation, step, BATCHES, state={"w": w, "ema": w})
    assert "['ema']` and `state.state['w']` share memory" in found.summary


# Law 10


def test_check_evaluation_finds_swapped_weights_that_are_not_restored() -> None:
    model = nn.Linear(8, 8)

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {**state, "w": state["w"] + model(batch)}, {}

    def evaluate(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            model.weight.zero_()  # not swapped back
        return {"loss": model(batch).sum().detach()}

    found = violation(testing.check_evaluation, step, BATCHES, state=STATE, evaluate=evaluate)
    assert "model.weight" in found.summary
    assert found.operator == "aten.zero_.default"
    assert line_with(__file__, "not swapped back") in str(found.line)


def test_check_evaluation_finds_state_that_check_pure_misses(tmp_path: Path) -> None:
    flag = tmp_path / "flag"  # on the disk, where no walk finds it
    flag.write_text("1")

    def step(state: Any, batch: Any) -> Any:
        return {**state, "w": state["w"] + float(flag.read_text())}, {}

    def evaluate(state: Any, batch: Any) -> Any:
        flag.write_text("2")
        return {"loss": batch.sum()}

    found = violation(testing.check_evaluation, step, BATCHES, state=STATE, evaluate=evaluate)
    assert "evaluation changed training: state['w'] at (0,)" in found.summary
