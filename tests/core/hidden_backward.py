"""Models with hidden state that a backward pass changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn


class WritesBackward(nn.Linear):
    """Layer whose output depends on the number of backward passes through it."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.held: dict[str, Any] = {"n": [0]}
        self.n = 0
        self.build()

    def build(self) -> None:
        """Create the hidden state that counts backward passes."""

    def count(self) -> float:
        """Increment the hidden count of backward passes and return it."""
        self.n += 1
        self.held["n"][0] += 1
        self.held.setdefault("new", []).append(self.n)
        return self.n + self.held["n"][0] + len(self.held["new"])

    def counted(self) -> Any:
        """Return the hidden state in which backward passes count."""
        return self.n, repr(self.held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.through(super().forward(x)) * (1 + self.n)

    def through(self, y: torch.Tensor) -> torch.Tensor:
        """Return `y` with a gradient computation that counts."""
        return y


class BackwardTensorHook(WritesBackward):
    def through(self, y):
        if y.requires_grad:
            y.register_hook(lambda grad: grad * self.count())
        return y


class BackwardFunction(WritesBackward):
    def through(self, y):
        return _Counts.apply(y, self.count)


class _Counts(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y, count):
        return y.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.count = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.count(), None


class BackwardFunctionClass(WritesBackward):
    """Layer that counts in the class of an autograd function and in variables that it captures."""

    def build(self):
        held = [0]

        class Counts(torch.autograd.Function):
            generate_vmap_rule = True
            calls = 0

            @staticmethod
            def forward(y):
                return y.clone()

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, grad):
                Counts.calls += 1
                held[0] += 1
                return grad * (Counts.calls + held[0])

        self.function = Counts
        self.closure = held

    def counted(self):
        return self.function.calls, list(self.closure)

    def through(self, y):
        return self.function.apply(y)


class BackwardModuleHook(WritesBackward):
    """Layer that counts in a child's hook, which writes to the child and to a captured list."""

    def build(self):
        self.child = nn.Identity()
        self.child.n = 0
        self.seen: list[int] = []
        seen = self.seen

        def hook(module, grads, _):
            module.n += 1
            seen.append(1)
            return (grads[0] * (module.n + len(seen)),)

        self.child.register_full_backward_hook(hook)

    def counted(self):
        return self.child.n, list(self.seen)

    def through(self, y):
        return self.child(y)


class BackwardParameterHook(WritesBackward):
    """Layer that counts in a hook of its weight."""

    def build(self):
        n = 0
        self.seen: list[int] = []
        seen = self.seen

        def hook(grad):
            nonlocal n
            n += 1
            seen.append(1)
            return grad * (n + len(seen))

        self.weight.register_hook(hook)

    def counted(self):
        return list(self.seen)


BACKWARD = [
    BackwardTensorHook, BackwardFunction, BackwardFunctionClass, BackwardModuleHook,
    BackwardParameterHook,
]  # fmt: skip


class BackwardTensor(WritesBackward):
    """Layer that counts in a tensor that is not registered."""

    def build(self):
        self.box = SimpleNamespace(tally=torch.zeros(()))

    def through(self, y):
        if y.requires_grad:
            y.register_hook(lambda grad: grad * self.box.tally.add_(1))
        return y


class BackwardParameterTensor(WritesBackward):
    """Layer that counts in a tensor captured by a hook of its weight."""

    def build(self):
        tally = torch.zeros(())
        self.weight.register_hook(lambda grad: grad * tally.add_(1))


class BackwardGenerator(WritesBackward):
    def build(self):
        tally = np.random.default_rng(0)
        self.weight.register_hook(lambda grad: grad * tally.random())


BACKWARD_REFUSED = [BackwardTensor, BackwardParameterTensor, BackwardGenerator]
