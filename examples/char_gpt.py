"""Train a small character-level GPT, in a few minutes on two cores.

    python examples/char_gpt.py                    # the sources of Python's standard library
    python examples/char_gpt.py --text FILE        # a text of one's own, in UTF-8
    ftrain train examples/configs/char_gpt.yaml    # the same run, to the bit, from a configuration

One sees a bar with the loss in nats for each character (it starts near log(96) = 4.6: the default text
has 96 different ones), then some lines that the model wrote by itself, the loss on the held-out last
tenth of the text, and the path of a picture of the curves. After 2,000 steps the lines have the looks of
Python and no sense: 0.8 million weights, 64 characters at a time.

The settings are nanoGPT's for a CPU: 4 layers of 4 heads, width 128, context 64, batches of 12, neither
dropout nor biases, AdamW from 1e-3 down to 1e-4, decay 0.1 on matrices, gradients clipped at 1.

The model is in `ftrain/tasks/models/gpt.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from ftrain import data, optim, random
from ftrain.loop import plots
from ftrain.loop.callbacks import TextSamples
from ftrain.tasks.models import GPT


def train(
    model: Callable[[], nn.Module],
    text: data.Text,
    *,
    steps: int = 2000,
    seed: int = 0,
    batch_size: int = 12,
    context: int = 64,
    compiled: bool = True,
) -> tuple[ftrain.TrainState, list[dict[str, Any]]]:
    """Train; return the final state, and one row of metrics per step and per evaluation."""
    training, held_out = text.split(0.1)
    loader = data.Loader(training.windows(context + 1), batch_size, seed=seed)
    # 142 windows divide the default text's 1,562: one shape, one compiled program.
    held_out_loader = data.Loader(held_out.windows(context + 1, stride=context), 142, shuffle=False)

    schedule = optim.warmup_cosine(1e-3, steps // 20, steps, end=1e-4)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, b2=0.99, weight_decay=0.1)
    )
    init_state, train_step, eval_step = ftrain.make_steps(model, loss_fn, optimizer)
    if compiled:
        train_step, eval_step = ftrain.compile(train_step, donate=True), ftrain.compile(eval_step)

    state, losses, held = init_state(seed), [], []
    bar = tqdm(range(1, steps + 1), "training")
    for step, (batch, _) in zip(bar, loader.batches(epochs=None), strict=False):
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
        if step % 20 == 0:  # only now is a number waited for
            bar.set_postfix_str(f"loss {losses[-1]:.3f}")
        if step % 500 == 0 or step == steps:
            parts = [eval_step(state, windows) for windows in held_out_loader]
            held.append((step, functools.reduce(ftrain.Metrics.merge, parts)["loss"]))

    rows = [("train", *row) for row in enumerate(losses, 1)] + [("eval", *row) for row in held]
    return state, [{"split": name, "step": at, "loss": float(loss)} for name, at, loss in rows]


def loss_fn(model: nn.Module, windows: torch.Tensor) -> ftrain.Mean:
    """Return the mean cross-entropy of the next characters in a batch of windows, in nats."""
    logits, targets = model(windows[:, :-1]), windows[:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return ftrain.Mean(total, torch.tensor(targets.numel()))


def write(
    model: Callable[[], nn.Module],
    state: ftrain.TrainState,
    beginning: torch.Tensor,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 0.8,
) -> torch.Tensor:
    """Sample the model's continuation of a text, and return it as tokens, int64 `(length,)`.

    The next character is drawn as argmax(logits / temperature + Gumbel noise), one key for each. A
    character takes 5 ms in eager mode: not worth a compile.
    """
    apply = ftrain.bind(model)

    def one(window: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, _ = apply(state.params, state.buffers, key, window[None], training=False)
        uniform = random.uniform(key, logits.shape[-1:])
        character = (logits[0, -1] / temperature - torch.log(-torch.log(uniform))).argmax()
        return torch.cat([window[1:], character[None]]), character

    _, written = ftrain.scan(one, beginning, random.split(random.key(seed), length))
    return written


def samples(folder: str, alphabet: str, heads: int = 4, length: int = 300) -> TextSamples:
    """Return a callback, for use in configurations, that writes a text sample at each evaluation."""
    text = data.Text(torch.zeros(0), alphabet)

    def written(state: ftrain.TrainState) -> str:
        context, width = state.params["positions.weight"].shape
        layers = sum(name.endswith("qkv.weight") for name in state.params)
        model = functools.partial(GPT, len(alphabet), context, layers, heads, width)
        return text.decode(write(model, state, torch.zeros(context, dtype=torch.int64), length))

    return TextSamples(written, folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--text", type=pathlib.Path, help="a file in UTF-8; without, Python's standard library")
    add("--steps", type=int, default=2000, help="updates")
    add("--seed", type=int, default=0, help="of weights, batches and the lines that are written")
    add("--no-compile", action="store_true", help="eager mode: no C++ compiler, slower steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/char_gpt-by-hand"))
    options = parser.parse_args(argv)

    text = data.text(options.text) if options.text else data.standard_library()
    print(f"{len(text):,} characters, {text.vocabulary} different ones")
    model = functools.partial(GPT, text.vocabulary)
    compiled = not options.no_compile
    state, rows = train(model, text, steps=options.steps, seed=options.seed, compiled=compiled)

    beginning = text.split(0.1)[1].tokens[:64].long()
    written = write(model, state, beginning, 500, seed=options.seed)
    print(f"\nGiven {text.decode(beginning)!r}, it writes:\n\n{text.decode(written)}\n")

    options.out.mkdir(parents=True, exist_ok=True)
    log, picture = options.out / "metrics.jsonl", options.out / "curves.png"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))  # what `ftrain plot` reads too
    plots.curves(log, picture, smooth=0.9)
    print(f"held-out loss {rows[-1]['loss']:.3f} after {options.steps} steps\ncurves: {picture}")


if __name__ == "__main__":
    main()
