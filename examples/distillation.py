"""Distil LeNet-5 (61,706 weights) into a network of 666 weights, in 35 seconds of one core.

    python -m examples.distillation

The teacher learns from the labels of all 1,437 training digits. Then two small students start from the
same weights: one learns from the labels of 100 digits; the other learns from the teacher's outputs for
all digits, and sees no label at all. A last student, for comparison, learns from all labels.

One sees bars, then a line with the accuracies on digits that nobody was trained on, and the path of a
picture. The teacher's weights are an entry of the training state's extras; `data.with_outputs` would
compute its outputs once and keep them in a file instead.

Read next: `ftrain/tasks/distillation/teacher.py`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib
from typing import Any

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from examples import digits
from ftrain import data, optim, tasks

labelled = functools.partial(tasks.cross_entropy, input="image", target="label")
LABELS = 100  # of the first student
EVERY = 22  # steps between evaluations: an epoch of all digits


class Small(nn.Module):
    """Convolutional network of 666 weights, on images of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(image)
        return logits


def students(teacher: ftrain.TrainState, steps: int) -> dict[str, ftrain.Steps]:
    """Return the steps of each student: one that is taught, and two that learn from labels."""
    taught_by = tasks.Teacher(digits.LeNet5)
    taught = functools.partial(
        tasks.distillation,
        teacher=taught_by,
        input="image",
        target=None,  # no label is read
        temperature=4.0,
        soft_weight=1.0,
    )
    optimizer = optim.adamw(optim.warmup_cosine(1e-2, steps // 10, steps), weight_decay=0.01)
    make = functools.partial(ftrain.make_steps, Small, optimizer=optimizer, eval_fn=labelled)
    distilled = tasks.with_teacher(make(taught), taught_by, teacher.params, teacher.buffers)
    return {"100 labels": make(labelled), "the teacher": distilled, "all labels": make(labelled)}


def train(
    student: ftrain.Steps, training: Any, held_out: Any, steps: int, seed: int, name: str
) -> tuple[ftrain.TrainState, list[float]]:
    """Return the final state, and the accuracy on the held-out digits after each epoch."""
    state, accuracies = student.init_state(seed), []
    loader = data.Loader(training, batch_size=64, seed=seed)
    batches = itertools.islice(loader.batches(epochs=None), steps)
    for i, (batch, _) in enumerate(tqdm(batches, name, steps), start=1):
        state, _ = student.train_step(state, batch)
        if i % EVERY == 0:
            accuracies.append(float(student.eval_step(state, held_out)["accuracy"]))
    return state, accuracies


def picture(
    path: pathlib.Path, curves: dict[str, list[float]], of_teacher: float, logits: dict[str, Any]
) -> None:
    """Draw accuracies over epochs, and a digit with the classes that teacher and student give it."""
    import matplotlib  # noqa: PLC0415  # not needed to train

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 3.4), width_ratios=(4, 2, 4))
    for name, accuracies in curves.items():
        left.plot(range(1, len(accuracies) + 1), accuracies, label=f"student with {name}")
    left.axhline(of_teacher, color="0.5", linestyle="--", label="teacher")
    left.set(title="held-out accuracy", xlabel="epoch", ylim=(0.3, 1))
    left.legend(loc="lower right")
    middle.imshow(logits["image"][0].numpy(), cmap="gray_r")
    middle.set(title=f"a held-out {logits['label']}", xticks=[], yticks=[])
    for i, name in enumerate(("teacher", "student")):
        soft = (logits[name] / 4).softmax(-1).tolist()
        right.bar([k + 0.4 * i - 0.2 for k in range(10)], soft, 0.4, label=name)
    right.set(title="probabilities at temperature 4", xticks=range(10), xlabel="class")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(epochs: int, seed: int, out: pathlib.Path) -> dict[str, float]:
    """Train teacher and students; write the picture; return their accuracies."""
    training, held_out = digits.digits()
    teacher, rows = digits.train(epochs, seed, compiled=False)
    steps = EVERY * epochs
    few = {name: x[:LABELS] for name, x in training.items()}
    images = {"image": training["image"]}
    given = {"100 labels": few, "the teacher": images, "all labels": training}
    found: dict[str, float] = {"LeNet-5": rows[-1]["accuracy"]}
    curves, taught = {}, teacher
    for name, student in students(teacher, steps).items():
        state, curves[name] = train(student, given[name], held_out, steps, seed, name)
        found[name] = curves[name][-1]
        taught = state if name == "the teacher" else taught
    shown = {"image": held_out["image"][:1]}
    logits = {
        "image": shown["image"][0],
        "label": int(held_out["label"][0]),
        "teacher": prediction(digits.LeNet5, teacher, shown),
        "student": prediction(Small, taught, shown),
    }
    out.mkdir(parents=True, exist_ok=True)
    picture(out / "distillation.png", curves, found["LeNet-5"], logits)
    return found


def prediction(model: Any, state: ftrain.TrainState, batch: Any) -> torch.Tensor:
    """Return the logits for the only image of a batch."""
    outputs, _ = ftrain.bind(model)(
        state.params, state.buffers, state.rng, batch["image"], training=False
    )
    logits: torch.Tensor = outputs[0]
    return logits


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, warps and dropout")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/distillation"))
    options = parser.parse_args(argv)

    torch.set_num_threads(1)  # on images this small, a second thread mostly waits
    found = run(options.epochs, options.seed, options.out)
    print(
        f"recognised held-out digits: LeNet-5 {found['LeNet-5']:.1%}; a student of 666 weights with "
        f"{LABELS} labels {found['100 labels']:.1%}, with the teacher and no label "
        f"{found['the teacher']:.1%}, with all labels {found['all labels']:.1%}\n"
        f"picture: {options.out / 'distillation.png'}"
    )
    return found


if __name__ == "__main__":
    main()
