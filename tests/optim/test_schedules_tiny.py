"""Test schedules against torch's schedulers in runs of one to five updates.

Such runs have edge cases: a phase without updates, a boundary at the first count, a peak before the
first count. The tolerance is 1e-12 of the peak, for torch's recurrences, as in test_schedules.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from ftrain import optim
from tests.optim.test_schedules import close, curve, torch_rates

PEAK = 0.5
TINY = range(1, 6)


def sequential(o, *each, at):
    return lr_scheduler.SequentialLR(o, list(each), list(at))


def warm(o, n):
    return lr_scheduler.LinearLR(o, 1e-9, total_iters=n)


#: name -> (ours, torch's, how many counts torch's is defined for), as functions of the steps.
PAIRS = {
    "constant": (
        lambda n: optim.constant(PEAK),
        lambda o, n: lr_scheduler.ConstantLR(o, 1.0, n),
        lambda n: n + 3,
    ),
    "constant, from a jump": (
        lambda n: optim.piecewise_constant(PEAK / 4, {n: 4.0}),
        lambda o, n: lr_scheduler.ConstantLR(o, 0.25, n),
        lambda n: n + 3,
    ),
    "linear": (
        lambda n: optim.linear(PEAK / 3, PEAK / 2, n),
        lambda o, n: lr_scheduler.LinearLR(o, 1 / 3, 1 / 2, n),
        lambda n: n + 3,
    ),
    "linear_warmup": (
        lambda n: optim.linear_warmup(PEAK, n, start=PEAK / 10),
        lambda o, n: lr_scheduler.LinearLR(o, 1 / 10, 1.0, n),
        lambda n: n + 3,
    ),
    "polynomial": (
        lambda n: optim.polynomial(PEAK, 0.0, n, 2.0),
        lambda o, n: lr_scheduler.PolynomialLR(o, n, 2.0),
        lambda n: n + 3,
    ),
    "exponential": (
        lambda n: optim.exponential(PEAK, 0.5 + n / 10),
        lambda o, n: lr_scheduler.ExponentialLR(o, 0.5 + n / 10),
        lambda n: n + 3,
    ),
    "step": (
        lambda n: optim.step(PEAK, n, 0.5),
        lambda o, n: lr_scheduler.StepLR(o, n, 0.5),
        lambda n: 3 * n + 1,
    ),
    "piecewise_constant": (
        lambda n: optim.piecewise_constant(PEAK, {1: 0.5, n + 1: 0.5}),
        lambda o, n: lr_scheduler.MultiStepLR(o, [1, n + 1], 0.5),
        lambda n: n + 4,
    ),
    "cosine": (
        lambda n: optim.cosine(PEAK, n, PEAK / 20),
        lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, PEAK / 20),
        lambda n: n + 1,  # then it turns back up
    ),
    **{
        f"cosine_restarts, factor {k}": (
            lambda n, k=k: optim.cosine_restarts(PEAK, n, PEAK / 20, factor=k),
            lambda o, n, k=k: lr_scheduler.CosineAnnealingWarmRestarts(o, n, k, PEAK / 20),
            lambda n, k=k: 3 * n * k + 2,
        )
        for k in (1, 2, 3)
    },
    **{
        f"one_cycle, {pct}, {anneal}": (
            lambda n, pct=pct, anneal=anneal: optim.one_cycle(
                PEAK, n + 1, pct_start=pct, anneal_strategy=anneal
            ),
            lambda o, n, pct=pct, anneal=anneal: lr_scheduler.OneCycleLR(
                o, PEAK, n + 1, pct_start=pct, anneal_strategy=anneal, cycle_momentum=False
            ),
            lambda n: n + 1,  # then it raises
        )
        for pct in (0.0, 0.15, 0.3, 0.6, 0.9)
        for anneal in ("cos", "linear")
    },
    "join": (
        lambda n: optim.join(
            [optim.constant(PEAK / 4), optim.exponential(PEAK, 0.5), optim.linear(PEAK, 0.0, n)],
            [n, n + 1],
        ),
        lambda o, n: sequential(
            o,
            lr_scheduler.ConstantLR(o, 0.25, 99),
            lr_scheduler.ExponentialLR(o, 0.5),
            lr_scheduler.LinearLR(o, 1.0, 0.0, n),
            at=[n, n + 1],
        ),
        lambda n: 2 * n + 3,
    ),
    "warmup_cosine": (
        lambda n: optim.warmup_cosine(PEAK, n, 2 * n, PEAK / 20),
        lambda o, n: sequential(
            o, warm(o, n), lr_scheduler.CosineAnnealingLR(o, n, PEAK / 20), at=[n]
        ),
        lambda n: 2 * n + 1,
    ),
    "warmup_linear": (
        lambda n: optim.warmup_linear(PEAK, n, 2 * n),
        lambda o, n: sequential(o, warm(o, n), lr_scheduler.LinearLR(o, 1.0, 0.0, n), at=[n]),
        lambda n: 2 * n + 1,
    ),
    "warmup_stable_decay": (
        lambda n: optim.warmup_stable_decay(PEAK, n, 1, n),
        lambda o, n: sequential(
            o,
            warm(o, n),
            lr_scheduler.ConstantLR(o, 1.0, 1),
            lr_scheduler.LinearLR(o, 1.0, 0.0, n),
            at=[n, n + 1],
        ),
        lambda n: 2 * n + 3,
    ),
    "inverse_sqrt": (
        lambda n: optim.inverse_sqrt(PEAK, n),
        lambda o, n: lr_scheduler.LambdaLR(o, lambda t: t / n if t < n else (n / t) ** 0.5),
        lambda n: 4 * n + 2,
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # SequentialLR's own
@pytest.mark.parametrize("name", PAIRS)
def test_every_schedule_matches_torch_in_runs_of_few_updates(name):
    ours, theirs, counts = PAIRS[name]
    for n in TINY:
        expected = torch_rates(PEAK, lambda o, n=n: theirs(o, n), counts(n))
        # A warmup of torch's begins above 0: at 1e-9 of the peak.
        rel = 2e-9 if name.startswith("warmup") else 1e-12
        assert curve(ours(n), counts(n)) == close(expected, PEAK, rel), n


def test_every_schedule_with_a_torch_counterpart_is_compared_with_it():
    """Fails when a schedule is added without a comparison."""
    of_torch = {name.partition(",")[0] for name in PAIRS}
    assert of_torch == set(optim.schedules.__all__) - {"plot_schedule"}
    assert all(torch.is_tensor(ours(2)(torch.tensor(0))) for ours, _, _ in PAIRS.values())
