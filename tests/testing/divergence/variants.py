"""Training step with planted differences between runs, each run recorded in its own process.

python -m tests.testing.divergence.variants FOLDER NAME ...
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim
from ftrain.testing import Trace, record

STEPS = 8
WEIGHTS = torch.tensor([1.0, 2.0, 1.0])


class Net(nn.Module):
    """Two layers; `site` is the layer after which dropout acts."""

    def __init__(self, site: str = "first") -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.site = site

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.site == "first":
            h = self.drop(h)
        h = self.norm(h).tanh()
        if self.site == "norm":
            h = self.drop(h)
        return self.last(h)


def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted cross-entropy."""
    return F.cross_entropy(model(batch["x"]), batch["y"], weight=WEIGHTS)


# Beside these the terms vanish, unless they are added after the two have cancelled. Without them, it
# depends on the processor whether another order gives another sum. (`cumsum` adds one by one.)
HUGE = torch.tensor([2.0**60, -(2.0**60)])


def mean_of(total: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the loss `loss_fn`, with the terms of the rows added by `total`."""

    def mean(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        terms = F.cross_entropy(model(batch["x"]), batch["y"], weight=WEIGHTS, reduction="none")
        return total(terms) / WEIGHTS[batch["y"]].sum()

    return mean


def vanishing_sum(terms: torch.Tensor) -> torch.Tensor:
    """Add numbers in their order to the terms, which are lost."""
    return torch.cat([terms, HUGE]).cumsum(0)[-1]


def reversed_sum(terms: torch.Tensor) -> torch.Tensor:
    """Add the numbers of `vanishing_sum` in the other order, in which no term is lost."""
    return torch.cat([terms, HUGE]).flip(0).cumsum(0)[-1]


def rounded_sum(terms: torch.Tensor) -> torch.Tensor:
    """Add the terms in another order, which changes the sum by rounding at most."""
    return terms.flip(0).sum()


OTHER_WEIGHTS = torch.tensor([1.0, 2.0, 1.5])


def other_weights(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss with another captured tensor of weights."""
    return F.cross_entropy(model(batch["x"]), batch["y"], weight=OTHER_WEIGHTS)


class Scaled(torch.autograd.Function):
    """Identity whose gradient is 0.1 % larger."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad * 1.001


def other_gradient(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the same loss with another gradient."""
    return F.cross_entropy(Scaled.apply(model(batch["x"])), batch["y"], weight=WEIGHTS)


def batches() -> list[dict[str, torch.Tensor]]:
    """Return the same batches in every process."""
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "x": torch.randn(6, 4, generator=generator),
            "y": torch.randint(0, 3, (6,), generator=generator),
        }
        for _ in range(STEPS)
    ]


def steps(
    loss: Callable[..., torch.Tensor] = loss_fn,
    *,
    site: str = "first",
    eps: float = 1e-8,
    rate: float = 1e-2,
    **options: Any,
) -> ftrain.Steps:
    """Return the steps of a variant."""
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(rate, eps=eps))
    return ftrain.make_steps(lambda: Net(site), loss, optimizer, **options)


def _traced(
    variant: ftrain.Steps, step: Any = None, data: Any = None, at: tuple[int, ...] = (1,)
) -> Trace:
    """Record a run, with the operators of the steps `at`."""
    return record(step or variant.train_step, variant.init_state(0), data or batches(), steps=at)


def _ulp_at_step_7() -> Trace:
    """Change one weight of the new state of step 7 by one ulp, without an operator."""
    variant = steps()

    def step(state: Any, batch: Any) -> Any:
        new, metrics = variant.train_step(state, batch)
        if int(state.step) == 6:
            memory = new.params["last.weight"].numpy().view("int32")
            memory[2, 5] += 1
        return new, metrics

    return _traced(variant, step, at=(7,))


def _swapped_samples() -> Trace:
    data = batches()
    data[4]["x"] = data[4]["x"][[0, 3, 2, 1, 4, 5]]
    return _traced(steps(), data=data)


def _changed_sample() -> Trace:
    data = batches()
    data[5]["y"][2] = (data[5]["y"][2] + 1) % 3
    return _traced(steps(), data=data)


def _forgotten_moments() -> Trace:
    """Set the moments to zero before step 6, as a resume does that forgets the optimizer."""
    variant = steps()

    def step(state: Any, batch: Any) -> Any:
        if int(state.step) == 5:
            fresh = variant.init_state(0).opt_state
            state = state.replace(opt_state=fresh)
        return variant.train_step(state, batch)

    return _traced(variant, step, at=(6,))


def _other_version() -> Trace:
    trace = _traced(steps(rate=1.1e-2))
    environment = {**trace.environment, "numpy": "0.9.0"}
    return Trace(trace.form, environment, trace.initial, trace.steps)


VARIANTS: dict[str, Callable[[], Trace]] = {
    "base": lambda: _traced(steps(), at=(1, 6, 7)),
    "again": lambda: _traced(steps(), at=(1, 6, 7)),
    "plain_sum": lambda: _traced(steps(mean_of(torch.sum)), at=(5,)),
    "rounded_sum": lambda: _traced(steps(mean_of(rounded_sum)), at=(5,)),
    "vanishing_sum": lambda: _traced(steps(mean_of(vanishing_sum)), at=(1,)),
    "compiled": lambda: _compiled(steps()),
    "ulp": _ulp_at_step_7,
    "swapped": _swapped_samples,
    "sample": _changed_sample,
    "site": lambda: _traced(steps(site="norm")),
    "order": lambda: _traced(steps(mean_of(reversed_sum)), at=(1,)),
    "version": _other_version,
    "eps": lambda: _traced(steps(eps=1e-6)),
    "captured": lambda: _traced(steps(other_weights)),
    "gradient": lambda: _traced(steps(other_gradient)),
    "precision": lambda: _traced(steps(precision="bf16-mixed")),
    "moments": _forgotten_moments,
    "compiled_eps": lambda: _compiled(steps(eps=1e-6)),
}


def _compiled(variant: ftrain.Steps) -> Trace:
    return _traced(variant, ftrain.compile(variant.train_step, backend="eager"))


def main() -> None:
    """Write the traces of the named variants."""
    folder, *names = sys.argv[1:]
    for name in names:
        VARIANTS[name]().save(pathlib.Path(folder) / f"{name}.trace")


if __name__ == "__main__":
    main()
