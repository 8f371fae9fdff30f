"""Random functions covered by `keyed`, as functions of parameters and one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ftrain.core.random import key, keyed

KEY = key(7)
X = torch.linspace(-2, 2, 4 * 6 * 8).reshape(4, 6, 8)


def draw(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function under `KEY`."""
    with keyed(KEY):
        return call(*args, **kwargs)


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[dict[str, Tensor], Tensor], Any]
    params: dict[str, Tensor]
    exact: bool = True  # the arithmetic around the draws has the same bits under every transform


def _function(name: str, run: Callable[[Tensor], Any]) -> Case:
    return Case(name, lambda _, x: run(x), {})


def _module(name: str, module: nn.Module, call: Callable[..., Any], **facts: bool) -> Case:
    module.train()
    params = {k: v.detach() for k, v in module.named_parameters()}
    return Case(
        name,
        lambda p, x: call(lambda *a, **kw: functional_call(module, p, a, kw), x),
        params,
        **facts,
    )


def _memory(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


FUNCTIONS = {
    "F.dropout": lambda x: F.dropout(x, 0.3),
    "F.dropout inplace": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "F.dropout1d": lambda x: F.dropout1d(x, 0.3),
    "F.dropout2d": lambda x: F.dropout2d(x[None], 0.3),
    "F.dropout2d inplace": lambda x: F.dropout2d(x[None] * 1, 0.3, inplace=True),
    "F.dropout3d": lambda x: F.dropout3d(x[None, None], 0.3),
    "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "F.feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "torch.native_dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "F.rrelu": lambda x: F.rrelu(x, training=True),
    "F.rrelu inplace": lambda x: F.rrelu(x * 1, training=True, inplace=True),
    "F.gumbel_softmax": F.gumbel_softmax,
    "F.gumbel_softmax hard": lambda x: F.gumbel_softmax(x, hard=True),
    "F.fractional_max_pool2d": lambda x: F.fractional_max_pool2d(
        x.reshape(1, 1, 12, 16), 2, output_size=(4, 5)
    ),
    "F.scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(
        x, x, x, dropout_p=0.3, is_causal=True
    ),
    "torch.rand": lambda x: x + torch.rand(6, 8),
    "torch.rand float64": lambda x: torch.rand((3, 2), dtype=torch.float64),
    "torch.randn": lambda x: x + torch.randn((6, 8)),
    "torch.randint": lambda x: torch.randint(10, (5,)),
    "torch.randint low": lambda x: torch.randint(-3, high=2, size=(5, 2), dtype=torch.int32),
    "torch.randperm": lambda x: torch.randperm(13),
    "torch.rand_like": torch.rand_like,
    "torch.randn_like": lambda x: torch.randn_like(x, dtype=torch.bfloat16),
    "torch.randint_like": lambda x: torch.randint_like(x, 2, 9),
    "torch.bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "torch.bernoulli p": lambda x: torch.bernoulli(x, 0.3),
    "torch.multinomial": lambda x: torch.multinomial(x[0].exp(), 3),
    "torch.multinomial replacement": lambda x: torch.multinomial(x[0, 0].exp(), 20, True),
    "torch._standard_gamma": lambda x: torch._standard_gamma(x.exp()),
    "torch._sample_dirichlet": lambda x: torch._sample_dirichlet(x.exp().double()),
    "torch.poisson": lambda x: torch.poisson(9 * x.exp()),
    "torch.binomial": lambda x: torch.binomial(torch.full_like(x, 40), x.detach().sigmoid()),
    "torch.normal": lambda x: torch.normal(x, 0.5),
    "torch.normal tensors": lambda x: torch.normal(x, x.exp()),
    "torch.normal size": lambda x: torch.normal(1.0, 2.0, (3, 4)),
    "Tensor.uniform_": lambda x: _memory(x).uniform_(-1, 3),
    "Tensor.normal_": lambda x: _memory(x).normal_(1, 3),
    "Tensor.normal_ bfloat16": lambda x: _memory(x, torch.bfloat16).normal_(),
    "Tensor.bernoulli_": lambda x: _memory(x).bernoulli_(0.3),
    "Tensor.bernoulli_ tensor": lambda x: _memory(x).bernoulli_(x.sigmoid()),
    "Tensor.random_": lambda x: _memory(x, torch.int32).random_(),
    "Tensor.random_ bounds": lambda x: _memory(x).random_(3, 9),
    "Tensor.exponential_": lambda x: _memory(x).exponential_(2),
    "Tensor.geometric_": lambda x: _memory(x).geometric_(0.3),
    "Tensor.log_normal_": lambda x: _memory(x).log_normal_(),
    "Tensor.cauchy_": lambda x: _memory(x).cauchy_(),
    "init.uniform_": lambda x: nn.init.uniform_(_memory(x), -1, 1),
    "init.normal_": lambda x: nn.init.normal_(_memory(x)),
    "init.xavier_uniform_": lambda x: nn.init.xavier_uniform_(_memory(x)),
    "init.xavier_normal_": lambda x: nn.init.xavier_normal_(_memory(x)),
    "init.kaiming_uniform_": lambda x: nn.init.kaiming_uniform_(_memory(x)),
    "init.kaiming_normal_": lambda x: nn.init.kaiming_normal_(_memory(x)),
    "init.sparse_": lambda x: nn.init.sparse_(_memory(x[0]), 0.3),
    "distributions.Normal": lambda x: torch.distributions.Normal(x, x.exp(), False).rsample(),
    "distributions.Exponential": lambda x: torch.distributions.Exponential(
        x.exp(), False
    ).rsample(),
    "distributions.Laplace": lambda x: torch.distributions.Laplace(x, 1.0, False).rsample(),
    "distributions.Gumbel": lambda x: torch.distributions.Gumbel(x, x.exp(), False).rsample(),
    "nn.Linear": lambda x: list(nn.Linear(4, 3).parameters()),
    "nn.LSTM weights": lambda x: list(nn.LSTM(4, 3).parameters()),
    "nn.Conv2d": lambda x: list(nn.Conv2d(2, 3, 2).parameters()),
    "nn.Embedding": lambda x: nn.Embedding(4, 3, padding_idx=1).weight,
    "nn.TransformerEncoderLayer weights": lambda x: list(
        nn.TransformerEncoderLayer(4, 2, 8).parameters()
    ),
}

