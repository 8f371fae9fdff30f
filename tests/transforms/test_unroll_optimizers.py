"""Hypergradients through every optimizer equal finite differences in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.transforms import differentiable, unroll
from tests.optim.cases import CASES, algorithms
from tests.transforms.unrolled import batches, difference, relative, steps_of, validation


@pytest.mark.parametrize("name", CASES)
def test_hypergradient_equals_finite_differences(name: str) -> None:
    """By learning rate, initial parameters, extras and batches.

    The bound holds where no element crosses a branch (a clipped update, a sign) within the difference.
    """
    case, rate = CASES[name], CASES[name].rates.mlp
    optimizer = optim.with_hyperparams(
        lambda learning_rate: case.build(learning_rate), learning_rate=rate
    )
    steps = steps_of(optimizer)
    loss = validation(steps, unroll(steps.train_step, 3), rate, 3)
    zero = torch.zeros(4, dtype=torch.float64)
    _, found = ftrain.value_and_grad(loss)(zero)
    assert torch.isfinite(found).all()
    assert relative(found, difference(loss, zero, 1e-5)) < 1e-6


#: For each algorithm: options, and a hyper-parameter beside the learning rate whose derivative after
#: four steps is not 0. `lbfgs` has none. `lion` takes the sign of its means: that of `b1` is 0.
SECOND: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "adabelief": ({}, {"b1": 0.8}),
    "adadelta": ({}, {"rho": 0.9}),
    "adafactor": ({}, {"d": 0.5}),
    "adagrad": ({}, {"eps": 1e-2}),
    "adam": ({}, {"b1": 0.8}),
    "adamax": ({}, {"b2": 0.9}),
    "adamw": ({}, {"weight_decay": 0.1}),
    "adan": ({}, {"b2": 0.9}),
    "amsgrad": ({}, {"b1": 0.8}),
    "asgd": ({"t0": 1.0}, {"lambd": 0.05}),
    "lamb": ({}, {"b1": 0.8}),
    "lars": ({"trust_coefficient": 0.1}, {"momentum": 0.7}),
    "lbfgs": ({}, {}),
    "lion": ({}, {"weight_decay": 0.1}),
    "muon": ({"ns_dtype": None}, {"momentum": 0.7}),
    "nadam": ({}, {"momentum_decay": 0.1}),
    "prodigy": ({"d0": 1e-2}, {"b2": 0.9}),
    "radam": ({}, {"b1": 0.8}),
    "rmsprop": ({}, {"alpha": 0.9}),
    "rprop": ({}, {"eta_plus": 1.2}),
    "schedule_free_adamw": ({}, {"b2": 0.9}),
    "schedule_free_sgd": ({}, {"weight_decay": 0.1}),
    "sgd": ({}, {"momentum": 0.7}),
    "soap": ({"precondition_frequency": 2}, {"b2": 0.9}),
    "sophia": ({"update_interval": 2, "gamma": 1.0}, {"b1": 0.8}),
    "yogi": ({}, {"b1": 0.8}),
}
Loss = Callable[[torch.Tensor], torch.Tensor]


def test_the_table_of_hyperparameters_names_every_algorithm() -> None:
    assert SECOND.keys() == algorithms()


@pytest.mark.parametrize("name", SECOND)
def test_hypergradients_in_each_mode_equal_finite_differences(name: str) -> None:
    """Each hyper-parameter alone; the differences are those of `train_step`, called without `unroll`.

    A truncated gradient is the derivative of the last window from a fixed state. Its difference is
    one-sided: the schedule-free methods keep the largest rate so far, which a smaller rate leaves as it
    is and a larger one replaces.
    """
    options, second = SECOND[name]
    case = name.replace("schedule_free_", "schedule-free ")
    values = {"learning_rate": CASES[case].rates.mlp, **second}
    build = functools.partial(getattr(optim, name), **options)
    steps = steps_of(optim.with_hyperparams(build, **values))
    start, data = steps.init_state(0), batches(4)

    def plain(state: Any, data: Any) -> Any:
        for i in range(len(data["weight"])):
            state, _ = steps.train_step(state, tree.map(lambda x, i=i: x[i], data))
        return state, None

    def after(train: Any, state: Any, data: Any) -> Loss:
        def loss(shift: torch.Tensor) -> torch.Tensor:
            moved = {n: v * (1 + s) for (n, v), s in zip(values.items(), shift, strict=True)}
            opt_state = optim.set_hyperparams(state.opt_state, **moved)
            last, _ = train(state.replace(opt_state=opt_state), data)
            first = tree.map(lambda x: x[0], batches(1, seed=9))
            final: torch.Tensor = differentiable(steps.eval_step)(last, first)["loss"]
            return final

        return loss

    zero = torch.zeros(len(values), dtype=torch.float64)
    whole = after(unroll(steps.train_step, 4), start, data)
    stored = after(unroll(steps.train_step, 4, remat=False), start, data)
    truncated = after(unroll(steps.train_step, 4, truncate=2), start, data)
    forward = [torch.func.jvp(whole, (zero,), (e,))[1] for e in torch.eye(len(zero)).double()]
    reverse, kept, cut = (ftrain.value_and_grad(f)(zero)[1] for f in (whole, stored, truncated))
    expected = difference(after(plain, start, data), zero, 1e-4)
    assert (expected != 0).sum() == len(values) - (name == "rprop")  # `init` alone reads its rate
    for found in (reverse, kept, torch.stack(forward)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    middle, _ = plain(start, tree.map(lambda x: x[:2], data))
    window = after(plain, middle, tree.map(lambda x: x[2:], data))
    torch.testing.assert_close(cut, rightwards(window, zero, 1e-4), rtol=1e-6, atol=1e-11)


def rightwards(f: Loss, x: torch.Tensor, h: float) -> torch.Tensor:
    """Return the gradient of `f` towards larger values, by differences of fourth order."""
    weights = (-25 / 12, 4.0, -3.0, 4 / 3, -1 / 4)
    with torch.no_grad():
        rows = [
            sum(w * f(x + i * h * e) for i, w in enumerate(weights))
            for e in torch.eye(len(x), dtype=x.dtype)
        ]
    return torch.stack(rows) / h  # type: ignore[arg-type]
