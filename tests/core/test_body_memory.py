"""Bodies of loops and branches return outputs in new memory and must not write to their inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import set_eval_frame

import ftrain
from ftrain.core.compile import compile
from ftrain.core.errors import ImpureFunctionError
from tests.campaign import product
from tests.compile.cases import addresses, apart, same_bytes

Body = Callable[[Tensor], Tensor]
MODE = ["eager", "compiled", "vmapped", "compiled vmapped"]
MODES = pytest.mark.parametrize("mode", MODE)


def by_cond(body: Body, x: Tensor) -> Any:
    return ftrain.cond(x.isfinite().all(), body, torch.neg, x)


def by_python_cond(body: Body, x: Tensor) -> Any:
    return ftrain.cond(True, body, torch.neg, x)


def by_switch(body: Body, x: Tensor) -> Any:
    return ftrain.switch(x.isfinite().all().long(), [torch.neg, body, torch.sin], x)


def by_scan_carry(body: Body, x: Tensor) -> Any:
    return ftrain.scan(lambda c, _: (body(c), body(c)), x, length=2)


def by_scan_slice(body: Body, x: Tensor) -> Any:
    return ftrain.scan(lambda c, x: (body(x), c), x, torch.stack([x, x]))


def by_loop_body(body: Body, x: Tensor) -> Any:
    start = (x, x.isnan().sum())
    return ftrain.while_loop(lambda c: c[1] < 2, lambda c: (body(c[0]), c[1] + 1), start)


def by_loop_condition(body: Body, x: Tensor) -> Any:
    def goes_on(carry: Any) -> Tensor:
        return body(carry[0]).isfinite().all() & (carry[1] < 2)

    return ftrain.while_loop(goes_on, lambda c: (c[0], c[1] + 1), (x, x.isnan().sum()))


RUNS = [
    by_cond,
    by_python_cond,
    by_switch,
    by_scan_carry,
    by_scan_slice,
    by_loop_body,
    by_loop_condition,
]
OVER = pytest.mark.parametrize("run", RUNS)


def in_mode(mode: str, f: Callable[[Tensor], Any], x: Tensor) -> Any:
    if "vmapped" in mode:
        f, x = torch.vmap(f), torch.stack([x, x])
    return (compile(f, backend="eager") if "compiled" in mode else f)(x)


# --- outputs --------------------------------------------------------------------------------------


class Holder:
    """Existing tensors in an object, a module and an array, which a body returns."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.tensor = torch.full(shape, 2.0)
        self.items = {"all": [torch.full(shape, 3.0)]}
        self.layer = nn.ParameterList([torch.full(shape, 4.0)]).requires_grad_(False)
        self.array = np.full(shape, 5.0, dtype=np.float32)

    def existing(self) -> list[Tensor]:
        arrays = [torch.from_numpy(self.array)]
        return [self.tensor, *self.items["all"], *self.layer, *arrays, GLOBAL]


GLOBAL = torch.full((3, 2), 6.0)
SOURCES: dict[str, Callable[[Holder], Body]] = {
    "input": lambda held: lambda x: x,
    "view of the input": lambda held: lambda x: x.flip(()).view(-1).view(x.shape),
    "closure": lambda held: (lambda t: lambda x: t)(held.tensor),
    "view of a closure": lambda held: (lambda t: lambda x: t.view(-1).view(x.shape))(held.tensor),
    "attribute": lambda held: lambda x: held.tensor,
    "container": lambda held: lambda x: held.items["all"][0],
    "module": lambda held: lambda x: held.layer[0].detach(),
    "default argument": lambda held: lambda x, t=held.tensor: t,
    "partial": lambda held: functools.partial(lambda t, x: t, held.tensor),
    "global": lambda held: lambda x: GLOBAL.view(-1)[: x.numel()].view(x.shape),
    "array": lambda held: lambda x: torch.from_numpy(held.array),
}


@pytest.mark.parametrize(("source", "run", "mode"), product([*SOURCES], RUNS, MODE))
@given(st.lists(st.integers(1, 3), max_size=1).map(tuple))
@settings(max_examples=2)
def test_loop_and_branch_outputs_share_no_memory_with_existing_tensors(
    source: str, run: Any, mode: str, shape: tuple[int, ...]
) -> None:
    held, x = Holder(shape), torch.ones(shape)
    body = SOURCES[source](held)
    existing = [*held.existing(), x]
    kept = [t.clone() for t in existing]

    found = in_mode(mode, lambda x: run(body, x), x)
    assert apart(found)
    assert not set(addresses(found)) & set(addresses(existing))
    assert same_bytes(existing, kept)


