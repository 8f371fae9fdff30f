"""`scan`: a loop whose body is compiled once, independently of its length.

In eager mode it is a Python loop. Inside `ftrain.compile` it is one operator: the body is traced once,
with the gradients that it computes, so the compile time does not depend on the length. Under
`torch.func` transforms and in forward mode, it is an unrolled Python loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ftrain.core import tree
from ftrain.core._loop_bodies import Pure, check_carry, check_tensors
from ftrain.core._new_memory import copied
from ftrain.core._strides import contiguous
from ftrain.core._torch_levels import is_transformed
from ftrain.core._traced_loop import traced_loop
from ftrain.core.compile._trace import is_tracing
from ftrain.core.random._key_stream import Scope
from ftrain.core.random.keyed import scoped

__all__ = ["scan"]

C = TypeVar("C")
Body = Callable[[C, Any], tuple[C, Any]]


def scan(body: Body[C], carry: C, xs: Any = None, length: int | None = None) -> tuple[C, Any]:
    """Thread `carry` through `body` over the leading axis of `xs`, and stack the outputs of `body`.

        carry, y_i = body(carry, xs[i])    for i in 0 .. n - 1

    Args:
        body: a pure function `(carry, x) -> (carry, y)` on trees of tensors. The carry must keep its
            structure, shapes and dtypes. Captured tensors are constant during the loop.
        carry: a tree of tensors; the first carry.
        xs: a tree of tensors with the same length of the first axis, or `None` if `length` is given
            (then each `x` is `None`).
        length: the number of iterations, at least 1; only needed without `xs`.

    Returns:
        The last carry, and the tree of all `y`, stacked along a new first axis. Both are in new memory,
        even if the body returns its input or a captured tensor. Traced with `backend="eager"`, both have
        the bits of the Python loop. The gradient with respect to a captured tensor has the same bits if
        the tensor is used once, in the body. Otherwise it is a sum in another order: the trace adds the
        parts of all iterations before it adds the parts from outside the loop.

    Raises:
        ValueError: the lengths differ, there is nothing to iterate over, or the carry changes its
            structure, shape or dtype; the message names the path.
        TypeError: a leaf is not a tensor.
        ImpureFunctionError: the body writes into its arguments or into a tensor of its closure.

    >>> total, partial = scan(lambda s, x: (s + x, s), torch.tensor(0), torch.arange(4))
    >>> total, partial
    (tensor(6), tensor([0, 0, 1, 3]))

    Source: `jax.lax.scan`.
    """
    flat_xs, xs_def = tree.flatten(xs)
    check_tensors("scan", "xs", xs)
    check_tensors("scan", "carry", carry)
    n = _length(xs, flat_xs, length)
    with scoped("scan") as iteration:
        if is_tracing() and not is_transformed():
            return _one_operator(body, carry, flat_xs, xs_def, n, iteration)
        return _loop(body, carry, flat_xs, xs_def, n, iteration)


def _loop(
    body: Body[C],
    carry: C,
    flat_xs: list[torch.Tensor],
    xs_def: tree.TreeDef,
    n: int,
    iteration: Scope,
) -> tuple[C, Any]:
    carry = tree.map(contiguous, carry)  # as the operator of a trace does
    pure = Pure("scan", body, ("carry", "x"))
    stacked: list[list[torch.Tensor]] = []
    y_def: tree.TreeDef | None = None
    for i in range(n):
        with iteration(i):
            x = tree.unflatten(xs_def, [x[i] for x in flat_xs])
            new, y = _output(pure(carry, x))
        if i == 0:
            check_carry("scan", carry, new)
        carry = tree.map(contiguous, new)
        ys, y_def = tree.flatten(y)
        check_tensors("scan", "y", y)
        stacked.append(ys)
    assert y_def is not None
    last = [carry]
    del carry, new
    return copied(last.pop), tree.unflatten(
        y_def, [torch.stack(column) for column in zip(*stacked, strict=True)]
    )


def _one_operator(
    body: Body[C],
    carry: C,
    flat_xs: list[torch.Tensor],
    xs_def: tree.TreeDef,
    n: int,
    iteration: Scope,
) -> tuple[C, Any]:
    flat_carry, carry_def = tree.flatten(carry)
    pure = Pure("scan", body, ("carry", "x"))
    found: dict[str, Any] = {}

    def flat_body(*inputs: torch.Tensor) -> list[torch.Tensor]:
        old = tree.unflatten(carry_def, inputs[: len(flat_carry)])
        *rest, number = inputs[len(flat_carry) :]
        with iteration(number):
            new, y = _output(pure(old, tree.unflatten(xs_def, rest)))
        check_carry("scan", old, new)
        ys, found["y"] = tree.flatten(y)
        check_tensors("scan", "y", y)
        return [*tree.leaves(new), *ys]

    device = next((x.device for x in (*flat_carry, *flat_xs)), None)
    numbers = torch.arange(n, device=device)  # iteration numbers, on which random draws depend
    outputs = traced_loop(flat_body, flat_carry, [*flat_xs, numbers], n)
    last, ys = outputs[: len(flat_carry)], outputs[len(flat_carry) :]
    return tree.unflatten(carry_def, last), tree.unflatten(found["y"], ys)


def _output(output: Any) -> tuple[Any, Any]:
    if not isinstance(output, tuple) or len(output) != 2:
        kind = f"a tuple of {len(output)}" if isinstance(output, tuple) else type(output).__name__
        raise TypeError(
            f"scan: expected body to return a tuple (carry, y), got {kind}. Write return carry, None if "
            "there is no y."
        )
    return output


def _length(xs: Any, flat_xs: Sequence[torch.Tensor], length: int | None) -> int:
    sizes: dict[int, str] = {}
    for path, leaf in zip(tree.paths(xs), flat_xs, strict=True):
        if leaf.ndim == 0:
            raise ValueError(
                f"scan: expected xs{path} to have a leading axis to iterate over, got a 0-d "
                "tensor. Put it into the carry."
            )
        sizes.setdefault(leaf.shape[0], f"xs{path}")
    if length is not None:
        sizes.setdefault(length, "length")
    if len(sizes) > 1:
        listed = ", ".join(f"{name} has {size}" for size, name in sizes.items())
        raise ValueError(
            f"scan: expected one length, got several: {listed}. Give all of xs the same leading length."
        )
    if not sizes:
        raise ValueError("scan: expected xs or length, got neither. Pass length=n.")
    (n,) = sizes
    if n < 1:
        raise ValueError(
            f"scan: expected at least one iteration, which determines the shape of y, got {n}. "
            "Leave the call out for 0 iterations."
        )
    return n
