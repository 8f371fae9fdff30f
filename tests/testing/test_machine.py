"""Test that `TrainingMachine` passes on correct steps, and finds faults by short rule sequences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from torch import nn

from ftrain import Mean, checkpoint, data, make_steps, optim
from ftrain.core.step import Steps
from ftrain.testing.machine import TrainingMachine, training_machine

X = torch.linspace(-1.0, 1.0, 24).reshape(6, 4)
BATCHES = [{"x": X, "y": X.sum(1, keepdim=True)}, {"x": X.flip(0), "y": X.sum(1, keepdim=True)}]


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 1))


def good(accumulate: int = 1) -> Steps:
    return make_steps(lambda: nn.Linear(4, 1), loss_fn, optim.adamw(0.1), accumulate=accumulate)


def run(machine: type[TrainingMachine], *, examples: int = 60, steps: int = 8) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            derandomize=True, phases=(Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip


def counter_example(machine: type[TrainingMachine], **options: int) -> tuple[str, list[str]]:
    """Return the message of the failure and the rules that Hypothesis shrank it to."""
    with pytest.raises(AssertionError) as caught:
        run(machine, **options)
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    rules = re.findall(r"state\.(\w+)\(", notes)
    return str(caught.value), [each for each in rules if each != "teardown"]


@pytest.mark.parametrize(
    "steps",
    [good, lambda: make_steps(network, loss_fn, optim.sgd(0.1), precision="16-mixed")],
    ids=["adamw", "dropout and loss scale"],
)
def test_training_machine_passes_on_steps_of_make_steps(steps) -> None:
    run(training_machine(steps, BATCHES), examples=5)


def test_training_machine_passes_when_the_number_of_micro_batches_changes() -> None:
    run(training_machine(good, BATCHES, accumulates=(1, 2, 3)), examples=6)


def test_training_machine_passes_when_the_number_of_loader_workers_changes() -> None:
    loader = data.Loader(
        {"x": X, "y": X.sum(1, keepdim=True)}, batch_size=2, seed=1, start_method="fork"
    )
    machine = training_machine(good, loader, workers=(0, 1), donates=False, has_nan_batches=False)
    run(machine, examples=4, steps=8)


def forgetful() -> Steps:
    """SGD whose rate falls with a step count that is kept in Python, not in the state."""
    count = 0

    def init_state(seed: int) -> Any:
        return {"w": torch.full((4, 1), float(seed))}

    def train_step(state: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        gradient = batch["x"].T @ (batch["x"] @ state["w"] - batch["y"])
        return {"w": state["w"] - 0.1 / count * gradient}, {"loss": gradient.sum()}

    return Steps(init_state, train_step, None)


def test_training_machine_finds_an_optimizer_that_forgets_its_step_at_resume() -> None:
    machine = training_machine(forgetful, BATCHES, donates=False, has_nan_batches=False)
    message, rules = counter_example(machine)
    assert rules in (
        ["step", "restore", "step"],
        ["step", "rollback", "step"],
        ["step", "save", "crash", "step"],
    )
    assert "Make everything that influences" in message


def remembering() -> Steps:
    """Gradient descent whose momentum is kept in Python, by the number of the step."""
    momentum: dict[int, torch.Tensor] = {}

    def init_state(seed: int) -> Any:
        return {"n": torch.tensor(0), "w": torch.full((4, 1), float(seed))}

    def train_step(state: Any, batch: Any) -> Any:
        n = int(state["n"])
        gradient = batch["x"].T @ (batch["x"] @ state["w"] - batch["y"])
        momentum[n + 1] = 0.9 * momentum.get(n, torch.zeros(4, 1)) + gradient
        return {"n": state["n"] + 1, "w": state["w"] - 0.1 * momentum[n + 1]}, {}

    return Steps(init_state, train_step, None)


def test_training_machine_finds_state_that_only_a_crash_loses() -> None:
    machine = training_machine(remembering, BATCHES, donates=False, has_nan_batches=False)
    message, rules = counter_example(machine, examples=200)
    assert rules == ["step", "save", "crash", "step"]
    assert "['w'] at (0, 0)" in message


def test_training_machine_fails_if_a_checkpoint_omits_the_optimizer_state() -> None:
    class Machine(TrainingMachine):
        donates = False

        def make_steps(self, accumulate: int) -> Steps:
            return good()

        def make_batches(self) -> Any:
            return BATCHES

        def write(self, directory: Path, state: Any, cursor: Any) -> None:
            checkpoint.save(
                directory, state.params, metadata={"step": int(state.step), "at": cursor}
            )

        def read(self, directory: Path, like: Any) -> tuple[Any, Any]:
            params, metadata = checkpoint.load(directory, like.params)
            return like.replace(params=params, step=metadata["step"]), metadata["at"]

    message, rules = counter_example(Machine)
    assert rules[0] == "save"
    assert rules[1] in ("rollback", "restore", "crash")
    assert len(rules) <= 3
    assert ".rng" in message or ".opt_state" in message


def test_training_machine_finds_an_evaluation_that_trains() -> None:
    def steps() -> Steps:
        init_state, train_step, eval_step = good()

        def evaluate(state: Any, batch: Any) -> Any:
            metrics = eval_step(state, batch)
            state.params["weight"].add_(1.0)
            return metrics

        return Steps(init_state, train_step, evaluate)

    message, rules = counter_example(training_machine(steps, BATCHES, donates=False))
    assert rules == ["evaluate"]
    assert ".params['weight']" in message


def test_training_machine_finds_a_skipped_step_that_changes_the_optimizer_state() -> None:
    def steps() -> Steps:
        init_state, train_step, eval_step = good()

        def counting(state: Any, batch: Any) -> Any:
            new, metrics = train_step(state, batch)
            return new.replace(step=state.step + 1), metrics

        return Steps(init_state, counting, eval_step)

    message, rules = counter_example(training_machine(steps, BATCHES, donates=False))
    assert rules == ["nan_batch"]
    assert "a skipped step changed state.step" in message


def test_training_machine_finds_a_mean_of_means() -> None:
    mask = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])

    def steps(right: bool, accumulate: int) -> Steps:
        def masked(model: nn.Module, batch: Any) -> Any:
            errors = (model(batch["x"]) - batch["y"]).square().squeeze(1) * batch["mask"]
            weight = batch["mask"].sum()
            return Mean(errors.sum(), weight) if right else errors.sum() / weight

        return make_steps(lambda: nn.Linear(4, 1), masked, optim.sgd(0.1), accumulate=accumulate)

    batches = [{**BATCHES[0], "mask": mask}]
    options = {"accumulates": (1, 2), "has_nan_batches": False, "donates": False}
    run(
        training_machine(lambda accumulate: steps(True, accumulate), batches, **options), examples=5
    )
    machine = training_machine(lambda accumulate: steps(False, accumulate), batches, **options)
    message, rules = counter_example(machine)
    assert rules == ["accumulate"]
    assert "accumulate=2" in message
    assert "Mean(total, weight)" in message


def test_training_machine_finds_a_loader_whose_order_depends_on_workers() -> None:
    class Racing(data.Loader):
        def batches(self, cursor: Any = None, epochs: Any = 1) -> Any:
            for batch, after in super().batches(cursor, epochs):
                yield {**batch, "x": batch["x"] + self.workers}, after

    loader = Racing({"x": X, "y": X[:, :1]}, batch_size=3, start_method="fork")
    machine = training_machine(good, loader, workers=(0, 1), donates=False, has_nan_batches=False)
    message, rules = counter_example(machine)
    assert rules == ["change_workers"]
    assert "batch 0 differs" in message


def test_training_machine_refuses_steps_that_it_cannot_build() -> None:
    with pytest.raises(TypeError, match="a parameter `accumulate`"):
        training_machine(lambda: good(), BATCHES, accumulates=(1, 2))
    with pytest.raises(TypeError, match=r"expected Steps or a function .* got int"):
        training_machine(3, BATCHES)
    with pytest.raises(TypeError, match="batches: expected a sequence"):
        training_machine(good, iter(BATCHES))
    with pytest.raises(ValueError, match="at least one batch"):
        training_machine(good, [])
