"""Test that errors of distillation name the expected value, the given value and the remedy."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tasks
from tests.tasks.students import Net, large, taught

X, Y = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
PAIR = {"x": X, "y": Y}
VIEWS = {"first": X, "second": X}
WIDE = tasks.Teacher(nn.Linear(4, 5))
SAME = tasks.Teacher(Net())


def compiled() -> ftrain.Steps:
    steps = ftrain.make_steps(Net, tasks.byol, optim.ema(optim.sgd(0.1), 0.9))
    return steps._replace(train_step=ftrain.compile(steps.train_step, backend="eager"))


REFUSALS: dict[str, tuple[Any, type[Exception], str]] = {
    "other classes": (
        lambda: tasks.distillation(Net(), PAIR, {"teacher": WIDE.start()}, teacher=WIDE),
        ValueError,
        r"student's shape \(2, 3\), got \(2, 5\) from the teacher\. Give both models the same classes",
    ),
    "other features": (
        lambda: tasks.feature_distillation(
            Net(),
            PAIR,
            {"teacher": tasks.Teacher(large()).start()},
            layer="body",
            teacher=tasks.Teacher(large()),
        ),
        ValueError,
        r"student's shape \(2, 8\), got \(2, 16\) from the teacher\. Project the student's features",
    ),
    "teacher not in the state": (
        lambda: tasks.distillation(Net(), PAIR, {"center": X}, teacher=SAME),
        KeyError,
        r"expected an entry 'teacher' .*, got 'center'\. Make the steps with tasks\.with_teacher",
    ),
    "no extras": (
        lambda: tasks.distillation(Net(), PAIR, teacher=SAME),
        KeyError,
        "expected an entry 'teacher'",
    ),
    "parameters alone": (
        lambda: tasks.distillation(Net(), PAIR, {"teacher": SAME.start()["params"]}, teacher=SAME),
        ValueError,
        r"expected a dict of 'params' and 'buffers', got \['body\.0\.bias'",
    ),
    "tensors of another model": (
        lambda: tasks.with_teacher(
            ftrain.make_steps(Net, tasks.distillation, optim.sgd(0.1)), SAME, WIDE.start()["params"]
        ).init_state(0),
        ValueError,
        r"teacher 'teacher': params do not fit Net: missing \['body\.0\.bias'",
    ),
    "two teachers of one name": (
        lambda: SAME.into(taught(tasks.distillation, module=Net()).init_state(0)),
        ValueError,
        r"expected no entry 'teacher', got one\. Give the teacher another name",
    ),
    "outputs not in the batch": (
        lambda: tasks.distillation(Net(), PAIR),
        KeyError,
        r"expected a key 'teacher', got 'x', 'y'\. Name another entry with `cached`",
    ),
    "no labels": (
        lambda: tasks.distillation(Net(), {"x": X, "teacher": X[:, :3]}, target=None),
        ValueError,
        r"expected classes for a hard loss of weight 0\.1, got None\. Pass labels",
    ),
    "share above 1": (
        lambda: tasks.distillation(Net(), {**PAIR, "teacher": X[:, :3]}, soft_weight=1.5),
        ValueError,
        r"soft_weight: expected a number in \[0, 1\], got 1\.5",
    ),
    "temperature 0": (
        lambda: tasks.distillation(Net(), {**PAIR, "teacher": X[:, :3]}, temperature=0.0),
        ValueError,
        r"temperature: expected a positive number, got 0\.0",
    ),
    "missing layer": (
        lambda: tasks.feature_distillation(Net(), {**PAIR, "teacher": X}, layer="boddy"),
        ValueError,
        r"layer: expected the path of a module of Net, got 'boddy'\. Did you mean 'body'\?",
    ),
    "layer that is not called": (
        lambda: tasks.feature_distillation(Net(), {**PAIR, "teacher": X}, layer="predictor"),
        ValueError,
        r"layer: expected a module that the model calls once, got 0 calls of 'predictor'",
    ),
    "unknown distance": (
        lambda: tasks.feature_distillation(
            Net(),
            {**PAIR, "teacher": torch.zeros(2, 8)},
            layer="body",
            distance="l1",  # type: ignore[arg-type]
        ),
        ValueError,
        "distance: expected 'mse' or 'cosine', got 'l1'",
    ),
    "missing view": (
        lambda: tasks.byol(Net(), {"first": X}, {"teacher": SAME.start()}, teacher=SAME),
        KeyError,
        "expected a key 'second', got 'first'. Name another entry with `second`",
    ),
    "no teacher": (
        lambda: tasks.byol(Net(), VIEWS),
        TypeError,
        r"teacher: expected tasks\.Teacher\(model\), got None\. Give the loss and the steps the same",
    ),
    "no center": (
        lambda: tasks.dino(Net(), VIEWS, {"teacher": SAME.start()}, teacher=SAME),
        KeyError,
        r"expected an entry 'center' .*, got 'teacher'\. Make the steps with tasks\.with_running",
    ),
    "center of another width": (
        lambda: tasks.dino(
            Net(), VIEWS, {"teacher": SAME.start(), "center": torch.zeros(2)}, teacher=SAME
        ),
        ValueError,
        r"center: expected the shape of one output, \(3,\), got \(2,\)",
    ),
    "no average": (
        lambda: (lambda steps: steps.train_step(steps.init_state(0), VIEWS))(
            tasks.self_taught(
                ftrain.make_steps(Net, functools.partial(tasks.byol, teacher=SAME), optim.sgd(0.1)),
                SAME,
            )
        ),
        LookupError,
        r"expected an average .* got 'ema'.*[^.]\. Wrap the optimizer: optim\.ema",
    ),
    "metric not returned": (
        lambda: (lambda steps: steps.train_step(steps.init_state(0), PAIR))(
            tasks.with_running_mean(
                ftrain.make_steps(Net, tasks.cross_entropy, optim.sgd(0.1)), "center", (3,)
            )
        ),
        ValueError,
        r"metric 'center': expected ftrain\.Mean\(total, weight\) .* got none\. Return it",
    ),
    "running mean of a taken name": (
        lambda: tasks.with_running_mean(
            taught(tasks.distillation, module=Net()), "teacher", (3,)
        ).init_state(0),
        ValueError,
        r"state\.extras: expected no entry 'teacher', where the running mean is kept, got one",
    ),
    "decay 1": (
        lambda: tasks.with_running_mean(
            taught(tasks.byol, module=Net()), "center", (3,), decay=1.0
        ),
        ValueError,
        r"decay: expected a number in \[0, 1\), got 1\.0",
    ),
    "compiled train step, averaged": (
        lambda: tasks.with_running_mean(compiled(), "center", 3),
        TypeError,
        r"got a train_step that is .*\. Compile the result .*compile\(with_running_mean\(",
    ),
    "compiled train step, self-taught": (
        lambda: tasks.self_taught(compiled(), SAME),
        TypeError,
        r"got a train_step that is .*\. Compile the result .*compile\(self_taught\(",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_distillation_error_names_the_invalid_value_and_the_remedy(name: str) -> None:
    call, error, says = REFUSALS[name]
    with pytest.raises(error, match=says):
        call()


def test_note_on_an_error_in_a_functools_partial_loss_names_the_wrapped_function() -> None:
    steps = taught(tasks.distillation, module=Net())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        steps.train_step(steps.init_state(0), {"x": torch.zeros(2, 7), "y": Y})
    assert any("while computing `distillation`" in note for note in caught.value.__notes__)
