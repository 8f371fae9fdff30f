"""Comparison of ftrain with nanoGPT's training loop on a character-level GPT.

    python -m benchmarks.char_gpt_parity           # 2,000 steps, 3 seeds: a quarter of an hour
    python -m benchmarks.char_gpt_parity --steps 200 --seeds 2

One contender is `examples/char_gpt.py`, compiled and donated. The other is a loop like nanoGPT's: a
module, `torch.optim.AdamW` with a group that decays and a group that does not, `clip_grad_norm_`, a rate
that `get_lr` sets at each step, and eager mode, as nanoGPT advises for CPUs. Both have the same model,
initial weights, batches and text, and are compared by the loss on the whole held-out text.

The two differ by rounding only, which training of this size does not magnify: initial weights changed by
a relative 3e-7 change no training loss of the first 300 steps by more than 7e-7. So the losses must be
equal, within a small bound, at every evaluation, and not only on average.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from benchmarks.measure import Report, die_unless
from examples import char_gpt
from ftrain import data, optim
from ftrain.tasks.models import GPT

PEAK, END = 1e-3, 1e-4
EARLY = 20


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of one run, shared by ftrain and the hand-written loop."""

    text: data.Text
    steps: int
    seed: int = 0
    batch_size: int = 12
    context: int = 64
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def model(self) -> nn.Module:
        return GPT(self.text.vocabulary, **{"context": self.context, **self.sizes})


class Curve(NamedTuple):
    """Training and held-out losses of a run.

    Attributes:
        losses: the training loss of each step.
        held_out: `(step, loss)`.
    """

    losses: torch.Tensor
    held_out: list[tuple[int, float]]


def by_ftrain(run: Setting, compiled: bool = True) -> Curve:
    _, rows = char_gpt.train(
        run.model,
        run.text,
        steps=run.steps,
        seed=run.seed,
        batch_size=run.batch_size,
        context=run.context,
        compiled=compiled,
    )
    losses = torch.tensor([row["loss"] for row in rows if row["split"] == "train"])
    return Curve(losses, [(row["step"], row["loss"]) for row in rows if row["split"] == "eval"])


def by_hand(run: Setting) -> Curve:
    """Train by the loop of nanoGPT's train.py, in one process on the CPU."""
    model = initial_model(run)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.99),
    )
    training, rest = run.text.split(0.1)
    loader = data.Loader(training.windows(run.context + 1), run.batch_size, seed=run.seed)
    batches = (batch for batch, _ in loader.batches(epochs=None))
    losses, held_out = [], []
    for step in range(run.steps):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, run.steps)
        windows = next(batches)
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % 500 == 0 or step + 1 == run.steps:
            held_out.append((step + 1, estimate_loss(model, rest, run.context)))
    return Curve(torch.stack(losses), held_out)


def initial_model(run: Setting) -> nn.Module:
    """Return the model with the initial weights of ftrain's run."""
    init_state = ftrain.make_steps(run.model, char_gpt.loss_fn, optim.sgd(0.1)).init_state
    model = run.model()
    start = init_state(run.seed).params
    parameters = dict(model.named_parameters())
    die_unless(parameters.keys() == start.keys(), "the two models have different parameter names")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    return model


def get_lr(step: int, steps: int) -> float:
    """Return the learning rate: linear warmup, then cosine decay."""
    warmup = steps // 20
    if step < warmup:
        return PEAK * step / warmup
    done = (step - warmup) / (steps - warmup)
    return END + 0.5 * (1.0 + math.cos(math.pi * done)) * (PEAK - END)


@torch.no_grad()
def estimate_loss(model: nn.Module, text: data.Text, context: int) -> float:
    """Return the mean loss of a model over a whole text, which predicts each character once."""
    model.eval()
    total, n = 0.0, 0
    for windows in data.Loader(text.windows(context + 1, stride=context), 142, shuffle=False):
        logits, targets = model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        n += len(targets)
    model.train()
    return total / n


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20 steps: checks the plumbing only")
    parser.add_argument("--no-save", action="store_true", help="print only")
    asked = parser.parse_args()
    steps = 20 if asked.quick else asked.steps

    report = Report("char_gpt_parity", "Characters: ftrain and nanoGPT's loop on the same text")
    report.content["steps"] = steps
    text = data.standard_library()
    report.note(f"{len(text):,} characters, {text.vocabulary} different")
    ours, theirs = [], []
    for seed in range(asked.seeds):
        ours.append(by_ftrain(Setting(text, steps, seed)))
        theirs.append(by_hand(Setting(text, steps, seed)))
        report.section(f"seed {seed}")
        for (step, a), (_, b) in zip(ours[-1].held_out, theirs[-1].held_out, strict=True):
            report.figure(f"seed {seed}: ftrain at {step}", a, "nats", f"ftrain, step {step}")
            report.figure(f"seed {seed}: nanoGPT at {step}", b, "nats", f"nanoGPT, step {step}")

    report.section("all seeds, held-out loss at the end")
    ends = {
        "ftrain": [curve.held_out[-1][1] for curve in ours],
        "nanoGPT": [curve.held_out[-1][1] for curve in theirs],
    }
    spread = 0.0
    for name, losses in ends.items():
        report.figure(f"mean: {name}", statistics.fmean(losses), "nats", f"{name}, mean")
        if len(losses) > 1:
            report.figure(f"std: {name}", statistics.stdev(losses), "nats", f"{name}, deviation")
            spread = max(spread, statistics.stdev(losses))
    early = max(
        float((a.losses[:EARLY] - b.losses[:EARLY]).abs().max())
        for a, b in zip(ours, theirs, strict=True)
    )
    apart = max(
        abs(a - b)
        for mine, yours in zip(ours, theirs, strict=True)
        for (_, a), (_, b) in zip(mine.held_out, yours.held_out, strict=True)
    )
    # A wrong rate, decay or clip shows within a few steps.
    report.target(f"training losses apart within {EARLY} steps, nats", early, "at most", 1e-5)
    report.target("held-out losses apart at any evaluation, nats", apart, "at most", 1e-4)
    if spread:
        excess = statistics.fmean(ends["ftrain"]) - statistics.fmean(ends["nanoGPT"])
        report.target("ftrain's mean above nanoGPT's, nats", excess, "at most", spread)
    if not asked.no_save and not asked.quick:
        report.save()


if __name__ == "__main__":
    main()
