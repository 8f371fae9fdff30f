"""Two training runs with every kind of state, for tests that interrupt and resume them.

    python -m tests.checkpoint.resumed NAME SOURCE WORKERS TARGET   # SOURCE: a checkpoint, or -
    python -m tests.checkpoint.resumed NAME SOURCE WORKERS STORE --each

The first command takes the remaining steps and saves the last one to TARGET; the second saves after
every step to STORE. Both runs have dropout, augmentations, precision 16-mixed, accumulation, a schedule,
clipping and averaged weights.

Read next: `campaign_resume.py`, which stops them at every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import checkpoint, data, optim, random, tree
from tests.zoo import GPT

STEPS = 40
WIDTH, BATCH = 16, 64


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can be resumed from any of its checkpoints."""

    init: Callable[[int], Any]
    step: Callable[[Any, Any], tuple[Any, Any]]
    loader: data.Loader
    donates: bool

    def go_on(self, source: Path | None, workers: int) -> Any:
        """Resume the run; yield `(steps taken, state, metadata)` at the start and after every step."""
        if source is None:
            state, saved = self.init(0), {"cursor": self.loader.start().to_json(), "losses": []}
        else:
            like = self.init(1)  # only the structure of this state is used
            state, saved = checkpoint.load(source, like=like, on_change="raise")
        begin, losses = data.Cursor.from_json(saved["cursor"]), saved["losses"]
        yield len(losses), state, saved
        if len(losses) == STEPS:
            return
        loader = dataclasses.replace(self.loader, workers=workers)
        for batch, cursor in loader.batches(begin, epochs=None):
            state, metrics = self.step(state, batch)
            losses = [*losses, float(metrics["loss"])]
            yield len(losses), state, {"cursor": cursor.to_json(), "losses": losses}
            if len(losses) == STEPS:
                return


def convnet() -> Run:
    """Return a run on digits: BatchNorm, dropout, augmented images, averaged weights in `extras`."""

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 16, 10),
        )  # fmt: skip

    def loss_fn(model: Any, batch: Any) -> Any:
        return F.cross_entropy(model(batch["image"]).float(), batch["label"])

    optimizer = _optimizer(optim.sgd(optim.warmup_cosine(0.1, 5, STEPS), momentum=0.9))
    gradients = ftrain.gradients(model, loss_fn, precision="16-mixed", accumulate=2)

    def step(state: Any, batch: Any) -> Any:
        result = gradients(state, batch)
        new = ftrain.update(optimizer, state, result)
        average = tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.extras["ema"], new.params)
        return ftrain.commit(state, new.replace(extras={"ema": average}), result)

    def init(seed: int) -> Any:
        state = ftrain.make_steps(model, loss_fn, optimizer, precision="16-mixed").init_state(seed)
        return state.replace(extras={"ema": tree.map(torch.clone, state.params)})

    digits = data.digits()
    pairs = zip(digits["image"].unbind(0), digits["label"].tolist(), strict=True)
    samples = [{"image": image, "label": label} for image, label in pairs]
    loader = data.Loader(samples, BATCH, seed=3, augment=_shifted)
    return Run(init, step, loader, donates=False)


def _shifted(sample: Any, key: torch.Tensor) -> Any:
    """Shift an image by up to a pixel and add noise, drawn from a key and torch's generator."""
    by = (random.randint(key, (2,), 0, 3) - 1).tolist()
    image = torch.roll(sample["image"], by, (1, 2)) + 0.05 * torch.randn(1, 8, 8)
    return {**sample, "image": image}


def char_gpt() -> Run:
    """Return a run on text: tied weights, dropout, replaced characters, donation, compilation, EMA."""
    text = data.standard_library(12_000)

    def loss_fn(model: Any, batch: Any) -> Any:
        logits = model(batch[:, :-1]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        return ftrain.Mean(losses, torch.tensor(batch[:, 1:].numel()))

    adam = optim.adamw(optim.warmup_cosine(1e-2, 5, STEPS), weight_decay=0.1)
    steps = ftrain.make_steps(
        functools.partial(GPT, text.vocabulary, 16, WIDTH, 0.1),
        loss_fn,
        optim.ema(_optimizer(adam), decay=0.9),
        precision="16-mixed",
        accumulate=2,
    )
    loader = data.Loader(text.windows(WIDTH + 1, WIDTH // 2), BATCH, seed=4, augment=_replaced)
    step = ftrain.compile(steps.train_step, donate=True, backend="eager")
    return Run(steps.init_state, step, loader, donates=True)


def _replaced(window: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Replace one in ten characters of a window by its neighbour."""
    return torch.where(random.uniform(key, window.shape) < 0.1, window.roll(1), window)


def _optimizer(inner: Any) -> Any:
    return optim.chain(optim.clip_by_global_norm(1.0), inner)


RUNS = {"convnet": convnet, "char-gpt": char_gpt}


def finish(name: str, source: Path | None, workers: int, target: Path) -> None:
    """Take the remaining steps of a run and save only the last one."""
    for done, state, metadata in RUNS[name]().go_on(source, workers):  # noqa: B007
        pass
    checkpoint.save(target, state, metadata=metadata, step=done)


def save_each(name: str, source: Path | None, workers: int, store: Path) -> None:
    """Take the remaining steps of a run with an asynchronous save after every step."""
    run = RUNS[name]()
    with checkpoint.Store(store, keep_last=None, asynchronous=True, copy=run.donates) as saver:
        for done, state, metadata in run.go_on(source, workers):
            saver.save(state, step=done, metadata=metadata)


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of each file of a checkpoint, by name."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("source", type=Path)
    parser.add_argument("workers", type=int)
    parser.add_argument("target", type=Path)
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = None if str(options.source) == "-" else options.source
    go_on = save_each if options.each else finish
    go_on(options.name, source, options.workers, options.target)
