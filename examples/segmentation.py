"""Segment handwritten digits in cluttered images with a small U-Net, in two minutes on two cores.

    python examples/segmentation.py                        # this file
    ftrain train examples/configs/segmentation.yaml        # the same run, to the bit

One sees the progress, then a line with the mean intersection over union on images that were never
trained on, and the path of a picture: image, true classes, predicted classes.

An image is made of two of scikit-learn's digits, at random places, and clutter: pieces of other digits,
and noise. Class 1 is a digit, class 0 all else; only the shape of the whole tells a piece from a digit.
Loss, evaluation and metrics are those of `tasks.segmentation`: the sum of cross-entropy and Dice loss,
and the mean intersection over union.

Read next: `text_classification.py`.
"""

from __future__ import annotations

import argparse
import functools
import pathlib

import torch
import torch.nn.functional as F

import ftrain
from ftrain import data, optim, tasks
from ftrain.core.evaluate import prediction
from ftrain.loop import FitResult, Trainer, callbacks, plots
from ftrain.tasks.models import UNet

SIZE, DIGIT, PIECE = 32, 16, 6  # pixels of an image, a digit, a piece of clutter
Images = dict[str, torch.Tensor]  # image: float32 (n, 1, 32, 32); label: int64 (n, 32, 32)

unet = functools.partial(UNet, width=8)


def train(out: pathlib.Path, epochs: int = 10, seed: int = 0, compiled: bool = True) -> FitResult:
    """Train; return the result of the run, and write its log to `out`."""
    training, held_out = cluttered()
    loader = data.Loader(training, batch_size=32, seed=seed)
    held_out_loader = data.Loader(held_out, batch_size=100, shuffle=False)
    total = epochs * len(loader)
    schedule = optim.warmup_cosine(5e-3, total // 10, total)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, weight_decay=0.01)
    )
    task = tasks.segmentation()
    steps = ftrain.make_steps(unet, task.loss_fn, optimizer, eval_fn=task.eval_fn)
    watchers = [callbacks.JSONLLogger(out / "metrics.jsonl"), callbacks.ProgressBar()]
    trainer = Trainer(steps, watchers, compile=compiled)
    return trainer.fit(steps.init_state(seed), loader, held_out_loader, epochs=epochs)


def cluttered(images: int = 1000, held_out: int = 200) -> tuple[Images, Images]:
    """Return images for training, and images of other digits for evaluation."""
    scans = data.digits()
    scans["image"] = F.interpolate(scans["image"], size=(DIGIT, DIGIT), mode="bilinear")
    training, others = data.split(scans, 360, seed=1998)
    return made(training, images, seed=0), made(others, held_out, seed=1)


def made(digits: Images, n: int, seed: int) -> Images:
    """Compose `n` images of two digits each, with clutter and noise; also return each pixel's class."""
    draws = torch.Generator().manual_seed(seed)
    scans = digits["image"][:, 0]
    image, label = torch.zeros(n, SIZE, SIZE), torch.zeros(n, SIZE, SIZE, dtype=torch.int64)

    def integers(high: int) -> torch.Tensor:
        return torch.randint(0, high, (n,), generator=draws)

    def window(top: torch.Tensor, left: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
        places = torch.arange(size)
        rows, columns = top[:, None] + places, left[:, None] + places
        return torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]

    for _ in range(10):
        cut = window(integers(DIGIT - PIECE), integers(DIGIT - PIECE), PIECE)
        piece = scans[integers(len(scans))][cut]
        place = window(integers(SIZE - PIECE), integers(SIZE - PIECE), PIECE)
        image[place] = torch.maximum(image[place], piece)
    for _ in range(2):
        chosen = integers(len(scans))
        place = window(integers(SIZE - DIGIT), integers(SIZE - DIGIT), DIGIT)
        ink = scans[chosen] > 0.3
        image[place] = torch.where(ink, scans[chosen], image[place])
        label[place] = torch.where(ink, 1, label[place])
    noise = 0.15 * torch.randn(image.shape, generator=draws)
    return {"image": (image + noise)[:, None], "label": label}


def picture(state: ftrain.TrainState, shown: Images, out: pathlib.Path) -> None:
    """Draw images beside their true and predicted classes of the pixels."""
    found = prediction(unet)(state, shown["image"]).argmax(1)
    grey = shown["image"][:, 0].clamp(0, 1)
    columns = torch.stack([grey, shown["label"].float(), found.float()], 1)
    names = ["image", "true", "predicted"] * len(grey)
    plots.image_grid(columns.flatten(0, 1), names, out=out, columns=6)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=10)
    add("--seed", type=int, default=0, help="of weights and order")
    add("--no-compile", action="store_true", help="eager mode: no C++ compiler, slower steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/segmentation-by-hand"))
    options = parser.parse_args(argv)

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "metrics.jsonl").unlink(missing_ok=True)
    result = train(options.out, options.epochs, options.seed, compiled=not options.no_compile)
    assert result.eval is not None
    found = result.eval.metrics["mean_iou"]
    held_out = cluttered()[1]
    path = options.out / "segmentation.png"
    picture(result.state, {name: x[:8] for name, x in held_out.items()}, path)
    plots.curves(
        options.out / "metrics.jsonl", options.out / "curves.png", metrics=["loss", "mean_iou"]
    )
    print(f"mean intersection over union {found:.3f} on held-out images\npicture: {path}")
    return found


if __name__ == "__main__":
    main()
