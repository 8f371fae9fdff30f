"""An argument is accepted at the end of its range, and refused beyond it or for another reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, random
from ftrain.core._structure import refuse_overlap
from ftrain.core.precision import LossScale
from ftrain.core.random import keyed

KEY = random.key(0)
P = torch.tensor([0.5, 0.0, 0.5])
WORDS = torch.zeros(4)


def steps(accumulate: int) -> ftrain.Steps:
    return ftrain.make_steps(
        nn.Linear(1, 1), lambda m, b: m(b).sum(), optim.sgd(0.1), accumulate=accumulate
    )


def drawn(call: Callable[[], Tensor]) -> Tensor:
    with keyed(KEY):
        return call()


#: Each call with arguments at the end of their range, and with the next ones, which are refused.
LIMITS: dict[str, tuple[Callable[[Any], object], Any, Any]] = {
    "least seed": (random.key, -(2**63), -(2**63) - 1),
    "largest seed": (random.key, 2**64 - 1, 2**64),
    "least fold": (lambda n: random.fold_in(KEY, n), 0, -1),
    "largest fold": (lambda n: random.fold_in(KEY, n), 2**32 - 1, 2**32),
    "keys": (lambda n: random.split(KEY, n), 0, -1),
    "categories": (lambda n: random.categorical(KEY, P, shape=(n,), replace=False), 3, 4),
    "first axis": (lambda n: random.choice(KEY, torch.zeros(2, 3), axis=n), -2, -3),
    "last axis": (lambda n: random.choice(KEY, torch.zeros(2, 3), axis=n), 1, 2),
    "choices": (lambda n: random.choice(KEY, 3, (n,), replace=False), 3, 4),
    "elements": (lambda n: random.choice(KEY, n, (2,)), 1, 0),
    "choices by weight": (lambda n: random.choice(KEY, 3, (n,), replace=False, p=P), 2, 3),
    "least weight": (lambda w: random.choice(KEY, 2, p=torch.tensor([1.0, w])), 0.0, -1e-9),
    "sum of weights": (lambda w: random.choice(KEY, 2, p=torch.tensor([0.0, w])), 1e-9, 0.0),
    "largest weight": (lambda w: random.choice(KEY, 2, p=torch.tensor([1.0, w])), 1e30, math.inf),
    "rows": (lambda n: random.orthogonal(KEY, n, m=2), 0, -1),
    "columns": (lambda n: random.orthogonal(KEY, 2, m=n), 0, -1),
    "dimension": (lambda d: random.ball(KEY, d), 0, -1),
    "least exponent": (lambda p: random.ball(KEY, 2, p), 1e-3, 0.0),
    "largest exponent": (lambda p: random.ball(KEY, 2, p), 1e30, math.inf),
    "axes of a mean": (
        lambda n: random.multivariate_normal(KEY, torch.zeros([1] * n), torch.eye(1)), 1, 0
    ),
    "axes of a covariance": (
        lambda n: random.multivariate_normal(KEY, torch.zeros(1), torch.ones([1] * n)), 2, 1
    ),
    "least rate": (lambda r: random.poisson(KEY, torch.tensor(r)), 0.0, -1e-9),
    "largest rate": (lambda r: random.poisson(KEY, torch.tensor(r)), 1e9, math.inf),
    "interval": (
        lambda x: random.truncated_normal(KEY, x, torch.tensor(1.0)),
        torch.tensor(0.999),
        torch.tensor(1.0),
    ),
    "samples without replacement": (lambda n: drawn(lambda: torch.multinomial(torch.ones(3), n)), 3, 4),
    "integers": (lambda n: drawn(lambda: torch.randint(0, n, (2,))), 1, 0),
    "growth factor": (lambda x: LossScale(growth_factor=x), 1.0001, 1.0),
    "largest backoff": (lambda x: LossScale(backoff_factor=x), 0.9999, 1.0),
    "least backoff": (lambda x: LossScale(backoff_factor=x), 0.0001, 0.0),
    "growth interval": (lambda n: LossScale(growth_interval=n), 1, 0),
    "least floor": (lambda x: LossScale(floor=x), 1e-9, 0.0),
    "largest floor": (lambda x: LossScale(init=8.0, floor=x), 8.0, 8.1),
    "ceiling": (lambda x: LossScale(init=8.0, ceiling=x), 8.0, 7.9),
    "micro-batches": (steps, 1, 0),
    "iterations": (lambda n: ftrain.scan(lambda c, _: (c, c), torch.zeros(1), length=n), 1, 0),
    "second tensor of a storage": (
        lambda start: refuse_overlap({"a": WORDS[:2], "b": WORDS[start : start + 2]}),
        2,
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_argument_is_accepted_at_its_limit_and_refused_beyond(name: str) -> None:
    call, last, beyond = LIMITS[name]
    call(last)
    with pytest.raises(ValueError, match="expected"):
        call(beyond)


class Rows(nn.Module):
    """A class of modules, passed in place of a module."""


def loss(value: object) -> object:
    steps = ftrain.make_steps(nn.Linear(1, 1), lambda m, b: value, optim.sgd(0.1))
    return steps.train_step(steps.init_state(0), torch.zeros(1))


SCALAR, DTYPES = torch.tensor(1.0), (torch.bool, torch.float32, torch.complex64)

#: Refusals for more than one reason: calls that have one of the reasons each.
REASONS: dict[str, tuple[Callable[[Any], object], Sequence[object]]] = {
    "dtype of a seed": (lambda d: random.key(torch.zeros((), dtype=d)), DTYPES),
    "dtype of a fold": (lambda d: random.fold_in(KEY, torch.zeros((), dtype=d)), DTYPES),
    "number of keys": (lambda n: random.split(KEY, n), ("a", 1.5, (1, 2.0), (1, -1), (-1, 1))),
    "array of keys": (
        lambda k: random.split(k), (KEY.float(), KEY[0], KEY[None], torch.zeros(3, dtype=torch.int32))
    ),
    "key": (
        lambda k: random.fold_in(k, 0), (KEY.float(), KEY[0], torch.zeros(3, dtype=torch.int32))
    ),
    "dtype of a bound": (
        lambda d: random.randint(KEY, (2,), 0, torch.ones((), dtype=d)),
        (torch.uint64, torch.float32, torch.complex64),
    ),
    "logits": (lambda x: random.categorical(KEY, x), ([1.0, 2.0], SCALAR)),
    "weights": (lambda p: random.choice(KEY, 2, p=p), ([0.5, 0.5], torch.ones(3), SCALAR)),
    "dtype of signs": (
        lambda d: random.rademacher(KEY, (2,), d), (torch.complex64, torch.uint8, torch.bool)
    ),
    "parameters": (lambda a: random.dirichlet(KEY, a), ([1.0], SCALAR, torch.ones(3, 0))),
    "real parameters": (
        lambda d: random.gamma(KEY, torch.ones(2, dtype=d)), (torch.complex64, torch.bool)
    ),
    "mean": (lambda m: random.multivariate_normal(KEY, m, torch.eye(2)), ([0.0, 0.0], SCALAR)),
    "exponent": (lambda p: random.ball(KEY, 2, p), ("2", -1.0)),
    "shape of a result": (
        lambda shape: random.gamma(KEY, torch.ones(2, 3), shape), ((3,), (2, 2), (3, 3))
    ),
    "factory": (
        lambda options: drawn(lambda: torch.rand(2, **options)),
        ({"layout": torch.sparse_coo}, {"names": ("a",)}),
    ),
    "index": (lambda i: ftrain.switch(i, [abs, abs], SCALAR), (True, 1.0, "a")),
    "index tensor": (
        lambda d: ftrain.switch(torch.zeros((), dtype=d), [abs, abs], SCALAR), DTYPES
    ),
    "condition": (
        lambda found: ftrain.while_loop(lambda _: found, lambda x: x, SCALAR), (True, SCALAR.int())
    ),
    "updates": (
        lambda delta: optim.apply_updates({"w": SCALAR}, {"w": delta}), (0.5, SCALAR.int())
    ),
    "target of remat": (ftrain.remat, (3, Rows)),
    "scan's result": (
        lambda out: ftrain.scan(lambda c, _: out, SCALAR, length=2), (SCALAR, (SCALAR,), (SCALAR,) * 3)
    ),
    "loss": (loss, (0.5, torch.zeros(2), None)),
    "mean loss": (
        loss,
        (
            ftrain.Mean(0.5, SCALAR), ftrain.Mean(SCALAR, 0.5),  # type: ignore[arg-type]
            ftrain.Mean(torch.zeros(2), SCALAR), ftrain.Mean(SCALAR, torch.zeros(2)),
        ),
    ),
    "accumulate": (steps, (1.5, "2", 0)),
    "argument of a gradient": (
        ftrain.value_and_grad(lambda x: SCALAR), (0.5, SCALAR.int(), SCALAR.bool(), [SCALAR, 1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_argument_that_violates_only_one_of_several_conditions_is_refused(name: str) -> None:
    call, arguments = REASONS[name]
    for argument in arguments:
        with pytest.raises((TypeError, ValueError), match="expected"):
            call(argument)


@pytest.mark.parametrize(
    ("elements", "shown"),
    [
        (249, "996 bytes"),
        (250, "1 kB"),
        (249_999, "1,000 kB"),
        (250_000, "1 MB"),
        (250_000_000, "1 GB"),
    ],
)
def test_size_of_a_state_is_shown_in_the_largest_unit_that_it_reaches(
    elements: int, shown: str
) -> None:
    state = steps(1).init_state(0)
    big = torch.zeros(()).expand(elements)
    rest = {field.name: None for field in dataclasses.fields(state)} | {
        "step": state.step[None][:0]
    }
    object.__setattr__(state, "__dict__", rest | {"params": big})
    assert repr(state).endswith(f"{shown})")
