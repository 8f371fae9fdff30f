"""Programs that the benchmarks compare: hand-written loops and ftrain's step, for two models.

Every contender is a function without arguments that runs one training step on the next batch and keeps
its own model or state. The hand-written loops have the best settings that are known to us, and those
that a reader is most likely to try: see `HAND_FORWARD` and `HAND_UPDATE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim

Batch = dict[str, torch.Tensor]
Step = Callable[
    [], torch.Tensor
]  # returns the loss as a tensor, so that nothing waits for its value

RATE, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.99), 1e-8, 0.1, 1.0


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        x = x + self.dropout1(self.out(y.transpose(1, 2).reshape(b, t, c)))
        out: torch.Tensor = x + self.dropout2(self.down(F.gelu(self.up(self.norm2(x)))))
        return out


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a GPT; the defaults are nanoGPT's for a CPU, 0.8 M parameters."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    batch: int = 12
    vocabulary: int = 65
    dropout: float = 0.0
    attention_dropout: float = 0.0


class GPT(nn.Module):
    """A small language model without biases; embedding and output weights are tied."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(
            Block(sizes.width, sizes.heads, sizes.dropout, sizes.attention_dropout)
            for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(sizes.width, bias=False)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.dropout(self.tokens(x) + self.positions.weight[: x.shape[1]])
        for block in self.blocks:
            h = block(h)
        logits: torch.Tensor = self.head(self.norm(h))
        return logits


class MLP(nn.Module):
    """Stack of square linear layers with ReLU between them."""

    def __init__(self, width: int, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def token_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]).flatten(0, 1), batch["y"].flatten())


def square_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


@dataclasses.dataclass(frozen=True)
class Task:
    """Model, loss, batches and optimizer settings of a benchmark.

    Attributes:
        clip: True if gradients are clipped by their norm.
        mask: the parameters to which weight decay applies, in the hand-written loops as well.
        rate: the learning rate.
        decay: the weight decay, times the rate at each step.
        max_norm: the norm to which gradients are clipped.
    """

    model: Callable[[], nn.Module]
    loss_fn: Callable[[Any, Batch], torch.Tensor]
    batches: Sequence[Batch]
    clip: bool = True
    mask: Any = optim.everything
    rate: float = RATE
    decay: float = DECAY
    max_norm: float = CLIP


def gpt_task(sizes: Sizes | None = None) -> Task:
    sizes = sizes or Sizes()
    g = torch.Generator().manual_seed(0)
    shape = (sizes.batch, sizes.context)

    def tokens() -> torch.Tensor:
        return torch.randint(0, sizes.vocabulary, shape, generator=g)

    batches = [{"x": tokens(), "y": tokens()} for _ in range(8)]
    return Task(lambda: GPT(sizes), token_loss, batches, mask=optim.matrices)


def mlp_task(width: int = 16, batch: int = 8, clip: bool = True) -> Task:
    g = torch.Generator().manual_seed(0)

    def rows() -> torch.Tensor:
        return torch.randn(batch, width, generator=g)

    batches = [{"x": rows(), "y": rows()} for _ in range(8)]
    return Task(lambda: MLP(width), square_loss, batches, clip=clip)


HandForward = Literal["eager", "compiled model", "compiled loss", "compiled autograd"]
Precision = Literal["32-true", "bf16-mixed"]
HandUpdate = Literal["fused", "foreach", "single", "compiled fused", "compiled single"]


