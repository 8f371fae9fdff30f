"""Fine-tune a Hugging Face language model, built from its configuration, in two minutes on two cores.

    pip install '.[examples,transformers]'
    python examples/fine_tune.py

A small Llama is built from a `LlamaConfig`, nothing is downloaded. It first learns to predict the next
character of Python's standard library. Then it is fine-tuned on 20,000 characters of English, the
docstrings of a few packages: once with all weights, once with low-rank adapters on the first model,
whose weights stay as they are. A third run, from random weights, shows what the first part was good for.

One sees the loss of each on English that it never saw, in nats for each character, and a picture of the
three curves. The best model is stored by its own `save_pretrained`, and read again.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import sysconfig
from typing import Any

import matplotlib.pyplot as plt
import torch
import transformers
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from ftrain import data, optim, tasks

PACKAGES = ("asyncio", "concurrent", "email", "http", "json", "logging", "unittest", "xml")
CONTEXT = 64

Curve = list[tuple[int, float]]  # step, held-out loss


def english(alphabet: str) -> data.Text:
    """Return the docstrings of some packages, without characters that the alphabet lacks."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    found = []
    for path in (path for name in PACKAGES for path in sorted((library / name).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                found.append(ast.get_docstring(node) or "")
    content = "\n\n".join(filter(None, found))
    return data.Text.of("".join(filter(set(alphabet).__contains__, content)), alphabet)


def config(vocabulary: int) -> transformers.LlamaConfig:
    """Return the configuration of a Llama with 0.16 million weights."""
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )


def loss_fn(model: nn.Module, windows: torch.Tensor) -> Any:
    """Return the loss of predicting each character from those before it."""
    return tasks.causal_lm(model, {"input_ids": windows, "labels": windows})


def train(
    name: str,
    model: Any,
    text: data.Text,
    held_out: torch.Tensor,
    *,
    steps: int,
    rate: float,
    evaluations: int = 10,
) -> tuple[ftrain.TrainState, Curve]:
    """Return the final state of a model, and its held-out loss along the way."""
    optimizer = optim.adamw(optim.warmup_cosine(rate, steps // 10, steps), weight_decay=0.1)
    init_state, train_step, eval_step = ftrain.make_steps(model, loss_fn, optimizer)
    state = init_state(seed=0)
    curve = [(0, float(eval_step(state, held_out)["loss"]))]
    batches = data.Loader(text.windows(CONTEXT), 16, seed=0).batches(epochs=None)
    for step, (windows, _) in zip(tqdm(range(1, steps + 1), name), batches, strict=False):
        state, _ = train_step(state, windows)
        if step % max(1, steps // evaluations) == 0:
            curve.append((step, float(eval_step(state, held_out)["loss"])))
    return state, curve


def draw(curves: dict[str, Curve], out: pathlib.Path) -> None:
    """Draw the held-out loss of each run."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="loss on unseen English, nats for each character")
    axes.legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--pretraining", type=int, default=400, help="updates on the standard library")
    add("--steps", type=int, default=100, help="updates on English")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/fine_tune"))
    options = parser.parse_args(argv)

    library = data.standard_library()
    little = english(library.alphabet or "").split(0.2)
    few = data.Text(little[0].tokens[:20_000], library.alphabet)
    held_out = little[1].windows(CONTEXT, stride=CONTEXT).gather(torch.arange(200))

    torch.manual_seed(0)  # transformers draws the weights that a module starts with
    fresh = transformers.LlamaForCausalLM(config(library.vocabulary))
    state, _ = train(
        "Python", fresh, library, held_out, steps=options.pretraining, rate=3e-3, evaluations=1
    )
    pretrained = ftrain.export(state, fresh)

    targets = ["self_attn", "mlp"]
    runs: dict[str, tuple[Any, float]] = {
        "random start": (fresh, 3e-3),
        "all weights": (pretrained, 1e-3),
        "adapters": (tasks.lora(pretrained, targets, rank=8, alpha=32), 3e-3),
    }
    states, curves = {}, {}
    for name, (model, rate) in runs.items():
        states[name], curves[name] = train(
            name, model, few, held_out, steps=options.steps, rate=rate
        )
    losses = {name: curve[-1][1] for name, curve in curves.items()}
    for name, loss in losses.items():
        numbers = sum(p.numel() for p in states[name].params.values())
        print(f"{name:14} {curves[name][0][1]:.3f} to {loss:.3f} with {numbers:,} trained numbers")

    options.out.mkdir(parents=True, exist_ok=True)
    folder, picture = options.out / "model", options.out / "losses.png"
    best = min(losses, key=lambda name: losses[name])
    module: Any = ftrain.export(states[best], runs[best][0])
    module.save_pretrained(folder)
    again = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        print(f"read again: {float(again(input_ids=held_out, labels=held_out).loss):.3f}")
    draw(curves, picture)
    print(f"model: {folder}\nlosses: {picture}")
    return losses


if __name__ == "__main__":
    main()
