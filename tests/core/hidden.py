"""Models that keep state outside of their parameters and buffers."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn


class Hides(nn.Linear):
    """Layer whose output depends on the number of its calls."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.build()

    def build(self) -> None:
        """Create the hidden state that counts calls."""

    def count(self) -> Any:
        """Increment the hidden count of calls and return it."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 + self.count())


class NestedList(Hides):
    def build(self):
        self.stats = {"n": [0]}

    def count(self):
        self.stats["n"][0] += 1
        return self.stats["n"][0]


class Namespace(Hides):
    def build(self):
        self.cfg = SimpleNamespace(step=0, inner=SimpleNamespace(deep=[0]))

    def count(self):
        self.cfg.step += 1
        self.cfg.inner.deep.append(1)
        return self.cfg.step + len(self.cfg.inner.deep)


class Deque(Hides):
    def build(self):
        self.recent = collections.deque([1], maxlen=3)

    def count(self):
        self.recent.append(len(self.recent))
        return sum(self.recent)


class NestedTensors(Hides):
    def build(self):
        self.memory = {"levels": [[torch.ones(())], []]}

    def count(self):
        self.memory["levels"][0].append(self.memory["levels"][0][-1] + 1)
        self.memory["levels"][1] = [self.memory["levels"][0][0]]
        return self.memory["levels"][0][-1]


class ClassAttribute(Hides):
    calls = 0
    seen: list[int] = []  # noqa: RUF012  shared on purpose

    def count(self):
        type(self).calls += 1
        self.seen.append(self.calls)
        return self.calls + len(self.seen)


class NewClassAttribute(Hides):
    def count(self):
        cls = type(self)
        cls.fresh = getattr(cls, "fresh", 0) + 1
        return cls.fresh


@dataclasses.dataclass
class Record:
    n: int = 0
    children: list[Any] = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("later", "n")

    def __init__(self) -> None:
        self.n = 0


class Objects(Hides):
    def build(self):
        self.record = Record(children=[Record()])
        self.slotted = Slotted()

    def count(self):
        self.record.children[0].n += 1
        self.slotted.n += 1
        self.slotted.later = getattr(self.slotted, "later", 0) + 1
        return self.record.children[0].n + self.slotted.n + self.slotted.later


class Ordered(Hides):
    def build(self):
        self.order = collections.OrderedDict(a=1, b=10)

    def count(self):
        self.order.move_to_end(next(iter(self.order)))
        return next(iter(self.order.values()))


class Renamed(Hides):
    """Model that renames an attribute and keeps the number and values of its attributes."""

    def build(self):
        self.fresh = True

    def count(self):
        if "fresh" in self.__dict__:
            del self.fresh
            self.used = True
            return 0
        return 1


class Kinds(Hides):
    """Model that replaces values by equal ones of another type or sign."""

    def build(self):
        self.flag, self.zero = 1, 0.0

    def count(self):
        seen = f"{self.flag}{self.zero}"
        self.flag, self.zero = True, -0.0
        return len(seen)


class Sets(Hides):
    def build(self):
        self.seen = {1, 2}

    def count(self):
        self.seen.add(max(self.seen) + 1)
        return len(self.seen)


class Counters(Hides):
    def build(self):
        self.counter, self.default = collections.Counter(a=1), collections.defaultdict(int, b=2)

    def count(self):
        self.counter["a"] += 1
        self.default["c"] += 1
        return self.counter["a"] + self.default["c"]


class ContainerAttributes(Hides):
    """Model that counts in attributes of containers, which instances of subclasses have."""

    def build(self):
        kinds = [type(kind.__name__.title(), (kind,), {}) for kind in (list, dict, set, tuple)]
        self.containers = [kind() for kind in kinds]
        for each in self.containers:
            each.n = 0

    def count(self):
        for each in self.containers:
            each.n += 1
        return sum(each.n for each in self.containers)


class Arrays(Hides):
    def build(self):
        self.seen, self.raw = np.zeros((2, 2)), bytearray(2)

    def count(self):
        self.seen[0, 0] += 1
        self.raw[0] += 1
        return float(self.seen.sum()) + self.raw[0]


class Closure(Hides):
    def build(self):
        n = 0
        held = [0]

        def counts() -> int:
            nonlocal n
            n += 1
            held[0] += 1
            return n + held[0]

        self.counts = counts

    def count(self):
        return self.counts()


class Defaults(Hides):
    def count(self, memo=[0]):  # noqa: B006  shared on purpose
        memo[0] += 1
        return memo[0]


class Partial(Hides):
    def build(self):
        def add(held: list[int]) -> int:
            held[0] += 1
            return held[0]

        self.add = functools.partial(add, [0])

    def count(self):
        return self.add()


class Rebinds(Hides):
    """Model that replaces a container by an equal one and then writes to that."""

    def build(self):
        self.held: list[int] = []

    def count(self):
        self.held = list(self.held)
        self.held.append(1)
        return len(self.held)


class Child(Hides):
    """Model with a module in a plain list, which is not registered."""

    def build(self):
        self.others = [nn.Identity()]
        self.others[0].n = 0

    def count(self):
        self.others[0].n += 1
        return self.others[0].n


class ForwardHooks(Hides):
    """Model that registers a hook in each forward pass, as `transformers` does in the first."""

    def build(self):
        self.inner = nn.Identity()
        self.hooked = 0

    def count(self):
        out: list[int] = []
        self.inner.register_forward_hook(lambda *_: out.append(1))
        self.inner.register_forward_pre_hook(lambda *_: out.append(1), with_kwargs=True)
        self.inner.register_forward_hook(lambda *_: out.append(1), always_call=True)
        self.inner.register_full_backward_hook(lambda *_: None)
        self.inner.register_state_dict_pre_hook(lambda *_: None)
        self.hooked += 1
        hooks = (
            self.inner._forward_hooks, self.inner._forward_pre_hooks, self.inner._backward_hooks,
            self.inner._forward_hooks_always_called, self.inner._forward_pre_hooks_with_kwargs,
            self.inner._state_dict_pre_hooks,
        )  # fmt: skip
        self.inner(torch.zeros(()))
        return sum(map(len, hooks)) + len(out) + self.hooked


class Swaps(Hides):
    """Model that replaces a submodule in its forward pass."""

    def build(self):
        self.inner = nn.Identity()
        self.inner.n = 0

    def count(self):
        n = self.inner.n + 1
        self.inner = nn.Identity()
        self.inner.n = n
        return n


class Trains(Hides):
    """Model that switches the training mode of its submodule."""

    def build(self):
        self.inner = nn.Identity()

    def count(self):
        was = self.inner.training
        self.inner.train(not was)
        return int(was)


class Caches(Hides):
    """Model that caches a table at the first call, as rotary embeddings do."""

    def build(self):
        self.table = None
        self.tables: dict[int, Any] = {}

    def count(self):
        if self.table is None:
            self.table = torch.arange(3.0)
        if 3 not in self.tables:
            self.tables[3] = torch.ones(3)
        return (self.table * self.tables[3]).sum()


RESTORED = [
    NestedList, Namespace, Deque, NestedTensors, ClassAttribute, NewClassAttribute, Objects, Ordered,
    Renamed, Kinds, Sets, Counters, Arrays, Closure, Defaults, Partial, Rebinds, Child, ForwardHooks,
    Swaps, Trains, Caches, ContainerAttributes,
]  # fmt: skip


class OwnNumPy(Hides):
    """Model that draws from its own NumPy generator."""

    def build(self):
        self.generator = np.random.default_rng(0)

    def count(self):
        return float(self.generator.random())


class OwnPython(Hides):
    def build(self):
        import random

        self.generator = random.Random(0)

    def count(self):
        return self.generator.random()


class Iterates(Hides):
    def build(self):
        self.generator = itertools.count()

    def count(self):
        return next(self.generator)


class IteratesList(Hides):
    def build(self):
        self.generator = iter([1.0, 2.0, 3.0, 4.0])

    def count(self):
        return next(self.generator)


class UnregisteredTensor(Hides):
    def build(self):
        self.box = SimpleNamespace(generator=[torch.zeros(())])

    def count(self):
        self.box.generator[0].add_(1)
        return self.box.generator[0]


REFUSED = [OwnNumPy, OwnPython, Iterates, IteratesList, UnregisteredTensor]
