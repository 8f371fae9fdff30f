"""LeNet-5 learns handwritten digits: the first run to make, about a minute on two cores.

    python examples/digits.py              # or: make demo

One sees a bar with the loss, then one line with the accuracy on digits that were never trained on (about
99 %) and the path of a picture of the curves, `runs/digits/curves.png`. Most of the time goes into
compiling the step, once: the machine code is kept, and a second run starts at once.

The data are the 1,797 scans of 8 x 8 pixels that come with scikit-learn; 360 of them, always the same,
are held out. They are enlarged to the 32 x 32 pixels for which LeNet-5 was drawn (LeCun et al. 1998).
ReLU and max pooling stand where the paper has tanh and averages. Random warps and dropout keep so small
a set from being learned by heart; both draw from the state's key, inside the compiled step.

Read next: `char_gpt.py`.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # nor has this

import ftrain
from ftrain import optim, random

Batch = dict[str, torch.Tensor]  # image: float32 (n, 1, 32, 32); label: int64 (n,)

BATCH = 64
HELD_OUT, EVAL_BATCH = 360, 120  # 120 divides 360: one shape, one compiled program


def train(options: argparse.Namespace) -> list[Epoch]:
    """The run: what was seen in each epoch."""
    training, held_out = digits()
    steps_per_epoch = len(training["label"]) // BATCH
    steps = options.epochs * steps_per_epoch

    schedule = optim.warmup_cosine(3e-3, steps // 10, steps)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, weight_decay=0.05)
    )
    init_state, train_step, eval_step = ftrain.make_steps(LeNet5, loss_fn, optimizer)
    if not options.no_compile:
        train_step = ftrain.compile(train_step, donate=True)
        eval_step = ftrain.compile(eval_step)

    state = init_state(options.seed)
    order_key = random.fold_in(random.key(options.seed), 2)  # 0 and 1 are the state's own
    epochs = []
    bar = tqdm(total=steps, desc="training" if options.no_compile else "compiling", mininterval=0.5)
    for epoch in range(options.epochs):
        order = random.permutation(random.fold_in(order_key, epoch), len(training["label"]))
        seen = []
        for rows in order[: steps_per_epoch * BATCH].view(-1, BATCH):
            state, metrics = train_step(state, pick(training, rows))
            seen.append(metrics)
            if bar.n == 0:
                bar.unpause()  # the time to compile says nothing about the steps to come
            bar.update()
        epochs.append(Epoch(bar.n, merge(seen), evaluate(eval_step, state, held_out)))
        bar.set_description("training")
        bar.set_postfix_str(epochs[-1].summary())
    bar.close()
    return epochs


def loss_fn(model: nn.Module, batch: Batch) -> tuple[ftrain.Mean, dict[str, ftrain.Mean]]:
    """Sums with their counts, so that means over any number of batches merge exactly."""
    logits, label = model(batch["image"]), batch["label"]
    n = torch.tensor(len(label))
    loss = ftrain.Mean(F.cross_entropy(logits, label, reduction="sum"), n)
    return loss, {"accuracy": ftrain.Mean((logits.argmax(-1) == label).sum(), n)}


def evaluate(eval_step: Callable[..., ftrain.Metrics], state: Any, data: Batch) -> ftrain.Metrics:
    """The metrics over all of `data`."""
    parts = torch.arange(len(data["label"])).view(-1, EVAL_BATCH)
    return merge([eval_step(state, pick(data, rows)) for rows in parts])


def merge(parts: list[ftrain.Metrics]) -> ftrain.Metrics:
    """The metrics over all that these have seen."""
    return functools.reduce(ftrain.Metrics.merge, parts)


class Epoch(NamedTuple):
    """The metrics of one epoch; tensors, until someone looks.

    Attributes:
        step: updates done at its end.
        training: over its batches, as they were met (with dropout).
        held_out: over the held-out digits, at its end.
    """

    step: int
    training: ftrain.Metrics
    held_out: ftrain.Metrics

    def summary(self) -> str:
        return f"loss {self.training['loss']:.3f}, held out {self.held_out['accuracy']:.1%}"


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU, max pooling, dropout and random warps: 61,706 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(120, 84), nn.ReLU(), nn.Dropout(0.2), nn.Linear(84, 10),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            image = warped(image)
        logits: torch.Tensor = self.classifier(self.features(image))
        return logits


def warped(image: torch.Tensor) -> torch.Tensor:
    """Each image turned by up to 14 degrees, scaled by up to 15 %, sheared a little, and moved."""
    angle, shear, scale, right, down = 2 * torch.rand(5, len(image)) - 1
    cos, sin = (1 + 0.15 * scale) * torch.stack([torch.cos(0.25 * angle), torch.sin(0.25 * angle)])
    rows = torch.stack([cos, 0.2 * shear - sin, 0.12 * right, sin, cos, 0.12 * down], dim=-1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def digits() -> tuple[Batch, Batch]:
    """The digits as `(training, held_out)`, standardised by what the training digits say."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    images = F.interpolate(small, size=(32, 32), mode="bilinear")
    everything = {"image": images, "label": torch.tensor(labels, dtype=torch.int64)}
    # A key of its own: whatever the run's seed, the same digits are held out.
    order = random.permutation(random.key(1998), len(images))
    held_out, training = pick(everything, order[:HELD_OUT]), pick(everything, order[HELD_OUT:])
    mean, std = training["image"].mean(), training["image"].std()
    for part in (training, held_out):
        part["image"] = (part["image"] - mean) / std
    return training, held_out


def pick(data: Batch, rows: torch.Tensor) -> Batch:
    """These rows of the data."""
    return {name: values[rows] for name, values in data.items()}


def plot(epochs: list[Epoch], path: pathlib.Path) -> None:
    """Loss and accuracy against steps, as a PNG."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2)
    steps = [epoch.step for epoch in epochs]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        axis.plot(
            steps,
            [float(e.training[name]) for e in epochs],
            label="training (warped, with dropout)",
        )
        axis.plot(steps, [float(e.held_out[name]) for e in epochs], label="held out")
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].set_ylim(0.9, 1.0)
    axes[1].legend(loc="lower right", frameon=False)
    reached = epochs[-1].held_out["accuracy"]
    figure.suptitle(f"LeNet-5 on handwritten digits: {reached:.1%} of the held-out ones recognised")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and dropout")
    parser.add_argument(
        "--no-compile", action="store_true", help="eager mode: no wait, slower steps"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    return parser.parse_args(argv)


def compiler_found() -> bool:
    """Whether machine code can be made here; says so where it cannot."""
    try:
        ftrain.compile(torch.neg)(torch.zeros(1))
    except ftrain.errors.CompilerMissingError:
        print("No C++ compiler (g++ or clang++) was found, so this run does without: eager mode.")
        return False
    return True


def main(argv: list[str] | None = None) -> float:
    options = arguments(argv)
    # A second thread gains little on images this small, and waits long for its turn on a busy machine.
    torch.set_num_threads(1)
    start = time.perf_counter()
    options.no_compile = options.no_compile or not compiler_found()
    epochs = train(options)
    seconds = time.perf_counter() - start
    accuracy = float(epochs[-1].held_out["accuracy"])
    picture = options.out / "curves.png"
    plot(epochs, picture)
    print(f"{accuracy:.1%} of {HELD_OUT} held-out digits recognised after {seconds:.0f} s")
    print(f"curves: {picture}")
    return accuracy


if __name__ == "__main__":
    main()
