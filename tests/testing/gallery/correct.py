"""Steps of `make_steps` without a mistake: every check must pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftrain
from ftrain import optim
from tests.testing.gallery.entries import Case, correct
from tests.testing.gallery.parts import batches, mlp, ragged, seeded

# Laws of every step. Those of accumulation and gradients need a loss without draws and kinks.
ALL = (
    "pure",
    "deterministic",
    "fixpoint",
    "keyed",
    "skip",
    "resume",
    "donation",
    "evaluation",
    "compiled",
    "exception_safety",
)


def classification(model: Any, batch: Any) -> Any:
    logits = model(batch["x"])
    accuracy = (logits.argmax(-1) == batch["y"]).float().mean()
    return F.cross_entropy(logits, batch["y"]), {"accuracy": accuracy}


def token_loss(model: Any, batch: Any) -> ftrain.Mean:
    losses = F.cross_entropy(
        model(batch["x"]).flatten(0, 1), batch["y"].flatten(), reduction="none"
    )
    mask = batch["mask"].flatten()
    return ftrain.Mean((losses * mask).sum(), mask.sum())


@correct(*ALL, "vmap", "gradients", "all")
def sgd_on_a_small_network() -> Case:
    return Case(ftrain.make_steps(mlp, classification, optim.sgd(0.1, momentum=0.9)), batches())


@correct(*ALL)
def adamw_with_dropout_schedule_and_clipping() -> Case:
    optimizer = optim.chain(
        optim.clip_by_global_norm(1.0), optim.adamw(optim.warmup_cosine(1e-2, 2, 20))
    )

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 3))

    return Case(ftrain.make_steps(model, classification, optimizer), batches())


@correct(*ALL, "accumulation", "gradients")
def ragged_tokens_weighted_by_their_number() -> Case:
    return Case(ftrain.make_steps(mlp, token_loss, optim.sgd(0.1)), ragged())


@correct(*ALL)
def accumulated_micro_batches() -> Case:
    return Case(ftrain.make_steps(mlp, token_loss, optim.sgd(0.1), accumulate=4), ragged())


@correct(*ALL)
def batch_norm_in_a_convolutional_network() -> Case:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip

    return Case(ftrain.make_steps(model, classification, optim.sgd(0.1)), batches())


@correct(*ALL)
def loss_scaling_in_half_precision() -> Case:
    steps = ftrain.make_steps(mlp, classification, optim.sgd(0.1), precision="16-mixed")
    return Case(steps, batches())


@correct(*ALL)
def autocast_in_bfloat16() -> Case:
    steps = ftrain.make_steps(mlp, classification, optim.adam(1e-2), precision="bf16-mixed")
    return Case(steps, batches())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(x)))


@correct(*ALL)
def tied_embeddings() -> Case:
    given = seeded(lambda: [{"x": torch.randint(0, 11, (6, 5))} for _ in range(3)])

    def loss_fn(model: Any, batch: Any) -> Tensor:
        logits = model(batch["x"][:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch["x"][:, 1:].flatten())

    return Case(ftrain.make_steps(Tied, loss_fn, optim.adam(1e-2)), given)


@correct("pure", "deterministic", "keyed", "resume", "compiled")
def transformer_layer_with_attention_dropout() -> Case:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x))

    return Case(ftrain.make_steps(Encoder, token_loss, optim.adamw(1e-2)), ragged(2))


@correct("pure", "deterministic", "fixpoint", "keyed", "resume", "compiled")
def recurrent_network() -> Case:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    return Case(ftrain.make_steps(Recurrent, token_loss, optim.sgd(0.1)), ragged(2))


@correct(*ALL)
def frozen_encoder() -> Case:
    def model() -> nn.Module:
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        network[0].requires_grad_(False)
        return network

    return Case(ftrain.make_steps(model, classification, optim.sgd(0.1)), batches())


@correct(*ALL)
def torch_optimizer_through_the_bridge() -> Case:
    optimizer = optim.from_torch(torch.optim.RMSprop, lr=1e-2)
    return Case(ftrain.make_steps(mlp, classification, optimizer), batches())


@correct(*ALL)
def noise_from_a_key_of_the_loss() -> Case:
    def loss_fn(model: Any, batch: Any, key: Tensor) -> Tensor:
        first, second = ftrain.random.split(key).unbind()
        weight = ftrain.random.uniform(first, ())
        noisy = batch["x"] + 0.1 * ftrain.random.normal(second, batch["x"].shape)
        mixed = weight * noisy + (1 - weight) * noisy.flip(0)
        logits = model(mixed)
        ahead, behind = (
            F.cross_entropy(logits, batch["y"]),
            F.cross_entropy(logits, batch["y"].flip(0)),
        )
        return weight * ahead + (1 - weight) * behind

    steps = ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1), eval_fn=classification)
    return Case(steps, batches())


@correct(*ALL)
def draws_of_torch_inside_the_loss() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        codes = F.gumbel_softmax(model(batch["x"] + 0.1 * torch.randn_like(batch["x"])), tau=0.5)
        return -(codes * F.one_hot(batch["y"], 3)).sum(-1).mean()

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1), eval_fn=classification), batches())


@correct("pure", "deterministic", "fixpoint", "keyed", "resume", "compiled", "gradients")
def penalty_on_the_gradient_of_the_input() -> Case:
    def loss_fn(model: Any, batch: Any) -> Tensor:
        slope = torch.func.grad(lambda x: model(x).square().sum())(batch["x"])
        return F.cross_entropy(model(batch["x"]), batch["y"]) + 0.1 * slope.square().mean()

    return Case(ftrain.make_steps(mlp, loss_fn, optim.sgd(0.1)), batches())


@correct(*ALL)
def teacher_that_the_loss_captures() -> Case:
    teacher = mlp().eval().requires_grad_(False)

    def loss_fn(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            target = teacher(batch["x"]).softmax(-1)
        return F.kl_div(model(batch["x"]).log_softmax(-1), target, reduction="batchmean")

    def student() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    return Case(ftrain.make_steps(student, loss_fn, optim.sgd(0.1)), batches())