_ATTENTION = {"embed_dim": 8, "num_heads": 2, "dropout": 0.3, "batch_first": True}

# A fixed seed for the parameters, so that what the tests compare is the same on every run.
torch.manual_seed(0)
MODULES = [
    _module("nn.Dropout", nn.Dropout(0.3), lambda f, x: f(x)),
    _module("nn.Dropout2d", nn.Dropout2d(0.3), lambda f, x: f(x[None])),
    _module("nn.AlphaDropout", nn.AlphaDropout(0.3), lambda f, x: f(x)),
    _module("nn.MultiheadAttention", nn.MultiheadAttention(**_ATTENTION), lambda f, x: f(x, x, x)),
    _module(
        "nn.MultiheadAttention fused",
        nn.MultiheadAttention(**_ATTENTION),
        lambda f, x: f(x, x, x, need_weights=False)[0],
        exact=False,
    ),
    _module(
        "nn.TransformerEncoderLayer",
        nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True),
        lambda f, x: f(x),
        exact=False,
    ),
    _module(
        "nn.TransformerDecoderLayer",
        nn.TransformerDecoderLayer(8, 2, 16, 0.3, batch_first=True),
        lambda f, x: f(x, x),
        exact=False,
    ),
    _module(
        "nn.LSTM", nn.LSTM(8, 5, 3, dropout=0.3, batch_first=True), lambda f, x: f(x),
    ),
    _module(
        "nn.GRU", nn.GRU(8, 5, 2, dropout=0.3, bidirectional=True), lambda f, x: f(x),
        exact=False,
    ),
    _module("nn.RNN", nn.RNN(8, 5, 2, dropout=0.3), lambda f, x: f(x), exact=False),
]  # fmt: skip

CASES = [*(_function(name, run) for name, run in FUNCTIONS.items()), *MODULES]
