"""Train LeNet-5 on handwritten digits in a hand-written loop, in a minute on two cores.

    python examples/digits.py                      # this loop
    ftrain train examples/configs/digits.yaml      # the same run, to the bit, from a configuration

One sees a bar, then one line with the accuracy on digits that were never trained on (about 99 %) and the
path of a picture of the curves. Most of the time goes into compiling the step, once: the machine code is
kept, and a second run starts at once.

The data are the 1,797 scans of 8 x 8 pixels that come with scikit-learn; 360 of them, always the same,
are held out. They are enlarged to the 32 x 32 pixels for which LeNet-5 was drawn (LeCun et al. 1998).
ReLU and max pooling stand where the paper has tanh and averages. Random warps and dropout keep so small
a set from being learned by heart; both draw from the state's key, inside the compiled step.

Read next: `char_gpt.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from ftrain import data, optim
from ftrain.loop import plots
from ftrain.tasks import models

Batch = dict[str, torch.Tensor]  # image: float32 (n, 1, 32, 32); label: int64 (n,)


def train(
    epochs: int = 60, seed: int = 0, compiled: bool = True
) -> tuple[ftrain.TrainState, list[dict[str, Any]]]:
    """Train; return the final state, and two rows per epoch: training and held-out metrics."""
    training, held_out = digits()
    loader = data.Loader(training, batch_size=64, seed=seed)
    held_out_loader = data.Loader(
        held_out, batch_size=120, shuffle=False
    )  # 120 divides 360: one shape
    steps = epochs * len(loader)

    schedule = optim.warmup_cosine(3e-3, steps // 10, steps)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, weight_decay=0.05)
    )
    init_state, train_step, eval_step = ftrain.make_steps(LeNet5, loss_fn, optimizer)
    if compiled:
        train_step, eval_step = ftrain.compile(train_step, donate=True), ftrain.compile(eval_step)

    state, seen, rows = init_state(seed), [], []
    for batch, cursor in tqdm(loader.batches(epochs=epochs), "training", steps):
        state, metrics = train_step(state, batch)
        seen.append(metrics)
        if cursor.position == 0:  # an epoch is over; only now is a number waited for
            found = {"train": seen, "eval": [eval_step(state, one) for one in held_out_loader]}
            where = {"step": int(state.step), "epoch": cursor.epoch}
            rows += [{**where, "split": split, **merged(found[split])} for split in found]
            seen = []
    return state, rows


def loss_fn(model: nn.Module, batch: Batch) -> tuple[ftrain.Mean, dict[str, ftrain.Mean]]:
    """Return loss and accuracy as sums and counts, so that their means merge exactly over batches."""
    logits, label = model(batch["image"]), batch["label"]
    n = torch.tensor(len(label))
    loss = ftrain.Mean(F.cross_entropy(logits, label, reduction="sum"), n)
    return loss, {"accuracy": ftrain.Mean((logits.argmax(-1) == label).sum(), n)}


def merged(parts: Iterable[ftrain.Metrics]) -> dict[str, float]:
    """Merge the metrics of several batches, and return them as Python numbers."""
    return functools.reduce(ftrain.Metrics.merge, parts).compute()


class LeNet5(models.LeNet5):
    """LeNet-5 with dropout and, in training, random warps of its images: 61,706 weights."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(warped(image) if self.training else image)


def warped(image: torch.Tensor) -> torch.Tensor:
    """Rotate each image by up to 14 degrees, scale it by up to 15 %, shear it a little, and shift it."""
    angle, shear, scale, right, down = 2 * torch.rand(5, len(image)) - 1
    cos, sin = (1 + 0.15 * scale) * torch.stack([torch.cos(0.25 * angle), torch.sin(0.25 * angle)])
    rows = torch.stack([cos, 0.2 * shear - sin, 0.12 * right, sin, cos, 0.12 * down], dim=-1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def digits() -> tuple[Batch, Batch]:
    """Return the digits as `(training, held_out)`, standardised with the training statistics."""
    scans = data.digits()
    scans["image"] = F.interpolate(scans["image"], size=(32, 32), mode="bilinear")
    training, held_out = data.split(scans, 360, seed=1998)  # the same ones for every seed of a run
    mean, std = training["image"].mean(), training["image"].std()
    for part in (training, held_out):
        part["image"] = (part["image"] - mean) / std
    return training, held_out


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=60)
    add("--seed", type=int, default=0, help="of weights, order, warps and dropout")
    add("--no-compile", action="store_true", help="eager mode: no C++ compiler, slower steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/digits-by-hand"))
    options = parser.parse_args(argv)

    # A second thread gains little on images this small, and waits long for its turn on a busy machine.
    torch.set_num_threads(1)
    _, rows = train(options.epochs, options.seed, compiled=not options.no_compile)

    options.out.mkdir(parents=True, exist_ok=True)
    log, picture = options.out / "metrics.jsonl", options.out / "curves.png"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))  # what `ftrain plot` reads too
    plots.curves(log, picture, metrics=["loss", "accuracy"])
    accuracy: float = rows[-1]["accuracy"]
    print(f"{accuracy:.1%} of the held-out digits recognised\ncurves: {picture}")
    return accuracy


if __name__ == "__main__":
    main()
