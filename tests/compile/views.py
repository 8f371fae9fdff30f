"""Random chains of views, empty tensors, expands and transposes around matrix products."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

Change = Callable[[torch.Tensor, random.Random], torch.Tensor]


def transposed(x, r):
    return x.transpose(r.randrange(x.ndim), r.randrange(x.ndim))


def permuted(x, r):
    return x.permute(r.sample(range(x.ndim), x.ndim))


def expanded(x, r):
    d = r.randrange(x.ndim + 1)
    return x.unsqueeze(d).expand(*x.shape[:d], 2, *x.shape[d:]) if x.ndim < 5 else x


def merged(x, r):
    d = r.randrange(max(x.ndim - 1, 1))
    return x.flatten(d, d + 1) if x.ndim > 1 else x


def split(x, r):
    d = r.randrange(x.ndim)
    return x.unflatten(d, (2, -1)) if x.shape[d] and x.shape[d] % 2 == 0 and x.ndim < 5 else x


def with_an_empty_list(x, r):
    """Concatenate with torch's legacy empty tensor of shape (0,), as for an empty cache."""
    parts = [torch.tensor([]), x]
    r.shuffle(parts)
    return torch.cat(parts, r.randrange(-x.ndim, x.ndim))


def with_an_empty_part(x, r):
    d = r.randrange(x.ndim)
    parts = [x.narrow(d, 0, 0), x]
    r.shuffle(parts)
    return torch.cat(parts, d)


def doubled(x, r):
    return torch.cat([x, x * 0.5], r.randrange(x.ndim)) if x.numel() < 400 else x


def shortened(x, r):
    d = r.randrange(x.ndim)
    return x.narrow(d, 0, max(1, x.shape[d] - 1)) if x.shape[d] else x


def every_other(x, r):
    return x[(slice(None),) * r.randrange(x.ndim) + (slice(None, None, 2),)]


def stacked(x, r):
    return torch.stack([x, -x], r.randrange(x.ndim + 1)) if x.ndim < 5 and x.numel() < 400 else x


def channels_last(x, r):
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def reversed_shape(x, r):
    return x.reshape(-1).view(x.shape[::-1])


def windows(x, r):
    d = r.randrange(x.ndim)
    return x.unfold(d, 2, 1) if x.shape[d] > 2 and x.ndim < 5 else x


VIEWS: list[Change] = [
    transposed, permuted, expanded, merged, split, with_an_empty_list, with_an_empty_list,
    with_an_empty_part, doubled, shortened, every_other, stacked, channels_last, reversed_shape,
    windows, lambda x, r: x.flip(r.randrange(x.ndim)), lambda x, r: F.pad(x, (1, 0)),
    lambda x, r: x * x.sigmoid(), lambda x, r: x.chunk(2, r.randrange(x.ndim))[0],
    lambda x, r: x.roll(1, r.randrange(x.ndim)), lambda x, r: x.softmax(-1),
    lambda x, r: torch.diagonal(x, dim1=0, dim2=1) if x.ndim > 2 else x,
]  # fmt: skip


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.linspace(-0.5, 0.5, rows * columns).view(rows, columns)


def _batched(x, r):
    y = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x.view(1, 1, -1)
    return torch.bmm(y.transpose(1, 2), y)


PRODUCTS: list[Change] = [
    lambda x, r: x @ x.transpose(-1, -2) if x.ndim > 1 else x @ x,
    lambda x, r: x @ _weight(x.shape[-1], 3),
    lambda x, r: x @ _weight(3, x.shape[-1]).t(),
    lambda x, r: x @ _weight(x.shape[-1], 1)[:, 0],
    lambda x, r: F.linear(x, _weight(4, x.shape[-1]), torch.ones(4)),
    lambda x, r: torch.einsum("...i,...j->...ij", x, x),
    lambda x, r: F.scaled_dot_product_attention(x, x, x) if x.ndim > 2 and x.numel() else x * 2,
    _batched,
]


def chain(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a product of repeated views of `x`, or a second product of views of that."""
    r = random.Random(seed)
    for _ in range(r.randint(1, 5)):
        x = r.choice(VIEWS)(x, r)
    x = r.choice(PRODUCTS)(x, r)
    for _ in range(r.randint(0, 2) if x.ndim else 0):
        x = r.choice(VIEWS)(x, r)
    return r.choice(PRODUCTS)(x, r) if x.ndim and r.random() < 0.4 else x


def chains(x: torch.Tensor, first: int, n: int) -> list[int]:
    """Return the first n seeds from `first` whose chains are defined and small."""
    found: list[int] = []
    while len(found) < n:
        try:
            small = chain(x, first).numel() < 4000
        except (RuntimeError, IndexError):  # shapes that do not fit, an axis that is not there
            small = False
        found += [first] if small else []
        first += 1
    return found