@pytest.mark.parametrize("run", [by_cond, by_python_cond, by_switch, by_scan_slice, by_loop_body])
def test_tensor_that_a_body_has_made_is_returned_without_a_copy(run: Any) -> None:
    made = []

    def body(x: Tensor) -> Tensor:
        new = x + 1
        made.append(new.data_ptr())
        return new

    found = run(body, torch.ones(3))
    assert (found if isinstance(found, Tensor) else found[0]).data_ptr() == made[-1]


# --- inputs ---------------------------------------------------------------------------------------


def added(x: Tensor) -> Tensor:
    x += 1
    return x


def assigned(x: Tensor) -> Tensor:
    x[0] = 1
    return x * 1


def written_through_a_view(x: Tensor) -> Tensor:
    x.view(-1)[1:].mul_(2)
    return x * 1


def written_through_detach(x: Tensor) -> Tensor:
    x.detach().copy_(x * 2)
    return x * 1


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        nn.functional.relu(x, inplace=True)
    return x + 1


WRITES = [added, assigned, written_through_a_view, written_through_detach, without_grad]


@pytest.mark.parametrize(
    ("body", "where", "run", "mode"), product(WRITES, ["argument", "intermediate"], RUNS, MODE)
)
def test_loop_or_branch_body_that_writes_to_its_input_raises(
    body: Body, where: str, run: Any, mode: str
) -> None:
    def f(x: Tensor) -> Any:
        return run(body, x if where == "argument" else x * 2)

    with pytest.raises(
        ImpureFunctionError, match=r"^the tensor `(x|carry.*|operands.*)` was changed in place"
    ):
        in_mode(mode, f, torch.tensor([3.0, -2.0, 0.5]))


@MODES
@OVER
def test_loop_or_branch_body_that_writes_to_a_captured_tensor_raises(run: Any, mode: str) -> None:
    total = torch.zeros(3)

    def body(x: Tensor) -> Tensor:
        total.add_(1)
        return x + total

    with pytest.raises(
        ImpureFunctionError, match="the tensor `(body.)?total` was changed in place"
    ):
        in_mode(mode, lambda x: run(body, x), torch.ones(3))


def through_data(x: Tensor) -> Tensor:
    x.data.add_(1)
    return x * 1


def through_numpy(x: Tensor) -> Tensor:
    x.numpy()[...] += 1
    return x * 1


@OVER
@pytest.mark.parametrize("body", [through_data, through_numpy])
def test_loop_or_branch_body_write_that_bypasses_the_version_counter_raises(
    body: Body, run: Any
) -> None:
    x = torch.ones(3)
    run(lambda x: x * 1, x)  # another body in the same place
    with pytest.raises(ImpureFunctionError, match="a write that bypasses torch's version counter"):
        run(body, x)


@MODES
@OVER
def test_loop_or_branch_body_may_write_to_tensors_that_it_created(run: Any, mode: str) -> None:
    def body(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = 2
        return y.mul_(2).add_(x)

    x = torch.tensor([1.0, -2.0, 0.5])
    found = in_mode(mode, lambda x: run(body, x), x)
    expected = run(lambda x: torch.cat([torch.full((1,), 2.0), x[1:]]) * 2 + x, x)
    if "vmapped" in mode:
        expected = torch.utils._pytree.tree_map(lambda t: torch.stack([t, t]), expected)
    assert same_bytes(found, expected)


@MODES
def test_cond_branch_that_writes_to_its_operand_raises(mode: str) -> None:
    """Under vmap every branch runs, so a write in one would change what the next one reads."""

    def f(x: Tensor) -> Tensor:
        y = x * 2
        return ftrain.cond(x.sum() > 0, lambda y: y * 1, added, y)

    with pytest.raises(
        ImpureFunctionError, match=r"the tensor `operands\[0\]` was changed in place"
    ):
        in_mode(mode, f, torch.tensor([-1.0]))


@pytest.mark.parametrize("in_dynamo", [False, True])
def test_new_tensors_returned_by_a_loop_or_branch_body_are_not_copied(in_dynamo: bool) -> None:
    # Where Dynamo evaluates frames, a caller keeps references to the arguments of a call.
    before = set_eval_frame(False if in_dynamo else None)
    try:
        check_that_outputs_are_not_copied()
    finally:
        set_eval_frame(before)


def check_that_outputs_are_not_copied() -> None:
    made: list[int] = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        made.append(x.data_ptr())
        return x

    x = torch.ones(3)
    outputs = [
        ftrain.cond(torch.tensor(True), lambda x: noted(x + 1), lambda x: x, x),
        ftrain.cond(torch.tensor(True), lambda x: {"a": noted(x + 1)}, lambda x: {"a": x}, x)["a"],
        ftrain.switch(torch.tensor(0), [lambda x: noted(x + 1)], x),
        ftrain.scan(lambda c, _: (noted(c + 1), None), x, length=1)[0],
        ftrain.while_loop(lambda c: c.sum() < 4, lambda c: noted(c + 1), x),
    ]
    assert [output.data_ptr() for output in outputs] == made
