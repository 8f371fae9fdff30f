"""Python objects keep no traced tensors, so eager and compiled calls can alternate."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core import _torch
from ftrain.core._reachable_objects import reach, spell

BATCH = {"x": torch.linspace(-1, 1, 32).view(8, 4), "y": torch.linspace(1, -1, 24).view(8, 3)}
TABLES: dict[int, Any] = {}
LAST: dict[str, Any] = {"loss": None, "calls": 0}


@functools.lru_cache
def bounded(n: int) -> torch.Tensor:
    return torch.arange(1.0, n + 1)


@functools.cache
def unbounded(n: int) -> dict[str, Any]:
    return {"table": [torch.arange(1.0, n + 1)]}


class Rotary:
    """Table that is computed at its first use and cached on the object."""

    def __init__(self) -> None:
        self._cos_cached: torch.Tensor | None = None

    def __call__(self, n: int) -> torch.Tensor:
        if self._cos_cached is None:
            self._cos_cached = torch.arange(1.0, n + 1).cos()
        return self._cos_cached


class Net(nn.Linear):
    memo: dict[int, Any] = {}  # noqa: RUF012  shared on purpose

    def __init__(self, table: str) -> None:
        super().__init__(4, 3)
        self.table, self.rotary, self.kept = table, Rotary(), None

    @functools.lru_cache  # noqa: B019  on purpose
    def of_method(self, n: int) -> torch.Tensor:
        return torch.arange(1.0, n + 1)

    def of_global(self, n: int) -> torch.Tensor:
        if n not in TABLES:
            TABLES[n] = (torch.arange(1.0, n + 1), "tuple")
        return TABLES[n][0]

    def of_class(self, n: int) -> torch.Tensor:
        return self.memo.setdefault(n, torch.arange(1.0, n + 1))

    def of_module(self, n: int) -> torch.Tensor:
        self.kept = torch.arange(1.0, n + 1) if self.kept is None else self.kept
        return self.kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = {
            "bounded": bounded,
            "unbounded": lambda n: unbounded(n)["table"][0],
            "method": self.of_method,
            "global": self.of_global,
            "class": self.of_class,
            "module": self.of_module,
            "object": self.rotary,
        }[self.table](3)
        return super().forward(x) * table


def mse(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def remembers(model: Any, batch: Any) -> torch.Tensor:
    loss = mse(model, batch)
    LAST["loss"], LAST["calls"] = loss, LAST["calls"] + 1
    if "weights" not in LAST:
        LAST["weights"] = torch.ones(())
    return loss * LAST["weights"]


@pytest.mark.parametrize(
    "table", ["bounded", "unbounded", "method", "global", "class", "module", "object"]
)
@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_model_caches_keep_no_traced_tensor(table: str, first: str) -> None:
    for cache in (bounded, unbounded, Net.of_method):
        cache.cache_clear()
    TABLES.clear()
    steps = ftrain.make_steps(lambda: Net(table), mse, optim.sgd(0.1))
    state = steps.init_state(0)
    eager = steps.train_step
    compiled, evaluate = (
        ftrain.compile(fn, backend="eager") for fn in (steps.train_step, steps.eval_step)
    )
    order = [eager, compiled] if first == "eager" else [compiled, eager]
    results = [call(state, BATCH) for call in order * 2]
    for result in results[1:]:
        testing.assert_same_bits(result, results[0])
    testing.assert_same_bits(evaluate(state, BATCH), steps.eval_step(state, BATCH))


def test_global_variable_that_a_loss_sets_to_a_traced_tensor_is_restored() -> None:
    LAST.update(loss=None, calls=0)
    LAST.pop("weights", None)
    steps = ftrain.make_steps(lambda: nn.Linear(4, 3), remembers, optim.sgd(0.1))
    state = steps.init_state(0)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    first = compiled(state, BATCH)
    # Restored whole, since it came to hold a tensor of the trace.
    assert LAST == {"loss": None, "calls": 0}
    testing.assert_same_bits(steps.train_step(state, BATCH), first)
    assert LAST["calls"] == 1
    assert not isinstance(LAST["loss"], _torch.FakeTensor)


def test_counter_that_a_loss_increments_in_each_trace_is_kept() -> None:
    calls = []
    n = 0

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        nonlocal n
        n += 1
        calls.append("traced")
        return mse(model, batch)

    steps = ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.1))
    state = steps.init_state(0)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    for _ in range(2):
        compiled(state, BATCH)
    assert n == len(calls) > 0


def test_lists_and_dicts_of_a_compiled_function_keep_no_traced_tensor() -> None:
    kept: list[Any] = []
    memo: dict[int, Any] = {}

    def fn(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x * memo.setdefault(len(x), torch.ones(len(x)))

    compiled = ftrain.compile(fn, backend="eager")
    x = torch.arange(3.0)
    testing.assert_same_bits(compiled(x), x)
    assert (kept, memo) == ([], {})
    testing.assert_same_bits(fn(x), x)


@pytest.mark.parametrize("table", ["object", "module", "class", "global"])
def test_no_traced_tensor_is_reachable_from_a_model_after_a_trace(table: str) -> None:
    TABLES.clear()
    apply = ftrain.bind(lambda: Net(table))
    params, buffers = apply.init(ftrain.random.key(0))
    compiled = ftrain.compile(apply, backend="eager")
    compiled(params, buffers, ftrain.random.key(1), BATCH["x"])
    found = reach([("", apply.skeleton.module)], follow_globals=True)
    assert found.modules
    assert found.complete
    assert not [spell(path) for path, t in found.tensors if isinstance(t, _torch.FakeTensor)]
