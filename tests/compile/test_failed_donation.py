"""Out of memory at each allocation of a donated step: the state is intact or reported lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from ftrain import optim, tree
from ftrain.core.errors import DonatedStateError


class FailsAt(TorchDispatchMode):
    """Mode in which the n-th operator runs out of memory."""

    supports_higher_order_operators = True

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("injected")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.copy_.default:  # it allocates nothing
            self.count()
        return func(*args, **(kwargs or {}))


def task(optimizer: Any, **options: Any) -> tuple[Callable[..., Any], Any, Any]:
    steps = ftrain.make_steps(
        lambda: nn.Sequential(
            nn.Linear(4, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 4)
        ),
        lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"]),
        optimizer,
        **options,
    )
    g = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(8, 4, generator=g) for name in "xy"}
    return steps.train_step, steps.init_state(0), batch


def tried(step: Callable[..., Any], state: Any, batch: Any, mode: FailsAt) -> str:
    """Run a step and return the outcome for its state: "done", "whole" or "lost"."""
    before = tree.digest(state)
    try:
        with mode:
            step(state, batch)
    except torch.OutOfMemoryError:
        try:
            assert tree.digest(state) == before
        except DonatedStateError:
            return "lost"
        return "whole"
    return "done"


def test_graph_of_a_donated_step_writes_the_state_after_all_allocations() -> None:
    train_step, state, batch = task(optim.adamw(1e-3))
    step = ftrain.compile(train_step, donate=True, backend="eager")
    step(tree.map(torch.clone, state), batch)
    for n in range(1, 1000):
        found = tried(step, tree.map(torch.clone, state), batch, FailsAt(n))
        if found == "done":
            break
        assert found == "whole"
    assert n > 50


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("optimizer", "options", "whole"),
    [
        (optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)), {}, True),
        # Nothing waits for the last gradient here: what is known of a write must still be right.
        (optim.adamw(1e-3), {"nonfinite": "ignore"}, False),
        # The loop over micro-batches writes into its carry, which is no memory of the state.
        (optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)), {"accumulate": 4}, False),
    ],
)
def test_out_of_memory_in_a_donated_inductor_step_keeps_the_state_or_makes_its_use_raise(
    optimizer: Any, options: Any, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codecache import PyCodeCache

    known = set(map(id, PyCodeCache.modules))
    train_step, state, batch = task(optimizer, **options)
    step = ftrain.compile(train_step, donate=True)
    step(tree.map(torch.clone, state), batch)
    modules = [m for m in PyCodeCache.modules if id(m) not in known and hasattr(m, "call")]
    assert modules
    found = []
    for n in range(1, 1000):
        mode = FailsAt(n)
        with monkeypatch.context() as patch:
            for module in modules:
                allocate = module.empty_strided_cpu

                def counted(*args: Any, allocate: Any = allocate, mode: Any = mode) -> Any:
                    mode.count()
                    return allocate(*args)

                patch.setattr(module, "empty_strided_cpu", counted)
            found.append(tried(step, tree.map(torch.clone, state), batch, mode))
        if found[-1] == "done":
            break
    assert len(found) > 10
    assert found[0] == "whole"
    assert not whole or set(found[:-1]) == {"whole"}
