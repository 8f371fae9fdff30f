"""A small GPT learns to write, character by character: the main job, a few minutes on two cores.

    python examples/char_gpt.py                    # the sources of Python's standard library
    python examples/char_gpt.py --text FILE        # a text of one's own, in UTF-8

One sees a bar with the loss in nats for each character (it starts near log(96) = 4.6: the default text
has 96 different ones), then the loss on the held-out last tenth of the text, some lines that the model
wrote by itself, and the path of a picture of the curves, `runs/char_gpt/curves.png`. After 2,000 steps
the lines have the looks of Python and no sense: 0.8 million weights, 64 characters at a time.

The defaults are nanoGPT's for a CPU: 4 layers of 4 heads, width 128, context 64, batches of 12, neither
dropout nor biases, AdamW from 1e-3 down to 1e-4, decay 0.1 on matrices, gradients clipped at 1.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sysconfig
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

import ftrain
from ftrain import optim, random

EVAL_EVERY, EVAL_BATCH, SHOW_EVERY = 500, 128, 20


def train(options: argparse.Namespace, text: Text) -> Run:
    """The run: the state at its end, and what was seen on the way."""
    model = ftrain.bind(lambda: GPT(len(text.alphabet), options))
    schedule = optim.warmup_cosine(1e-3, min(100, options.steps // 10), options.steps, end=1e-4)
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(schedule, b2=0.99, weight_decay=0.1)
    )
    init_state, train_step, eval_step = ftrain.make_steps(
        model, loss_fn, optimizer, precision=options.precision, accumulate=options.accumulate
    )
    if not options.no_compile:
        train_step = ftrain.compile(train_step, donate=True)
        eval_step = ftrain.compile(eval_step)

    state = init_state(options.seed)
    data_key = random.fold_in(random.key(options.seed), 2)  # 0 and 1 are the state's own
    losses, held_out = [], []
    name = "training" if options.no_compile else "compiling"
    bar = tqdm(total=options.steps, desc=name, mininterval=0.5)
    for step in range(options.steps):
        if step % EVAL_EVERY == 0:
            held_out.append((step, evaluate(eval_step, state, text)))
        batch = text.windows(random.fold_in(data_key, step), options.batch)
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
        if step == 0:
            bar.unpause()  # the time to compile says nothing about the steps to come
        bar.update()
        if step % SHOW_EVERY == 0:
            bar.set_description("training")
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, held out {held_out[-1][1]:.3f}")
    bar.close()
    held_out.append((options.steps, evaluate(eval_step, state, text)))
    return Run(model, state, torch.stack(losses), held_out)


def loss_fn(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Each character of a window (but the first) from those before it, in nats."""
    logits, targets = model(windows[:, :-1]), windows[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def evaluate(
    eval_step: Callable[..., ftrain.Metrics], state: ftrain.TrainState, text: Text
) -> float:
    """The mean loss over the held-out text."""
    parts = [eval_step(state, windows) for windows in text.held_out_windows()]
    return float(functools.reduce(ftrain.Metrics.merge, parts)["loss"])


def write(run: Run, text: Text, key: torch.Tensor, length: int, temperature: float = 0.8) -> str:
    """What the model writes after the first characters of the held-out text.

    The next character is drawn as argmax(logits / temperature + Gumbel noise), one key for each. A
    character takes 5 ms in eager mode: not worth a compile.
    """

    def one(window: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, _ = run.model(
            run.state.params, run.state.buffers, key, window[None], training=False
        )
        uniform = random.uniform(key, logits.shape[-1:])
        character = (logits[0, -1] / temperature - torch.log(-torch.log(uniform))).argmax()
        return torch.cat([window[1:], character[None]]), character

    _, written = ftrain.scan(one, text.held_out[: text.context], random.split(key, length))
    return text.decode(written)


class Run(NamedTuple):
    """A finished run.

    Attributes:
        model: the model, as a function of its tensors.
        state: the state at the end.
        losses: float32, `(steps,)`; the training loss of each step.
        held_out: `(step, loss)` of each evaluation.
    """

    model: Any
    state: ftrain.TrainState
    losses: torch.Tensor
    held_out: list[tuple[int, float]]


# The model: GPT-2's layers without biases, as in nanoGPT.


class GPT(nn.Module):
    """A decoder of `options.layers` blocks; the first and the last matrix are one."""

    def __init__(self, characters: int, options: argparse.Namespace) -> None:
        super().__init__()
        width = options.width
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(options.context, width)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.Sequential(*(Block(options) for _ in range(options.layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, characters, bias=False)
        self.head.weight = self.characters.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Each block adds twice to the residual stream: keep its variance at the start.
                shrink = math.sqrt(2 * options.layers) if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        x = self.characters(characters) + self.positions.weight[: characters.shape[1]]
        logits: torch.Tensor = self.head(self.norm(self.blocks(self.dropout(x))))
        return logits


def gpt(
    characters: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    context: int = 64,
    dropout: float = 0.0,
) -> GPT:
    """The model from plain numbers, as a configuration names them: `char_gpt.py:gpt`."""
    options = {"layers": layers, "heads": heads, "width": width}
    return GPT(characters, argparse.Namespace(**options, context=context, dropout=dropout))


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised input and added to what came in."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        width = options.width
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(options)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.heads, self.p = options.heads, options.dropout
        self.qkv = nn.Linear(options.width, 3 * options.width, bias=False)
        self.out = nn.Linear(options.width, options.width, bias=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        mixed: torch.Tensor = self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return mixed


class MLP(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.up = nn.Linear(options.width, 4 * options.width, bias=False)
        self.out = nn.Linear(4 * options.width, options.width, bias=False)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.dropout(self.out(F.gelu(self.up(x))))
        return y


# The text.


class Text(NamedTuple):
    """A text as numbers; the last tenth is held out.

    Attributes:
        alphabet: its characters, sorted; a character's number is its place here.
        training: int64, 1-d.
        held_out: int64, 1-d.
        context: how many characters the model sees at a time.
    """

    alphabet: str
    training: torch.Tensor
    held_out: torch.Tensor
    context: int

    @classmethod
    def of(cls, text: str, context: int) -> Text:
        points = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
        alphabet, numbers = torch.unique(points, return_inverse=True)
        cut = int(0.9 * len(numbers))
        return cls("".join(map(chr, alphabet.tolist())), numbers[:cut], numbers[cut:], context)

    def windows(self, key: torch.Tensor, n: int) -> torch.Tensor:
        """Pieces of the training text from random places, int64 `(n, context + 1)`."""
        starts = random.randint(key, (n, 1), 0, len(self.training) - self.context)
        return self.training[starts + torch.arange(self.context + 1)]

    def held_out_windows(self) -> list[torch.Tensor]:
        """The held-out text, each character predicted once, in batches of one shape.

        What is left at the end, less than one batch, is not used: it would need a program of its own.
        """
        windows = self.held_out.unfold(0, self.context + 1, self.context)
        batch = min(EVAL_BATCH, len(windows))
        whole = windows[: len(windows) // batch * batch]
        return list(whole.reshape(-1, batch, self.context + 1))

    def decode(self, numbers: torch.Tensor) -> str:
        """The characters with these numbers."""
        return "".join(self.alphabet[i] for i in numbers.tolist())


def standard_library(characters: int = 1_000_000) -> str:
    """The beginning of Python's own sources, its modules in the order of their names."""
    modules = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if not modules:
        raise SystemExit("this Python comes without its sources. Name a text: --text FILE")
    return "".join(module.read_text(encoding="utf-8") for module in modules)[:characters]


def read(path: pathlib.Path) -> str:
    """The text in a file, or one sentence that says what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SystemExit(f"there is no file {path}. Name one that exists: --text FILE") from None
    except UnicodeDecodeError as error:
        raise SystemExit(
            f"{path} is no text in UTF-8 (byte {error.start} does not fit). Convert it first, for "
            f"instance: iconv --from-code latin1 --to-code utf-8 {path} > text.txt"
        ) from None
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}") from None


def checked(text: str, name: str, context: int) -> str:
    """The text, if there is enough of it."""
    if not text.strip():
        raise SystemExit(f"{name} is empty. Name a file with some text in it: --text FILE")
    needed = 10 * (context + 1)  # the held-out tenth must fill a window
    if len(text) < needed:
        raise SystemExit(
            f"{name} has {len(text):,} characters, and --context {context} needs at least {needed:,}. "
            f"Name a longer text, or see less of it at a time: --context {max(1, len(text) // 20)}"
        )
    return text


# The rest.


def plot(run: Run, path: pathlib.Path) -> None:
    """The loss against steps, as a PNG."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.plot(run.losses, linewidth=0.6, alpha=0.6, label="training, each batch")
    axis.plot(*zip(*run.held_out, strict=True), "o-", label="held out")
    axis.set(
        xlabel="step", ylabel="loss, nats for each character", title="A small GPT on characters"
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--text", type=pathlib.Path, help="a file in UTF-8; without, Python's standard library")
    add("--steps", type=count(2), default=2000, help="updates")
    add("--seed", type=int, default=0, help="of weights, batches, dropout and the sample")
    add("--layers", type=count(1), default=4, help="blocks")
    add("--heads", type=count(1), default=4, help="of each attention")
    add("--width", type=count(1), default=128, help="of the residual stream")
    add("--context", type=count(1), default=64, help="characters seen at a time")
    add("--batch", type=count(1), default=12, help="windows for each update")
    add("--dropout", type=float, default=0.0, help="probability, from 0 to below 1")
    add(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed", "bf16-true"), default="32-true"
    )
    add("--accumulate", type=count(1), default=1, help="micro-batches that a batch is cut into")
    add("--sample", type=count(0), default=500, help="characters to write at the end")
    add("--no-compile", action="store_true", help="eager mode: no wait, slower steps")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/char_gpt"), help="output folder")
    options = parser.parse_args(argv)
    if options.width % options.heads:
        parser.error(f"--width {options.width} cannot be shared by --heads {options.heads} equally")
    if options.batch % options.accumulate:
        parser.error(
            f"--batch {options.batch} cannot be cut into --accumulate {options.accumulate}"
        )
    if not 0 <= options.dropout < 1:
        parser.error(f"--dropout {options.dropout} is no probability from 0 to below 1")
    return options


def count(least: int) -> Callable[[str], int]:
    """An argument that is a whole number of at least this."""

    def parse(argument: str) -> int:
        if not argument.isdecimal() or int(argument) < least:
            raise argparse.ArgumentTypeError(f"{argument} is no whole number from {least} up")
        return int(argument)

    return parse


def compiler_found() -> bool:
    """Whether machine code can be made here; says so where it cannot."""
    try:
        ftrain.compile(torch.neg)(torch.zeros(1))
    except ftrain.errors.CompilerMissingError:
        print("No C++ compiler (g++ or clang++) was found, so this run does without: eager mode.")
        return False
    return True


def main(argv: list[str] | None = None) -> Run:
    options = arguments(argv)
    source = str(options.text) if options.text else "Python's standard library"
    content = read(options.text) if options.text else standard_library()
    text = Text.of(checked(content, source, options.context), options.context)
    print(f"{source}: {len(content):,} characters, {len(text.alphabet)} different ones")

    start = time.perf_counter()
    options.no_compile = options.no_compile or not compiler_found()
    run = train(options, text)
    seconds = time.perf_counter() - start

    if options.sample:
        given = text.decode(text.held_out[: options.context])
        written = write(run, text, random.fold_in(random.key(options.seed), 3), options.sample)
        print(f"\nGiven {given!r}, it writes:\n\n{written}\n")
    picture = options.out / "curves.png"
    plot(run, picture)
    print(f"held-out loss {run.held_out[-1][1]:.3f} after {options.steps} steps, {seconds:.0f} s")
    print(f"curves: {picture}")
    return run


if __name__ == "__main__":
    main()
