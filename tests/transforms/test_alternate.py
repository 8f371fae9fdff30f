"""`alternate`: a GAN with gradient penalty as one step of two states."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.core.errors import DonatedStateError
from ftrain.testing import assert_same_bits
from ftrain.transforms import alternate, stoppable, with_ema, with_target
from tests.transforms.small import spoiled

GENERATE = ftrain.bind(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)))
JUDGE = ftrain.bind(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))


def generator_loss(model: Any, real: torch.Tensor, key: torch.Tensor, extras: Any) -> torch.Tensor:
    other = extras["players"]["critic"]
    fake = model(ftrain.random.normal(key, (len(real), 2)))
    return -JUDGE(other["params"], other["buffers"], key, fake)[0].mean()


def critic_loss(model: Any, real: torch.Tensor, key: torch.Tensor, extras: Any) -> torch.Tensor:
    other, (first, second) = extras["players"]["generator"], ftrain.random.split(key).unbind()
    noise = ftrain.random.normal(first, (len(real), 2))
    fake, _ = GENERATE(other["params"], other["buffers"], first, noise)
    mixed = torch.lerp(real, fake, ftrain.random.uniform(second, (len(real), 1)))
    _, slope = ftrain.value_and_grad(lambda x: model(x).sum())(mixed)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return model(fake).mean() - model(real).mean() + 10 * penalty


CRITIC = ftrain.make_steps(JUDGE, critic_loss, optim.adam(0.01))
GENERATOR = ftrain.make_steps(GENERATE, generator_loss, optim.adam(0.01))
PLAYERS = {"critic": CRITIC, "generator": GENERATOR}
STEPS = alternate(PLAYERS, ("critic", "critic", "generator"))


def batches(seed: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(8, 1, generator=g) + 3 for _ in range(3))


def seen(states: Any, name: str) -> Any:
    other = "generator" if name == "critic" else "critic"
    tensors = {"params": states[other].params, "buffers": states[other].buffers}
    return states[name].replace(extras={"players": {other: tensors}})


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_alternating_step_equals_the_turns_of_its_players_taken_by_hand(compiled: bool) -> None:
    step = ftrain.compile(STEPS.train_step, backend="eager") if compiled else STEPS.train_step
    states = STEPS.init_state(3)
    assert_same_bits(states, {"critic": CRITIC.init_state(6), "generator": GENERATOR.init_state(7)})
    before = tree.digest(states)
    found, metrics = step(states, batches(0))
    assert tree.digest(states) == before
    again, _ = step(states, batches(0))
    assert_same_bits(again, found)
    for name, batch in zip(("critic", "critic", "generator"), batches(0), strict=True):
        new, latest = PLAYERS[name].train_step(seen(states, name), batch)
        states = {**states, name: new.replace(extras={})}
    assert_same_bits(found, states)
    assert_same_bits(metrics["generator/loss"], latest["loss"])
    assert tree.structure(found) == tree.structure(STEPS.init_state(0))


def test_donated_alternating_step_has_the_bits_of_the_plain_one_and_reuses_its_memory() -> None:
    step = ftrain.compile(STEPS.train_step, backend="eager", donate=True)
    states, kept = STEPS.init_state(0), STEPS.init_state(0)
    places = [leaf.data_ptr() for leaf in tree.leaves(states)]
    for i in range(3):
        old = states
        states, metrics = step(states, batches(i))
        kept, expected = STEPS.train_step(kept, batches(i))
        assert_same_bits(states, kept)
        assert_same_bits(metrics, expected)
    assert step.n_compiles == 1
    assert places == [leaf.data_ptr() for leaf in tree.leaves(states)]
    for name in ("critic", "generator"):
        with pytest.raises(DonatedStateError, match=r"was donated to `train_step`"):
            repr(old[name])


def test_turn_with_non_finite_gradients_keeps_the_parameters_of_its_player() -> None:
    states = STEPS.init_state(0)
    one, two, _ = batches(0)
    found, metrics = STEPS.train_step(states, (one, two, spoiled(one)))
    # The generator's loss reads only the number of rows: it is applied.
    assert metrics["generator/skipped"] == 0
    found, metrics = STEPS.train_step(states, (spoiled(one), spoiled(two), one))
    assert metrics["critic/skipped"] == 2
    assert_same_bits(found["critic"].params, states["critic"].params)
    assert found["generator"].step == 1


def test_evaluation_of_alternating_players_reports_each_player() -> None:
    metrics = STEPS.eval_step(STEPS.init_state(0), batches(0)[0])
    assert sorted(metrics) == ["critic/loss", "generator/loss"]


@pytest.mark.parametrize("turns", [(), ("critic",), ("critic", "generator", "judge")])
def test_alternate_refuses_turns_that_do_not_name_each_player(turns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="turns: expected each of"):
        alternate(PLAYERS, turns)


def test_alternate_refuses_a_number_of_batches_that_differs_from_the_number_of_turns() -> None:
    with pytest.raises(ValueError, match="one batch for each of 3 turns, got 2"):
        STEPS.train_step(STEPS.init_state(0), batches(0)[:2])


def test_micro_batches_of_all_turns_train_each_player_on_those_of_its_turn() -> None:
    first, second = batches(0), batches(1)
    states = STEPS.init_state(0)
    found = STEPS.train_step(states, ftrain.MicroBatches((first, second), weights=(1, 2)))
    each = zip(first, second, strict=True)
    turns = tuple(ftrain.MicroBatches(parts, weights=(1, 2)) for parts in each)
    assert_same_bits(found, STEPS.train_step(states, turns))
    with pytest.raises(ValueError, match="one batch for each of 3 turns, got 2"):
        STEPS.train_step(states, ftrain.MicroBatches((first[:2], second[:2])))
    with pytest.raises(ValueError, match="got MicroBatches"):
        STEPS.train_step(states, ftrain.MicroBatches((first[0], second[0])))
    with pytest.raises(ValueError, match=r"equal numbers of batches, .* got \[2, 3\] batches"):
        STEPS.train_step(states, ftrain.MicroBatches((first, second[:2])))


@pytest.mark.parametrize("wrap", [with_ema, functools.partial(with_target, every=2), stoppable])
def test_transformations_of_one_state_refuse_the_states_of_several_players(wrap: Any) -> None:
    with pytest.raises(
        TypeError, match=r"got steps on a dict\. Apply .* to the steps of each model"
    ):
        wrap(STEPS).init_state(0)