def hand_written(
    task: Task,
    forward: HandForward,
    update: HandUpdate,
    *,
    seed: int = 0,
    backend: str | None = "inductor",
    clear_after: bool = False,
    accumulate: int = 1,
    precision: Precision = "32-true",
) -> Step:
    """Return a hand-written step: `zero_grad(set_to_none=True)`, loss, backward, clip, AdamW.

    Args:
        forward: "compiled model" is `torch.compile(model)` with the loss outside, "compiled loss" is
            `torch.compile` of the loss and the model in it; the backward pass is compiled with both.
            "compiled autograd" compiles the loss, and the backward pass by compiled autograd.
        update: AdamW as one C++ kernel, as `torch._foreach_*` operators or parameter by parameter,
            with `clip_grad_norm_` likewise (foreach with "fused"); "compiled ..." is `torch.compile`
            of the clipping and `optimizer.step` together, in place. (A compiled foreach AdamW does not
            trace on a CPU in torch 2.13: "Expected scalars to be on CPU".)
        seed: the seed of the initial weights, which are those of `ours` with the same seed.
        backend: the backend of `torch.compile`; `None`: nothing is compiled.
        clear_after: free the gradients after the update, instead of before the next backward pass.
        accumulate: the number of micro-batches into which each batch is split.
        precision: "bf16-mixed" runs the loss under autocast.
    """
    model = initial_model(task, seed)
    optimizer = torch_adamw(task, model, update)
    clip_foreach = update != "single"
    parameters = list(model.parameters())
    batches = itertools.cycle([split(batch, accumulate) for batch in task.batches])
    called: Any = model
    if forward == "compiled model":
        called = compiled(model, backend)
    loss_of = loss_under(task, called, precision)
    if forward in ("compiled loss", "compiled autograd"):
        loss_of = compiled(loss_of, backend)
    backward = contextlib.nullcontext
    if forward == "compiled autograd" and backend is not None:
        compiler = torch.compile(fullgraph=True, dynamic=False, backend=backend)
        backward = functools.partial(torch._dynamo.compiled_autograd._enable, compiler)

    def apply() -> None:
        if task.clip:
            nn.utils.clip_grad_norm_(parameters, task.max_norm, foreach=clip_foreach)
        optimizer.step()

    if update.startswith("compiled"):
        apply = compiled(apply, backend, fullgraph=False)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        total: Any = 0.0
        for batch in next(batches):
            loss = loss_of(batch)
            if accumulate > 1:
                loss = loss / accumulate
            with backward():
                loss.backward()
            total = loss.detach() if accumulate == 1 else total + loss.detach()
        apply()
        if clear_after:
            optimizer.zero_grad(set_to_none=True)
        return total  # type: ignore[no-any-return]

    return step


def initial_model(task: Task, seed: int = 0) -> nn.Module:
    """Return a new module with the weights that `ours` starts from."""
    model = task.model()
    state = steps(task).init_state(seed)
    # Not strict, because a tied weight has only one name in ftrain's state.
    model.load_state_dict(state.params, strict=False)
    return model


def split(batch: Batch, k: int) -> list[Batch]:
    """Split a batch into `k` micro-batches along the first axis."""
    parts = {name: tensor.chunk(k) for name, tensor in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(k)]


def loss_under(
    task: Task, model: Any, precision: Precision = "32-true"
) -> Callable[[Batch], torch.Tensor]:
    """Return the loss of a model on a batch, under autocast if the precision is mixed."""
    if precision == "32-true":
        return lambda batch: task.loss_fn(model, batch)

    def loss_of(batch: Batch) -> torch.Tensor:
        with torch.autocast(batch["x"].device.type, torch.bfloat16):
            return task.loss_fn(model, batch)

    return loss_of


def compiled(fn: Any, backend: str | None, fullgraph: bool = True) -> Any:
    """Return a function or module under `torch.compile`, or unchanged if `backend` is `None`."""
    if backend is None:
        return fn
    return torch.compile(fn, fullgraph=fullgraph, dynamic=False, backend=backend)


def torch_adamw(
    task: Task, model: nn.Module, update: HandUpdate = "fused"
) -> torch.optim.Optimizer:
    trainable = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": trainable, "weight_decay": task.decay}]
    if task.mask is optim.matrices:
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": task.decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
    kind = update.rpartition(" ")[2]
    return torch.optim.AdamW(
        groups, lr=task.rate, betas=BETAS, eps=EPS, fused=kind == "fused", foreach=kind == "foreach"
    )


def optimizer_of(task: Task) -> optim.GradientTransformation:
    adamw = optim.adamw(task.rate, *BETAS, EPS, weight_decay=task.decay, mask=task.mask)
    return optim.chain(optim.clip_by_global_norm(task.max_norm), adamw) if task.clip else adamw


def steps(task: Task, **options: Any) -> ftrain.Steps:
    return ftrain.make_steps(task.model, task.loss_fn, optimizer_of(task), **options)


def ours(
    task: Task,
    *,
    compiled: bool = True,
    donate: bool = True,
    seed: int = 0,
    backend: Literal["inductor", "eager"] = "inductor",
    mode: str | None = None,
    cpp_wrapper: bool = False,
    **options: Any,
) -> Step:
    """Return ftrain's step as a user writes it: `step = ftrain.compile(train_step, donate=True)`."""
    init_state, train_step, _ = steps(task, **options)
    state = init_state(seed)
    step: Any = (
        ftrain.compile(
            train_step, donate=donate, backend=backend, mode=mode, cpp_wrapper=cpp_wrapper
        )
        if compiled
        else train_step
    )
    batches = itertools.cycle(task.batches)

    def one() -> torch.Tensor:
        nonlocal state
        state, metrics = step(state, next(batches))
        loss: torch.Tensor = metrics["loss"]
        return loss

    return one


def losses(step: Step, n: int) -> Iterator[float]:
    for _ in range(n):
        yield step().item()
