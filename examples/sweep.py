"""Train 64 networks on digits in one graph: 16 learning rates x 4 seeds, 40 seconds on two cores.

    python examples/sweep.py

The program shows a bar, and prints the best member, the accuracy of the ensemble of the members that
trained to the end, and the path of a picture of the accuracy on held-out digits over the learning rate.
Most of the time is spent on compiling the single step of all members. The worse half of the members is
dropped after a third of the steps, and again after two thirds (successive halving). Each time, the step
is compiled again for fewer members.

The data are the 1,797 scans of 8 x 8 pixels that come with scikit-learn; 360 of them are held out.

Read next: `digits.py`, one network and its curves.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from ftrain import data, optim, transforms
from ftrain.loop import plots

Batch = dict[str, torch.Tensor]  # image: float32 (n, 64); label: int64 (n,)


class Swept(NamedTuple):
    members: list[dict[str, Any]]  # learning rate and seed of each of the 64
    accuracy: torch.Tensor  # (64,): of each member, when it was dropped, or at the end
    kept: torch.Tensor  # positions of the members that trained to the end
    ensemble: float  # accuracy of their mean prediction
    disagreement: torch.Tensor  # (360,), nats: of the kept members on each held-out digit


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 10))


def loss_fn(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits, label = model(batch["image"]), batch["label"]
    return F.cross_entropy(logits, label), {"accuracy": (logits.argmax(-1) == label).float().mean()}


def train(steps_of_all: int = 480, rates: int = 16, seeds: int = 4, compiled: bool = True) -> Swept:
    """Train all members; drop the worse half after a third of the steps, and again after two thirds."""
    training, held_out = digits()
    loader = data.Loader(training, batch_size=64, seed=0, last_batch="drop")

    def optimizer(learning_rate: Any) -> optim.GradientTransformation:
        return optim.adamw(optim.warmup_cosine(learning_rate, 20, steps_of_all), weight_decay=0.01)

    steps = ftrain.make_steps(model, loss_fn, optim.with_hyperparams(optimizer, learning_rate=1e-3))
    over = transforms.grid(learning_rate=torch.logspace(-4, 0, rates).tolist(), seed=range(seeds))
    swept = transforms.sweep(
        transforms.stoppable(steps), over=over
    )  # a member with a NaN loss stops
    backend: Any = "inductor" if compiled else "eager"
    step: Any = ftrain.compile(swept.train_step, donate=True, backend=backend)

    states, kept, accuracy = swept.init_state(0), torch.arange(len(over)), torch.zeros(len(over))
    epochs = -(-steps_of_all // len(loader))
    batches = itertools.islice(loader.batches(epochs=epochs), steps_of_all)
    for i, (batch, _) in enumerate(tqdm(batches, "training", steps_of_all), start=1):
        states, _ = step(states, batch)
        if i * 3 % steps_of_all == 0:
            found = swept.eval_step(states, held_out)
            accuracy[kept] = found["accuracy"]
            if i < steps_of_all:
                best = transforms.successive_halving(found["loss"])
                states, kept = transforms.select(states, best), kept[best]
                step = ftrain.compile(swept.train_step, donate=True, backend=backend)

    apply = ftrain.bind(model)

    def predict(state: ftrain.TrainState, batch: Batch) -> torch.Tensor:
        logits, _ = apply(state.params, state.buffers, state.rng, batch["image"], training=False)
        out: torch.Tensor = logits
        return out

    mean, disagreement = transforms.ensemble(predict, of="logits")(states, held_out)
    right = (mean.argmax(-1) == held_out["label"]).float().mean()
    return Swept(over, accuracy, kept, float(right), disagreement)


def digits() -> tuple[Batch, Batch]:
    """Return the digits as `(training, held_out)`, with pixels from 0 to 1."""
    scans = data.digits()
    scans["image"] = scans["image"].flatten(1) / scans["image"].max()
    training, held_out = data.split(scans, 360, seed=1998)
    return training, held_out


def main(argv: list[str] | None = None) -> Swept:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--steps", type=int, default=480, help="a multiple of 3")
    add("--no-compile", action="store_true", help="run without a C++ compiler; steps are slower")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/sweep"))
    options = parser.parse_args(argv)

    torch.set_num_threads(1)
    found = train(options.steps, compiled=not options.no_compile)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "sweep.png"
    plots.sweep_grid(
        found.members,
        found.accuracy.tolist(),
        picture,
        metric="accuracy",
        title=f"{len(found.members)} networks in one graph",
    )
    i = int(found.accuracy.argmax())
    rate, seed = found.members[i]["learning_rate"], found.members[i]["seed"]
    print(f"best: {found.accuracy[i]:.1%} at learning rate {rate:.2g}, seed {seed}")
    print(f"ensemble of the {len(found.kept)} that trained to the end: {found.ensemble:.1%}")
    print(f"picture: {picture}")
    return found


if __name__ == "__main__":
    main()
