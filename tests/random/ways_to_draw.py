"""Ways in which code draws random numbers, as functions from a shape to a tensor."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Way = Callable[[tuple[int, ...]], Tensor]

CAPTURED = torch.Tensor.normal_
ORIGINALS = {"normal_": nn.init.normal_, "uniform_": nn.init.uniform_}
NUMPY, PYTHON, TORCH = np.random.default_rng(0), random.Random(0), torch.Generator()


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.dropout(x, 0.5, True) + torch.rand_like(x)


def patched_init(shape: tuple[int, ...]) -> Tensor:
    """Draw with torch.nn.init functions replaced and looked up in a dict, as in `transformers`."""

    def normal_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return ORIGINALS["normal_"](tensor, *args, **kwargs)

    before, nn.init.normal_ = nn.init.normal_, normal_
    try:
        return nn.init.normal_(torch.empty(shape))
    finally:
        nn.init.normal_ = before


class Noisy(torch.Tensor):
    """Tensor subclass whose product draws random numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Noisy:
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg.inner if isinstance(arg, Noisy) else arg for arg in args]
        if func is torch.ops.aten.mul.Tensor:
            return plain[0] * plain[1] + torch.rand_like(plain[0])
        return func(*plain, **(kwargs or {}))


class InForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def hooked(shape: tuple[int, ...]) -> Tensor:
    net = nn.Identity()
    net.register_forward_hook(lambda module, args, output: output + torch.rand(shape))
    return net(torch.zeros(shape))


def forked(shape: tuple[int, ...]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.rand(shape)


#: Drawn from the key, wherever they stand.
KEYED: dict[str, Way] = {
    "torch.rand": torch.rand,
    "Tensor.normal_": lambda shape: torch.empty(shape).normal_(),
    "nn.init": lambda shape: nn.init.uniform_(torch.empty(shape)),
    "captured before": lambda shape: CAPTURED(torch.empty(shape)),
    "partial": lambda shape: functools.partial(F.dropout, p=0.5)(torch.ones(shape)),
    "map": lambda shape: next(iter(map(torch.rand, [shape]))),
    "aten packet": lambda shape: torch.ops.aten.rand_like(torch.ones(shape)),
    "aten overload": lambda shape: torch.ops.aten.bernoulli.p(torch.ones(shape), 0.5),
    "patched init": patched_init,
    "jit": lambda shape: scripted(torch.ones(shape)),
    "subclass": lambda shape: Noisy(torch.ones(shape)) * torch.ones(shape),
    "autograd function": lambda shape: InForward.apply(torch.zeros(shape)),
    "hook": hooked,
    "fork_rng": forked,
    "complex": lambda shape: torch.randn(shape, dtype=torch.complex64).abs(),
    "svd_lowrank": lambda shape: torch.svd_lowrank(torch.eye(3), q=2)[0][0, 0].expand(shape),
}


def in_a_thread(shape: tuple[int, ...]) -> Tensor:
    drawn: list[Tensor] = []
    thread = threading.Thread(target=lambda: drawn.append(torch.rand(shape)))
    thread.start()
    thread.join()
    return drawn[0]


def seeded_first(shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(torch.initial_seed() + 1)
    return torch.rand(shape)


def filled_by_numpy(shape: tuple[int, ...]) -> Tensor:
    memory = torch.empty(shape)
    memory.numpy()[:] = np.random.rand(*shape)
    return memory


@torch.library.custom_op("ftrain_tests::noise", mutates_args=())
def custom(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


custom.register_fake(lambda x: torch.empty_like(x))

#: From a generator that no key reaches: refused in a step, seeded from the key while a model is built.
UNKEYED: dict[str, Way] = {
    "thread": in_a_thread,
    "manual_seed": seeded_first,
    "numpy": lambda shape: torch.from_numpy(np.random.rand(*shape)).float(),
    "numpy, one normal draw": lambda shape: torch.full(shape, float(np.random.randn())),
    "numpy, in place": filled_by_numpy,
    "random": lambda shape: torch.full(shape, random.random()),
    "random.gauss": lambda shape: torch.full(shape, random.gauss(0, 1)),
}

#: Refused everywhere.
REFUSED: dict[str, Way] = {
    "custom operator": lambda shape: custom(torch.ones(shape)),
    "numpy Generator": lambda shape: torch.full(shape, float(NUMPY.random())),
    "random.Random": lambda shape: torch.full(shape, PYTHON.random()),
    "torch.Generator": lambda shape: torch.rand(shape, generator=TORCH),
}
