"""Test that correct steps pass every check that applies to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from examples import digits
from ftrain import optim, testing
from ftrain.core import tree
from tests.campaign import long
from tests.testing import plain
from tests.zoo import ZOO

REGRESSION = [{**batch, "y": batch["y"].float()} for batch in plain.batches(2)]


def steps(name: str, precision: str, accumulate: int = 1) -> ftrain.Steps:
    case = ZOO[name]
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(optim.warmup_cosine(1e-2, 2, 20))
    )
    return ftrain.make_steps(
        case.model, case.loss_fn, optimizer, precision=precision, accumulate=accumulate
    )


@pytest.mark.parametrize(
    ("name", "precision", "accumulate", "inapplicable"),
    [
        ("mlp", "16-mixed", 2, []),
        ("convnet", "32-true", 1, ["accumulation"]),
        pytest.param("mlp", "32-true", 1, [], marks=long),
        pytest.param("gpt", "bf16-true", 1, [], marks=long),
        pytest.param("lstm", "32-true", 1, [], marks=long),
    ],
)
def test_ftrain_steps_pass_every_law(
    name: str, precision: str, accumulate: int, inapplicable: list[str]
) -> None:
    batches = [ZOO[name].batch(seed, 8) for seed in range(2)]
    reports = testing.check_all(steps(name, precision, accumulate), batches)
    assert reports.passed
    assert [report.law for report in reports if not report.applies] == inapplicable


def test_steps_with_a_compiled_train_step_pass_every_law_that_applies() -> None:
    init_state, train_step, eval_step = steps("mlp", "32-true")
    compiled = ftrain.compile(train_step, backend="eager")
    batches = [ZOO["mlp"].batch(seed, 8) for seed in range(2)]
    reports = testing.check_all((init_state, compiled, eval_step), batches)
    assert [report.law for report in reports if not report.applies] == ["exception_safety"]


@pytest.mark.parametrize(
    ("step", "state", "batches", "skip"),
    [
        (plain.keyed_step, plain.start(), plain.batches(2), []),
        (
            plain.averaging_step,
            {"w": torch.zeros(4), "ema": torch.zeros(4)},
            REGRESSION,
            [],
        ),
        # A Python optimizer, and a generator seeded by a number, run in eager mode only; neither skips.
        (
            plain.optimizer_step,
            plain.linear_start(),
            plain.batches(2),
            ["skip", "compiled", "donation", "vmap"],
        ),
        (
            plain.generator_step,
            {"w": torch.ones(4), "seed": torch.tensor(3)},
            REGRESSION,
            ["skip", "compiled", "donation", "vmap"],
        ),
    ],
    ids=["keyed", "averaging", "optimizer", "generator"],
)
def test_steps_written_without_ftrain_pass_every_law_that_applies(
    step: Any, state: Any, batches: Any, skip: list[str]
) -> None:
    before = tree.digest((state, batches))
    reports = testing.check_all(step, batches, state=state, skip=skip)
    inapplicable = {report.law for report in reports if not report.applies}
    assert inapplicable == {"evaluation", "accumulation", "gradients", *skip}
    assert tree.digest((state, batches)) == before


def test_functions_of_trees_pass_every_law() -> None:
    def fn(params: Any, x: torch.Tensor) -> Any:
        return {"y": torch.tanh(x @ params["w"] + params["b"])}

    params = {"w": torch.linspace(-1, 1, 12).view(4, 3), "b": torch.zeros(3)}
    reports = testing.check_function(fn, params, torch.ones(2, 4))
    assert [report.law for report in reports] == [
        "pure", "deterministic", "keyed", "compiled", "exception_safety", "gradients",
    ]  # fmt: skip
    assert reports.passed
    rows = {"w": torch.randn(5, 4, 3), "b": torch.randn(5, 3)}
    assert testing.check_vmap(fn, args=(rows, torch.ones(5, 2, 4))).passed


def test_check_gradients_accepts_relu_max_pooling_and_frozen_parameters() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(1, 3, 3), nn.Linear(3, 2)
            self.conv.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x[:, None]).relu().amax(-1))  # type: ignore[no-any-return]

    def loss_fn(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"] % 2)

    report = testing.check_gradients(
        ftrain.make_steps(Net, loss_fn, optim.sgd(0.1)), plain.batches(2), directions=5
    )
    assert "in float64" in report.rows[0].what


def test_gradient_check_of_a_float32_loss_allows_for_rounding() -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch["x"].float()).float(), batch["y"])

    made = ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.1))
    report = testing.check_gradients(made, plain.batches(1))
    assert "in float32" in report.rows[0].what


@pytest.mark.inductor
def test_inductor_steps_pass_within_the_default_tolerance() -> None:
    made = steps("mlp", "bf16-mixed")
    batches = [ZOO["mlp"].batch(seed, 8) for seed in range(2)]
    assert testing.check_compiled(made, batches, backend="inductor").passed


def test_checks_restore_random_generators() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": state["w"] + torch.rand(4)}, {}

    before = torch.get_rng_state()
    with pytest.raises(testing.LawViolation):
        testing.check_deterministic(step, [None], state={"w": torch.zeros(4)})
    assert torch.equal(torch.get_rng_state(), before)


def test_fast_checks_pass_on_the_digits_example() -> None:
    training, _ = digits.digits()
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3, weight_decay=0.05))
    made = ftrain.make_steps(digits.LeNet5, digits.loss_fn, optimizer)
    batches = [tree.map(lambda x, i=i: x[i : i + 16], training) for i in (0, 16)]
    reports = testing.check_all(made, batches, fast=True)
    assert [report.outcome for report in reports] == ["passed"] * 7
