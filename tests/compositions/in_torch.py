"""Evaluate programs in torch and ftrain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim
from tests.compositions.in_duals import CONSTANTS, MATRIX, RATE

__all__ = ["Torch"]

CAPTURED = torch.from_numpy(CONSTANTS)
FOLLOWED = [row.clone().requires_grad_() for row in CAPTURED]
WEIGHT = torch.from_numpy(MATRIX)
KEY = ftrain.random.key(0)


@torch.library.custom_op("ftrain_compositions::sin2", mutates_args=())
def sin2(x: Tensor) -> Tensor:
    return torch.sin(2 * x)


@torch.library.custom_op("ftrain_compositions::cos2", mutates_args=())
def cos2(x: Tensor) -> Tensor:
    return torch.cos(2 * x)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


for operator, slope in ((sin2, lambda x: 2 * cos2(x)), (cos2, lambda x: -2 * sin2(x))):
    operator.register_fake(torch.empty_like)
    operator.register_vmap(lambda info, dims, x, operator=operator: (operator(x), dims[0]))
    operator.register_autograd(
        lambda ctx, grad, slope=slope: grad * slope(*ctx.saved_tensors), setup_context=_keep
    )


class Turned(torch.autograd.Function):
    """Custom autograd function x · sin(y)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return grad * y.sin(), grad * x * y.cos()

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dy: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        return dx * y.sin() + dy * x * y.cos()


class _Applied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2).double()

    def forward(self, x: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        return fn(self.inner(x))


def _loss(model: Any, x: Tensor) -> Tensor:
    return (model(x).tanh() ** 2).sum()


APPLY = ftrain.bind(_Applied)
STEPS = ftrain.make_steps(lambda: nn.Linear(2, 2).double(), _loss, optim.sgd(RATE))
STATE = STEPS.init_state(0)


class Torch:
    """`Library` of torch and ftrain functions."""

    sin, tanh, exp = staticmethod(torch.sin), staticmethod(torch.tanh), staticmethod(torch.exp)
    detach = staticmethod(torch.Tensor.detach)

    def constant(self, k: int, followed: bool) -> Tensor:
        return FOLLOWED[k] if followed else CAPTURED[k]

    def matrix(self, x: Tensor) -> Tensor:
        return WEIGHT @ x

    def flip(self, x: Tensor) -> Tensor:
        return x.flip(0)

    def total(self, x: Tensor) -> Tensor:
        return x.sum()

    def custom(self, x: Tensor) -> Tensor:
        return sin2(x)

    def function(self, x: Tensor, y: Tensor) -> Tensor:
        return Turned.apply(x, y)

    def no_grad(self, fn: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return fn() * 1.0

    def gradient(self, how: str, fn: Callable[..., Any], x: Any, has_aux: bool) -> Any:
        if how == "func":
            grads, out = torch.func.grad_and_value(fn, has_aux=has_aux)(x)
        elif how == "vjp":
            value, pull, *aux = torch.func.vjp(fn, x, has_aux=has_aux)
            (grads,), out = pull(torch.ones_like(value)), (value, *aux) if has_aux else value
        elif how == "autograd":
            out, grads = self._autograd(fn, x, has_aux)
        else:
            keep = how == "differentiable"
            out, grads = ftrain.value_and_grad(fn, has_aux=has_aux, differentiable=keep)(x)
        value, aux = out if has_aux else (out, None)
        return value, aux, grads

    def _autograd(self, fn: Callable[..., Any], x: Any, has_aux: bool) -> Any:
        """Return the gradient by plain autograd."""
        with torch.enable_grad():
            leaves, treedef = ftrain.tree.flatten(x)
            leaves = [
                leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_()
                for leaf in leaves
            ]
            out = fn(ftrain.tree.unflatten(treedef, leaves))
            value = out[0] if has_aux else out
            found = torch.autograd.grad(
                value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return out, ftrain.tree.unflatten(treedef, found)

    def jvp(self, fn: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Any:
        return torch.func.jvp(fn, (x,), (tangent,))

    def vmap(self, fn: Callable[[Tensor], Tensor], rows: Sequence[Tensor], dim: int) -> Tensor:
        """Map each result, since torch puts an unmapped result at dimension 0 only."""
        mapped = torch.vmap(lambda x: fn(x) + 0.0 * x, dim, dim)
        return mapped(torch.stack([*rows], dim)).mean(dim)

    def scan(self, fn: Callable[..., Tensor], start: Tensor, xs: Sequence[Tensor] | int) -> Tensor:
        """Scan with a number and a flag beside the vectors."""
        n = xs if isinstance(xs, int) else len(xs)

        def body(carry: Any, x: Any) -> Any:
            even = x["even"] if x else carry["number"] % 2 == 0
            new = fn(carry["c"], *(x["x"] if x else ()))
            after = {"c": new + 0.1 * carry["number"].double(), "number": carry["number"] + 1}
            return after, (torch.where(even, new, carry["c"]), even)

        carry = {"c": start, "number": torch.zeros((), dtype=torch.int64)}
        if isinstance(xs, int):
            last, (ys, _) = ftrain.scan(body, carry, length=n)
        else:
            rows = {"x": (torch.stack([*xs]),), "even": torch.arange(n) % 2 == 0}
            last, (ys, _) = ftrain.scan(body, carry, rows)
        return last["c"] + 0.5 * ys.sum(0)

    def loop(self, fn: Callable[[Tensor], Tensor], start: Tensor, n: int) -> Tensor:
        for _ in range(n):
            start = fn(start)
        return start

    def cond(
        self, x: Tensor, sides: Sequence[Callable[..., Tensor]], operands: Sequence[Tensor]
    ) -> Tensor:
        return ftrain.cond(x.sum() > 0.1, sides[1], sides[0], *operands)

    def switch(
        self, x: Tensor, sides: Sequence[Callable[..., Tensor]], operands: Sequence[Tensor]
    ) -> Tensor:
        return ftrain.switch((x.sum() * 2).floor().long(), sides, *operands)

    def while_loop(self, fn: Callable[[Tensor], Tensor], start: Tensor, n: int) -> Tensor:
        def goes_on(carry: Any) -> Tensor:
            return (carry[0].sum() < 1.5) & (carry[1] < n)

        first = (start, torch.zeros((), dtype=torch.int64))
        return ftrain.while_loop(goes_on, lambda c: (fn(c[0]), c[1] + 1), first)[0]

    def checkpoint(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return checkpoint(fn, x, use_reentrant=False)

    def compiled(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return ftrain.compile(fn, backend="eager")(x)

    def apply(self, fn: Callable[[Tensor], Tensor], p: Tensor, q: Tensor, x: Tensor) -> Tensor:
        params = {"inner.weight": torch.stack([p, q]), "inner.bias": 0.5 * p}
        return APPLY(params, {}, KEY, x, fn)[0]

    def step(self, p: Tensor, q: Tensor, x: Tensor) -> Tensor:
        state = STATE.replace(params={"weight": torch.stack([p, q]), "bias": 0.5 * p})
        new, _ = STEPS.train_step(state, x)
        weight = new.params["weight"]
        return weight[0] + 0.5 * weight[1] + new.params["bias"]
