"""Classify snippets of Python source by the package of the standard library that they are from.

    python examples/text_classification.py                        # this file
    ftrain train examples/configs/text_classification.yaml        # the same run, to the bit

One sees the progress, then a line with the accuracy (about 85 %) and the F1 score on snippets that were
never trained on, and the path of a picture: how often each package was taken for each other one.

A snippet is 256 bytes of a file; the last fifth of each file is held out. Loss, evaluation and metrics
are those of `tasks.text_classification`, the model is `TextCNN` on bytes.

Read next: `char_gpt.py`.
"""

from __future__ import annotations

import argparse
import pathlib
import sysconfig

import torch

import ftrain
from ftrain import data, optim, tasks
from ftrain.core.evaluate import prediction
from ftrain.data.sources import Data
from ftrain.loop import FitResult, Trainer, callbacks, plots
from ftrain.tasks import metrics
from ftrain.tasks.models import TextCNN

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
SNIPPET = 256  # bytes
Snippets = dict[str, torch.Tensor]  # tokens: int64 (n, 256), bytes; label: int64 (n,)


def model() -> TextCNN:
    return TextCNN(256, len(PACKAGES), width=32, sizes=(3, 5, 9), dropout=0.3)


def train(out: pathlib.Path, epochs: int = 8, seed: int = 0, compiled: bool = True) -> FitResult:
    """Train; return the result of the run, and write its log to `out`."""
    training, held_out, *_ = snippets()
    loader = data.Loader(training, batch_size=64, seed=seed)
    held_out_loader = data.Loader(held_out, batch_size=64, shuffle=False)
    total = epochs * len(loader)
    schedule = optim.warmup_cosine(3e-3, total // 10, total)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, weight_decay=0.05)
    )
    task = tasks.text_classification(label_smoothing=0.1)
    steps = ftrain.make_steps(model, task.loss_fn, optimizer, eval_fn=task.eval_fn)
    watchers = [callbacks.JSONLLogger(out / "metrics.jsonl"), callbacks.ProgressBar()]
    trainer = Trainer(steps, watchers, compile=compiled)
    return trainer.fit(steps.init_state(seed), loader, held_out_loader, epochs=epochs)


def snippets(packages: tuple[str, ...] = PACKAGES) -> Data:
    """Return training snippets of the packages' files, and held-out ones from the ends of the files."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    for label, package in enumerate(packages):
        for file in sorted((library / package).rglob("*.py")):
            if "test" in file.parts:
                continue
            source = torch.tensor(list(file.read_bytes()), dtype=torch.int64)
            cut = len(source) * 4 // 5
            for i, piece in enumerate((source[:cut], source[cut:])):
                whole = piece[: len(piece) // SNIPPET * SNIPPET].view(-1, SNIPPET)
                parts[i].append(whole)
                labels[i].extend([label] * len(whole))
    training, held_out = (
        {"tokens": torch.cat(x), "label": torch.tensor(y)}
        for x, y in zip(parts, labels, strict=True)
    )
    return Data(training, held_out, facts={"classes": len(packages)})


def picture(state: ftrain.TrainState, held_out: Snippets, out: pathlib.Path) -> None:
    """Draw the confusion matrix of the packages, as shares of the snippets of each package."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # only the picture needs it

    logits = prediction(model)(state, held_out["tokens"])
    counts = metrics.confusion_matrix(logits, held_out["label"]).value
    shares = counts / counts.sum(1, keepdim=True)
    figure = Figure((6, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    places = range(len(PACKAGES))
    axes.set_xticks(places, PACKAGES, rotation=45, ha="right")
    axes.set_yticks(places, PACKAGES)
    axes.set_xlabel("predicted")
    axes.set_ylabel("snippet of")
    for i in places:
        for j in places:
            share = float(shares[i, j])
            colour = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(out, dpi=120)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=8)
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--no-compile", action="store_true", help="eager mode: no C++ compiler, slower steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/text_classification-by-hand"))
    options = parser.parse_args(argv)

    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "metrics.jsonl"
    log.unlink(missing_ok=True)
    result = train(options.out, options.epochs, options.seed, compiled=not options.no_compile)
    assert result.eval is not None
    accuracy, f1 = result.eval.metrics["accuracy"], result.eval.metrics["f1"]
    path = options.out / "confusion.png"
    picture(result.state, snippets().held_out, path)
    plots.curves(log, options.out / "curves.png", metrics=["loss", "accuracy"])
    print(f"{accuracy:.1%} of the held-out snippets right, F1 {f1:.3f}\npicture: {path}")
    return accuracy


if __name__ == "__main__":
    main()
