"""Test that operators on tensors with rows on several ranks equal those on whole tensors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ftrain.core._torch_collectives import group_of
from ftrain.core._torch_wrapper import is_mutable, is_pointwise, plain
from ftrain.distributed import _sharded_reductions  # noqa: F401  # registers its rules
from ftrain.distributed._sharded_tensor import ShardedTensor, local_rows
from tests.distributed.ranks import run

Operators = dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]

ROWWISE: Operators = {
    "sum of two": lambda x, y: x + y,
    "number": lambda x, y: 2 - x,
    "row": lambda x, y: x * torch.arange(float(x.shape[-1])),
    "rows of ones": lambda x, y: x * torch.ones(x.shape[0], *[1] * (x.ndim - 1)),
    "choice": lambda x, y: torch.where(x > 0, x, y),
    "in place": lambda x, y: x.clone().mul_(2).add_(y),
    "other dtype": lambda x, y: x.double().to(torch.bfloat16),
    "zeros": lambda x, y: torch.zeros_like(x) + 1,
    "detached": lambda x, y: x.detach() * y,
    "copied": lambda x, y: x.clone().copy_(y),
    "root": lambda x, y: x.abs().sqrt() / (y.square() + 1),
}
COMBINED: Operators = {
    "sum": lambda x, y: x.sum(),
    "mean": lambda x, y: x.mean(),
    "mean of bfloat16": lambda x, y: x.bfloat16().mean().float(),
    "norm": lambda x, y: x.norm(),
    "norms of several": lambda x, y: torch.stack(torch._foreach_norm([x, 2 * y, torch.ones(3)], 2)),
    "sum of rows": lambda x, y: x.sum(0),
    "mean of rows": lambda x, y: x.mean(0, keepdim=True),
    "all": lambda x, y: torch.isfinite(x).all(),
    "any": lambda x, y: (x > 2.5).any(),
}
WHOLE: Operators = {
    "maximum": lambda x, y: x.amax(),
    "flat": lambda x, y: x.flatten().cumsum(0),
    "product": lambda x, y: x.flatten(1) @ y.flatten(1).mT,
    "one row": lambda x, y: x[1] + 1,
    "stack": lambda x, y: torch.stack([x, y]),
    "outer": lambda x, y: x.unsqueeze(0) + y.unsqueeze(1),
    "sorted": lambda x, y: x.sort(0).values,
    "new zeros": lambda x, y: x.new_zeros(3) + x.new_ones(x.shape).sum(),
    "copy of rows": lambda x, y: x.new_empty(x.shape).copy_(x),
    "copy of a view": lambda x, y: x.new_empty(x.numel()).copy_(x.view(-1)),
    "third norm": lambda x, y: torch.linalg.vector_norm(x, 3),
}
SHAPES = [(5, 3), (4, 2, 2), (2, 1), (3, 4)]


def pairs(group: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        x, y = (torch.randn(shape, generator=generator) for _ in range(2))
        rows = [ShardedTensor(local_rows(t, group), shape[0], group) for t in (x, y)]
        yield x, y, *rows


def differences(mesh: Any) -> dict[str, float]:
    """Return the largest relative difference from the operator on whole tensors, by name."""
    found: dict[str, float] = {}
    for x, y, rows_x, rows_y in pairs(group_of(mesh)):
        for name, fn in (ROWWISE | COMBINED | WHOLE).items():
            expected, got = fn(x, y), fn(rows_x, rows_y)
            assert isinstance(got, ShardedTensor) == (name in ROWWISE), name
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
            error = (plain(got).double() - expected.double()).norm()
            relative = (error / expected.double().norm().clamp(min=1e-30)).item()
            found[name] = max(found.get(name, 0.0), relative)
    return found


def test_operators_on_rows_equal_those_on_whole_tensors() -> None:
    for found in run(differences, 2):
        for name, error in found.items():
            # Sums in another order: 15 float32 terms, measured at most 1.2e-7. One bfloat16 rounding.
            assert error <= (4e-7 if name in COMBINED else 0), name


def refusals(mesh: Any) -> list[str]:
    found = []
    for write in (
        lambda x: x.view(-1).zero_(),
        lambda x: x[0].add_(1),
        lambda x: x.__setitem__(0, 0.0),
        lambda x: x.flatten(1)[:, 0].mul_(2),
        lambda x: x[1:].add_(x[:1]),
        lambda x: x.view(5, 3).add_(x),
        lambda x: x.cumsum_(0),
        lambda x: x.transpose_(0, 1),
    ):
        x = next(pairs(group_of(mesh)))[2]
        try:
            write(x)
        except NotImplementedError as error:
            found.append(str(error))
    return found


def test_in_place_writes_that_would_miss_rows_on_other_ranks_are_refused() -> None:
    found = run(refusals, 2)[0]
    assert len(found) == 8
    assert all("out-of-place" in message for message in found)


def elementwise() -> list[Any]:
    """Return the operators of torch that run on the rows of a rank, with one or two tensors."""
    found = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            func = getattr(packet, overload)
            kinds = [str(a.type) for a in func._schema.arguments if not a.has_default_value()]
            if is_pointwise(func) and not is_mutable(func) and set(kinds) == {"Tensor"}:
                found.append((func, len(kinds)))
    return found


def test_operators_tagged_elementwise_compute_each_row_from_the_same_row_of_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 0
    for func, count in elementwise():
        tensors = [torch.rand(6, 5, generator=generator) for _ in range(count)]
        try:
            whole = func(*tensors)
            rows = func(*(x[2:4] for x in tensors))
        except RuntimeError:  # no kernel for float32 on the CPU
            continue
        if isinstance(whole, torch.Tensor) and whole.shape == (6, 5):
            torch.testing.assert_close(rows, whole[2:4], rtol=1e-6, atol=0, equal_nan=True)
            n += 1
    assert n > 100


def pickled(mesh: Any) -> str:
    x = next(pairs(group_of(mesh)))[2]
    try:
        pickle.dumps(x)
    except TypeError as error:
        return str(error)
    return ""


def test_pickling_a_sharded_tensor_raises() -> None:
    assert "rows are on several ranks" in run(pickled, 1)[0]
