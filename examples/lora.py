"""Adapt one character GPT to three kinds of text at once, with low-rank adapters, in three minutes.

    python -m examples.lora            # from the root of the repository

First the GPT of `char_gpt.py` is trained on Python's standard library, for a quarter of its usual steps.
Its weights are then frozen, and three adapters are trained on them: on English (the docstrings of the
library's packages), on tables (the package `encodings`), and on the package `asyncio`. The three runs
are one step, mapped over adapters and batches; they share one copy of the frozen weights. Nothing is
compiled unless asked for: a compilation takes as long as these few steps.

One sees a table: the held-out loss of the base and of each adapter on each text, in nats for each
character. An adapter has 8 % of the model's numbers. The picture has the curves. The adapters are
stored in the file format of peft.

Read next: `fine_tune.py`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from examples import char_gpt
from ftrain import data, optim, tasks, tree

CONTEXT = 64


def texts(alphabet: str) -> dict[str, data.Text]:
    """Return three texts over an alphabet, without the characters that it lacks."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    packages = (
        "asyncio",
        "concurrent",
        "email",
        "html",
        "http",
        "json",
        "logging",
        "unittest",
        "xml",
    )
    files = [path for name in packages for path in sorted((library / name).rglob("*.py"))]
    found = {
        "English": "\n\n".join(docstring for path in files for docstring in docstrings(path)),
        "tables": "".join(map(read, sorted((library / "encodings").glob("cp*.py")))),
        "asyncio": "".join(map(read, sorted((library / "asyncio").glob("*.py")))),
    }
    known = set(alphabet)
    return {
        name: data.Text.of("".join(filter(known.__contains__, content)), alphabet)
        for name, content in found.items()
    }


def read(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def docstrings(path: pathlib.Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found = ast.get_docstring(node)
            if found is not None and "\n" in found:
                yield found


def adapt(
    base: nn.Module,
    training: dict[str, data.Text],
    *,
    steps: int,
    rank: int = 8,
    batch_size: int = 12,
    context: int = CONTEXT,
    compiled: bool = False,
) -> tuple[tasks.LoraModel, dict[str, ftrain.TrainState], torch.Tensor]:
    """Return the adapted model, the state of each text, and the losses, `(steps, texts)`."""
    model = tasks.lora(base, ["attention", "mlp"], rank=rank, alpha=4 * rank)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adam(optim.warmup_cosine(3e-3, steps // 20, steps))
    )
    init_state, train_step, _ = ftrain.make_steps(model, char_gpt.loss_fn, optimizer)

    # All tensors of the states get an axis for the texts, except for the frozen weights.
    rows = [init_state(seed) for seed in range(len(training))]
    stacked = tree.map(lambda *x: torch.stack(x), *[row.replace(buffers={}) for row in rows])
    state = stacked.replace(buffers=rows[0].buffers)
    axes = tree.map(lambda _: 0, stacked).replace(buffers=dict.fromkeys(state.buffers))
    step = torch.vmap(train_step, in_dims=(axes, 0), out_dims=(axes, 0))
    if compiled:
        step = ftrain.compile(step, donate=True)

    loaders = [
        data.Loader(text.windows(context + 1), batch_size, seed=0).batches(epochs=None)
        for text in training.values()
    ]
    losses = []
    for batches, _ in zip(zip(*loaders, strict=True), tqdm(range(steps), "adapting"), strict=False):
        state, metrics = step(state, torch.stack([windows for windows, _ in batches]))
        losses.append(metrics["loss"])
    single = {
        name: tree.map(lambda x, i=i: x[i].clone(), state.replace(buffers={})).replace(
            buffers=state.buffers
        )
        for i, name in enumerate(training)
    }
    return model, single, torch.stack(losses)


@torch.no_grad()
def held_out_loss(module: nn.Module, text: data.Text, context: int = CONTEXT) -> float:
    """Return the mean loss of an ordinary module on the first 300 windows of a text."""
    windows = text.windows(context + 1, stride=context)
    batch = windows.gather(torch.arange(min(300, len(windows))))
    loss = char_gpt.loss_fn(module, batch)
    return float(loss.total / loss.weight)


def draw(
    losses: torch.Tensor, before: dict[str, float], after: dict[str, float], out: pathlib.Path
) -> None:
    """Draw each text's loss while its adapter is trained, and the held-out loss before and after."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    width = max(1, len(losses) // 20)
    smooth = losses.unfold(0, width, 1).mean(-1)
    for i, name in enumerate(before):
        (line,) = axes.plot(range(width, len(losses) + 1), smooth[:, i], label=name)
        for value, style in ((before[name], ":"), (after[name], "--")):
            axes.axhline(value, color=line.get_color(), linestyle=style, linewidth=1)
    axes.set(xlabel="step", ylabel="loss in nats for each character", ylim=(0, None))
    axes.set_title("Three adapters on one frozen GPT (held out: dotted before, dashed after)")
    axes.legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--base-steps", type=int, default=500, help="updates of the base model")
    add("--steps", type=int, default=300, help="updates of the adapters")
    add("--rank", type=int, default=8, help="of the adapters")
    add("--compile", action="store_true", help="compile both steps, for runs of more steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/lora"))
    options = parser.parse_args(argv)
    # Torch maps attention row by row in eager mode, and says so at each kind of call.
    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
    compiled = options.compile

    library = data.standard_library()
    gpt = functools.partial(char_gpt.GPT, library.vocabulary)
    state, _ = char_gpt.train(gpt, library, steps=options.base_steps, compiled=compiled)
    base = ftrain.export(state, gpt)

    parts = {name: text.split(0.2) for name, text in texts(library.alphabet or "").items()}
    training = {name: part[0] for name, part in parts.items()}
    model, states, losses = adapt(
        base, training, steps=options.steps, rank=options.rank, compiled=compiled
    )
    modules = {
        "base": base,
        **{name: ftrain.export(state, model) for name, state in states.items()},
    }
    table = {
        row: {name: held_out_loss(module, part[1]) for name, part in parts.items()}
        for row, module in modules.items()
    }

    trained = sum(p.numel() for p in states["tables"].params.values())
    whole = sum(p.numel() for p in base.parameters())
    print(f"each adapter: {trained:,} numbers, {trained / whole:.1%} of the model's {whole:,}")
    print("held-out loss   " + "".join(f"{name:>10}" for name in parts))
    for row, values in table.items():
        print(f"{row:16}" + "".join(f"{value:10.3f}" for value in values.values()))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, adapted in states.items():
        tasks.write_lora(options.out / name, adapted, model)
    picture = options.out / "losses.png"
    draw(losses, table["base"], {name: table[name][name] for name in parts}, picture)
    print(f"adapters: {options.out}\nlosses: {picture}")
    return table


if __name__ == "__main__":
    main()
