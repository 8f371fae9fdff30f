"""Number of updates that Muon, SOAP, Schedule-Free and AdamW need to reach a loss of a small GPT.

    python -m benchmarks.optimizers            # 600 updates, five seeds: about a quarter of an hour
    python -m benchmarks.optimizers --quick    # checks the plumbing only

This checks the claims of the papers on a small scale. The model is that of `examples/char_gpt.py` with
2 layers of width 64, the text is Python's standard library, and a batch has 16 windows of 64 characters.
For each seed, all optimizers have the same initial weights and batches, gradients clipped at 1, a decay
of 0.1 on matrices, and a warmup over a twentieth of the run. The rate then falls to zero along half a
cosine, except for Schedule-Free, which needs no schedule.

The learning rate of each optimizer is tuned on a seed that is not used again, over a grid that grows
until its best rate is not at an edge. All other settings are those that the authors advise. Muon
orthogonalizes the matrices of the blocks and leaves embeddings to AdamW at the same rate, which
`match_rms_adamw` makes suitable for both.

The target is the largest final loss of AdamW over its five seeds. AdamW therefore reaches the target
with its last updates, at the end of its schedule; the figure of another optimizer is the share of
AdamW's updates that it needs.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import ftrain
from benchmarks.measure import Report, arguments
from examples import char_gpt
from ftrain import data, optim
from ftrain.tasks.models import GPT

Schedule = Callable[[torch.Tensor], torch.Tensor]
TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Budget:
    """Length of training and frequency of evaluations of each run."""

    steps: int = 600
    seeds: int = 5
    eval_every: int = 20
    eval_windows: int = 256
    batch: int = 16
    layers: int = 2
    width: int = 64
    context: int = 64
    widen: int = 3  # the most rates that are added to a grid


class Contender(NamedTuple):
    """Optimizer to compare: its builder from a schedule, and the learning rates to try first."""

    build: Callable[[Schedule], optim.GradientTransformation]
    rates: tuple[float, ...]
    decays: bool = True


def hidden_matrices(params: dict[str, torch.Tensor]) -> dict[str, bool]:
    return {name: p.ndim == 2 and name.startswith("blocks") for name, p in params.items()}


CONTENDERS = {
    "AdamW": Contender(
        lambda rate: optim.adamw(rate, 0.9, 0.99, weight_decay=0.1), (1.5e-3, 3e-3, 6e-3)
    ),
    "Muon": Contender(
        lambda rate: optim.muon(
            rate,
            orthogonal=hidden_matrices,
            adjust_lr_fn="match_rms_adamw",
            adam_b2=0.99,
            adam_weight_decay=0.1,
        ),
        (6e-3, 1.2e-2, 2.4e-2),
    ),
    "SOAP": Contender(lambda rate: optim.soap(rate, weight_decay=0.1), (6e-3, 1.2e-2, 2.4e-2)),
    "Schedule-Free": Contender(
        lambda rate: optim.schedule_free_adamw(rate, 0.9, 0.99, weight_decay=0.1),
        (3e-3, 6e-3, 1.2e-2),
        decays=False,
    ),
}


class Curve(NamedTuple):
    """Held-out losses `(updates, loss)` of one run, and its seconds per update."""

    held_out: list[tuple[int, float]]
    seconds: float

    @property
    def end(self) -> float:
        loss = self.held_out[-1][1]
        return loss if math.isfinite(loss) else math.inf

    def updates_to(self, target: float) -> float:
        return next((float(step) for step, loss in self.held_out if loss <= target), math.inf)


class Trainer:
    """Training of one contender, compiled once for all seeds and learning rates."""

    def __init__(self, contender: Contender, budget: Budget, text: data.Text, backend: Any) -> None:
        sizes = {"context": budget.context, "layers": budget.layers, "width": budget.width}
        model = ftrain.bind(lambda: GPT(text.vocabulary, **sizes))
        gradients = ftrain.gradients(model, char_gpt.loss_fn)
        warmup = max(1, budget.steps // 20)
        shape = (
            optim.warmup_cosine(1.0, warmup, budget.steps)
            if contender.decays
            else optim.linear_warmup(1.0, warmup)
        )

        def optimizer(peak: torch.Tensor) -> optim.GradientTransformation:
            # The count begins at 1, because the rate at 0 is 0, and the update would be lost.
            return optim.chain(
                optim.clip_by_global_norm(1.0),
                contender.build(lambda count: peak * shape(count + 1)),
            )

        def train_step(state: ftrain.TrainState, batch: torch.Tensor) -> ftrain.TrainState:
            result = gradients(state, batch)
            proposed = ftrain.update(optimizer(state.extras["peak"]), state, result)
            return ftrain.commit(state, proposed, result)[0]

        def evaluated(state: ftrain.TrainState, windows: torch.Tensor) -> torch.Tensor:
            params = state.params
            if not contender.decays:
                params = optim.schedule_free_eval_params(state.opt_state, params)
            run = model.call(
                lambda module: char_gpt.loss_fn(module, windows), params, state.buffers, False
            )
            loss: torch.Tensor = run[0].value
            return loss

        training, held_out = text.split(0.1)
        self.budget, self.training = budget, training.windows(budget.context + 1)
        steps = ftrain.make_steps(model, char_gpt.loss_fn, optim.sgd(0.0))
        self.start = steps.init_state
        self.optimizer = optimizer
        self.train_step = ftrain.compile(train_step, donate=True, backend=backend)
        self.evaluate = ftrain.compile(evaluated, backend=backend)
        windows = held_out.windows(budget.context + 1, stride=budget.context)
        spread = torch.linspace(0, len(windows) - 1, min(budget.eval_windows, len(windows)))
        self.windows = windows.gather(spread.long())

    def run(self, seed: int, rate: float) -> Curve:
        peak = torch.tensor(rate, dtype=torch.float64)
        state = self.start(seed)
        state = state.replace(
            opt_state=self.optimizer(peak).init(state.params), extras={"peak": peak}
        )
        batches = iter(data.Loader(self.training, self.budget.batch, seed=seed))
        held_out, seconds = [], []
        for step in range(self.budget.steps + 1):
            if step % self.budget.eval_every == 0 or step == self.budget.steps:
                held_out.append((step, self.evaluate(state, self.windows).item()))
            if step < self.budget.steps:
                batch = next(batches)
                begun = time.perf_counter()
                state = self.train_step(state, batch)
                seconds.append(time.perf_counter() - begun)
        return Curve(held_out, statistics.fmean(seconds[1:]))


def tuned(
    end_at: Callable[[float], float], rates: Sequence[float], widen: int
) -> dict[float, float]:
    """Return the final loss at each rate; add rates by factors of 2 while the best is at the edge."""
    ends = {rate: end_at(rate) for rate in rates}
    for _ in range(widen):
        best = min(ends, key=lambda rate: ends[rate])
        if best not in (min(ends), max(ends)):
            break
        rate = best / 2 if best == min(ends) else best * 2
        ends[rate] = end_at(rate)
    return ends


def run(budget: Budget, backend: Any = "inductor") -> Report:
    report = Report("optimizers", "Muon, SOAP and Schedule-Free against AdamW: a small GPT")
    text = data.standard_library()
    report.content["budget"] = dataclasses.asdict(budget)
    report.content["curves"] = {}
    curves: dict[str, list[Curve]] = {}
    for name, contender in CONTENDERS.items():
        report.section(f"{name}: the loss after {budget.steps} updates, by rate")
        trainer = Trainer(contender, budget, text, backend)

        def end_at(rate: float, trainer: Trainer = trainer) -> float:
            return trainer.run(TUNING_SEED, rate).end

        ends = tuned(end_at, contender.rates, budget.widen)
        for rate, end in sorted(ends.items()):
            if math.isinf(end):
                report.note(f"{name}: no finite loss at rate {rate:.1e}")
            else:
                report.figure(f"{name}: tuning at {rate:.1e}", end, "nats", f"rate {rate:.1e}")
        best = min(ends, key=lambda rate: ends[rate])
        if best in (min(ends), max(ends)):
            report.note(f"{name}: the best rate is at the edge of its grid")
        curves[name] = [trainer.run(seed, best) for seed in range(budget.seeds)]
        report.content["curves"][name] = {
            "rate": best,
            "held_out": [curve.held_out for curve in curves[name]],
        }
    compare(report, curves, budget)
    return report


def compare(report: Report, curves: dict[str, list[Curve]], budget: Budget) -> None:
    target = max(curve.end for curve in curves["AdamW"])
    report.section(f"all seeds; the target is {target:.4f} nats, AdamW's worst end")
    report.figure("target", target, "nats", "held-out loss to reach")
    for name, runs in curves.items():
        ends = [curve.end for curve in runs]
        report.figure(f"{name}: end", statistics.fmean(ends), "nats", f"{name}, at the end, mean")
        if len(ends) > 1:
            spread = statistics.stdev(ends)
            report.figure(f"{name}: spread", spread, "nats", f"{name}, standard deviation")
        updates = [curve.updates_to(target) for curve in runs]
        missed = sum(math.isinf(x) for x in updates)
        if missed:
            report.note(f"{name} does not reach the target on {missed} of {len(runs)} seeds")
        if 2 * missed < len(runs):
            middle = statistics.median(updates)
            report.figure(f"{name}: updates", middle, "", f"{name}, updates to the target, median")
            share = middle / statistics.median(c.updates_to(target) for c in curves["AdamW"])
            report.figure(f"{name}: share", share, "x", f"{name}, of AdamW's updates")
        seconds = statistics.median(curve.seconds for curve in runs)
        report.figure(f"{name}: update", 1e3 * seconds, "ms", f"{name}, an update")
    report.note(f"looked at every {budget.eval_every} updates, on {budget.eval_windows} windows")


QUICK = Budget(
    steps=20,
    seeds=2,
    eval_every=5,
    eval_windows=8,
    batch=4,
    layers=1,
    width=16,
    context=16,
    widen=0,
)


def main() -> None:
    options = arguments(__doc__)
    report = run(QUICK, "eager") if options.quick else run(Budget())
    if not options.no_save and not options.quick:
        report.save()


if __name__ == "__main__":
    main()
