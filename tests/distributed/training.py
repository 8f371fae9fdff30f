"""Training runs of the zoo's models, on one process and on ranks."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

import ftrain
from ftrain import distributed, optim, testing
from ftrain.core import tree
from ftrain.core._torch_collectives import group_of
from tests.zoo import ZOO


class Setup(NamedTuple):
    """Settings of a training run of the tests.

    Attributes:
        model: a name of the zoo.
        precision: the precision of `make_steps`.
        accumulate: the number of micro-batches of a rank.
        steps: the number of training steps.
        backend: the backend of `ftrain.compile`, with donation; `None`: eager.
        shards: the argument `logical_shards`.
        rows: the number of rows in a batch of all ranks.
    """

    model: str
    precision: str = "32-true"
    accumulate: int = 1
    steps: int = 20
    backend: str | None = None
    shards: int | None = None
    rows: int = 8


class Outcome(NamedTuple):
    """State and metrics after each step, and metrics of an evaluation at the end."""

    states: list[Any]
    metrics: list[dict[str, torch.Tensor]]
    evaluation: dict[str, torch.Tensor]


def steps_of(setup: Setup, accumulate: int) -> ftrain.Steps:
    # SGD: Adam turns the rounding error of a gradient that is zero in exact arithmetic (a bias before
    # BatchNorm) into an update of full size.
    case = ZOO[setup.model]
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.sgd(optim.warmup_cosine(0.1, 2, 40), momentum=0.9)
    )
    return ftrain.make_steps(
        case.model, case.loss_fn, optimizer, precision=setup.precision, accumulate=accumulate
    )


def batch_of(setup: Setup, seed: int) -> Any:
    """Return a batch of all ranks. Its tokens are ragged: rows of the first rank may have none."""
    return ZOO[setup.model].batch(seed, setup.rows)


def alone(setup: Setup, parts: int) -> Outcome:
    """Return the outcome of a run on one process with `accumulate=parts`."""
    return _outcome(setup, steps_of(setup, parts), lambda batch: batch)


def on_ranks(mesh: Any, setup: Setup) -> Outcome:
    """Return the outcome of a run on this rank of a mesh."""
    group = group_of(mesh)

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (group.size, -1))[group.rank]

    steps = steps_of(setup, setup.accumulate)
    steps = distributed.data_parallel(steps, mesh, logical_shards=setup.shards)
    return _outcome(setup, steps, functools.partial(tree.map, rows))


def _outcome(setup: Setup, steps: ftrain.Steps, own: Any) -> Outcome:
    step, evaluate = steps.train_step, steps.eval_step
    if setup.backend is not None:
        step = ftrain.compile(step, backend=setup.backend, donate=True)
        evaluate = ftrain.compile(evaluate, backend=setup.backend)
    state = steps.init_state(3)
    states, metrics = [], []
    for i in range(setup.steps):
        state, latest = step(state, own(batch_of(setup, i)))
        states.append(tree.map(torch.clone, state))
        metrics.append(dict(latest))
    return Outcome(states, metrics, dict(evaluate(state, own(batch_of(setup, 99)))))


def broken_laws(steps: ftrain.Steps, batches: Any) -> list[str]:
    """Return the reports of laws 1 to 4, 6, 7, 9 and 10 that do not hold on this rank."""
    checks = (
        testing.check_pure,
        testing.check_deterministic,
        testing.check_fixpoint,
        testing.check_keyed,
        testing.check_skip,
        testing.check_resume,
        testing.check_donation,
        testing.check_evaluation,
    )
    reports = [check(steps, batches) for check in checks]
    return [f"{x}" for x in reports if (x.passed, x.applies) != (True, True)]
