"""Test draws that run without torch's dispatcher: equal bits, and only where nothing sees operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ftrain.core import random
from ftrain.core.random import _operators

KEY = random.key(3)
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "bits": lambda key: random.bits(key, (3,)),
    "uniform": lambda key: random.uniform(key, (3, 2)),
    "normal": lambda key: random.normal(key, (5,), folds=(1,)),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (4,)),
    "randint": lambda key: random.randint(key, (4,), 0, 9),
    "split": lambda key: random.split(key, 3),
    "fold_in": lambda key: random.fold_in(key, 7),
    "exponential": lambda key: random.exponential(key, (4,)),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


class Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def skipped(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record the decision of every draw: True if it runs without the dispatcher."""
    decisions: list[bool] = []
    decide = _operators._is_unobserved

    def recorded(key: Tensor, args: Any) -> bool:
        decisions.append(decide(key, args))
        return decisions[-1]

    monkeypatch.setattr(_operators, "_is_unobserved", recorded)
    return decisions


@every_draw
def test_draw_that_nothing_sees_skips_the_dispatcher_with_equal_bits(
    draw: Callable[[Tensor], Tensor], skipped: list[bool]
) -> None:
    alone = draw(KEY)
    assert skipped
    assert all(skipped)
    skipped.clear()
    with Dispatched():
        seen = draw(KEY)
    assert not any(skipped)
    assert (seen.dtype, seen.shape, seen.stride()) == (alone.dtype, alone.shape, alone.stride())
    assert torch.equal(seen, alone)


@every_draw
def test_modes_and_profilers_see_the_operator_of_a_draw(draw: Callable[[Tensor], Tensor]) -> None:
    with Dispatched() as dispatched:
        draw(KEY)
    with Called() as called:
        draw(KEY)
    with torch.profiler.profile() as profile:
        draw(KEY)
    for names in (dispatched.names, called.names, [event.name for event in profile.events()]):
        assert any("threefry" in name or "ftrain" in name for name in names), names


@every_draw
@pytest.mark.parametrize("trace", ["real", "symbolic", "jit"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_of_a_draw_draws_anew_for_another_key(
    draw: Callable[[Tensor], Tensor], trace: str
) -> None:
    if trace == "jit":
        traced: Callable[[Tensor], Tensor] = torch.jit.trace(draw, KEY, check_trace=False)
    else:
        traced = make_fx(draw, tracing_mode=trace)(KEY)
    other = random.key(4)
    assert torch.equal(traced(other), draw(other))
    assert not torch.equal(traced(other), draw(KEY))


@every_draw
def test_keys_of_a_vmap_or_a_subclass_go_through_the_dispatcher(
    draw: Callable[[Tensor], Tensor], skipped: list[bool]
) -> None:
    keys = random.split(KEY, 2)
    skipped.clear()
    torch.vmap(draw)(keys)
    draw(torch.nn.Parameter(copy.deepcopy(KEY), requires_grad=False))
    assert not any(skipped)
