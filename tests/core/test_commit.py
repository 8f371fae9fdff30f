"""The pieces of a step: `gradients`, `update` and `commit` are the training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim, testing
from tests.core.test_step import CASE, MODES, make
from tests.zoo import MLP, PRECISIONS, ZOO, classification_loss


@MODES
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_train_step_equals_the_composition_of_gradients_update_and_commit(
    precision: Any, accumulate: int, mode: str
) -> None:
    """State and metrics match byte for byte, over applied steps and a skipped one."""
    apply = ftrain.bind(ZOO["convnet"].model)
    loss_fn = ZOO["convnet"].loss_fn
    optimizer = optim.partition(
        {
            "head": (r"layers\.5", optim.sgd(0.1)),
            "rest": (optim.everything, optim.adamw(optim.warmup_cosine(1e-2, 2, 20))),
        }
    )
    options: dict[str, Any] = {"precision": precision, "accumulate": accumulate}
    init_state, train_step, _ = ftrain.make_steps(apply, loss_fn, optimizer, **options)
    gradients = ftrain.gradients(apply, loss_fn, **options)

    def composed(state: ftrain.TrainState, batch: Any) -> tuple[ftrain.TrainState, ftrain.Metrics]:
        result = gradients(state, batch)
        closures = gradients.closures(state, batch)
        proposed = ftrain.update(optimizer, state, result, **closures)
        return ftrain.commit(state, proposed, result)

    ours: Any = composed if mode == "eager" else ftrain.compile(composed, backend="eager")
    theirs: Any = train_step if mode == "eager" else ftrain.compile(train_step, backend="eager")
    state = init_state(0)
    for seed in range(4):
        batch = ZOO["convnet"].batch(seed, 8)
        if seed == 2:
            batch["x"] = batch["x"] * float("nan")
        expected = theirs(state, batch)
        testing.assert_same_bits(ours(state, batch), expected)
        state, metrics = expected
        assert int(metrics["skipped"]) == (seed == 2)
        assert sum(name.startswith("learning_rate") for name in metrics) == 2


@pytest.mark.parametrize("kind", ["skipped", "applied"])
def test_commit_gives_the_same_bits_eager_and_traced(kind: str) -> None:
    """Eager CPU code reads the finite flag and copies one state; a trace selects leaf by leaf."""
    x, y = torch.linspace(-1, 1, 24).view(4, 6), torch.tensor([0, 1, 2, 0])
    batch = {"x": x * (float("inf") if kind == "skipped" else 1.0), "y": y}
    steps = ftrain.make_steps(MLP, classification_loss, optim.adamw(1e-2))
    state = steps.init_state(0)
    new, metrics = steps.train_step(state, batch)
    assert int(metrics["skipped"]) == (kind == "skipped")
    testing.assert_same_bits(
        ftrain.compile(steps.train_step, backend="eager")(state, batch), (new, metrics)
    )
    testing.assert_pure(steps.train_step, state, batch)


def test_commit_refuses_changes_of_the_state_structure() -> None:
    state = make().init_state(0)
    result = ftrain.gradients(CASE.model, CASE.loss_fn)(state, CASE.batch(0, 8))
    with pytest.raises(ValueError, match=r"\.extras: \['new'\] was not expected"):
        ftrain.commit(state, state.replace(extras={"new": torch.zeros(())}), result)
    with pytest.raises(
        ValueError, match=r"of state\.step: expected torch.int64, got torch.float32"
    ):
        ftrain.commit(state, state.replace(step=state.step + 0.5), result)
    with pytest.raises(ValueError, match=r"shape of state\.params\['layers.0.bias'\]"):
        ftrain.commit(
            state, state.replace(params={k: p[:1] for k, p in state.params.items()}), result
        )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (torch.ones(2), torch.ones(3), r"the shape of V: expected \(2,\), got \(3,\)\. Convert"),
        (
            torch.ones(0),
            torch.ones(3),
            r"the shape of V: .*got \(3,\)\. It was empty: run one batch",
        ),
        (
            torch.ones(2),
            torch.ones(2).double(),
            r"the dtype of V: expected torch.float32, .*Convert",
        ),
        (torch.ones(2), torch.ones(2).to("meta"), r"the device of V: expected cpu, got meta\. "),
        (torch.ones(2), 1.0, "a step changed V: expected a tensor, got a float"),
    ],
)
def test_commit_names_the_leaf_that_changed_and_a_remedy(old: Any, new: Any, message: str) -> None:
    state = make().init_state(0).replace(extras={"a": torch.zeros(3), "v": old})
    result = ftrain.gradients(CASE.model, CASE.loss_fn)(state, CASE.batch(0, 8))
    proposed = state.replace(extras={"a": torch.zeros(3), "v": new})
    with pytest.raises(ValueError, match=message.replace("V", r"state\.extras\['v'\]")):
        ftrain.commit(state, proposed, result)


def test_commit_refuses_a_state_that_a_step_refuses() -> None:
    state = make().init_state(0)
    result = ftrain.gradients(CASE.model, CASE.loss_fn)(state, CASE.batch(0, 8))
    graded = ftrain.tree.map(lambda x: x.clone().requires_grad_(x.is_floating_point()), state)
    for bad, message in (
        (state.replace(step=torch.tensor(0.0)), "state.step: expected an int64 0-d tensor, got a"),
        (state.replace(step=torch.tensor([0])), "the states of an ensemble"),
        (graded, r"got a gradient with respect to state\.params"),
        (
            state.replace(extras={"a": 1, "v": torch.ones(1, requires_grad=True)}),
            r"got a gradient with respect to state\.extras\['v'\]",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            ftrain.commit(bad, bad, result)


def test_state_with_an_expanded_tensor_or_a_python_number_is_refused_by_name() -> None:
    steps = ftrain.make_steps(
        lambda: torch.nn.Linear(2, 1), lambda m, x: m(x).sum(), ftrain.optim.sgd(0.1)
    )
    state = steps.init_state(0)
    expanded = state.replace(extras={"v": torch.ones(2).expand(3, 2)})
    with pytest.raises(ValueError, match=r"float32\[3, 2\] with strides \[0, 1\].*Use \.clone"):
        steps.train_step(expanded, torch.ones(4, 2))
    number = state.replace(extras={"v": 1})
    with pytest.raises(ValueError, match=r"^state\.extras\['v'\]: expected a tensor, got an int"):
        steps.train_step(number, torch.ones(4, 2))
