"""Out of memory at each allocation of a donated step: the state is whole or reported lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.core.errors import DonatedStateError
from tests.nullcuda.test_cuda_graphs import batch_of, loss_fn, on_device

pytestmark = pytest.mark.inductor


@pytest.mark.parametrize("mode", [None, "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_out_of_memory_before_the_first_write_keeps_the_donated_state(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codecache import PyCodeCache

    known = set(map(id, PyCodeCache.modules))
    steps = ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 4)),
        loss_fn,
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)),
    )
    start, batch = on_device(steps.init_state(0)), batch_of()
    step = ftrain.compile(steps.train_step, donate=True, mode=mode)
    step(tree.map(torch.clone, start), batch)
    modules = [m for m in PyCodeCache.modules if id(m) not in known and hasattr(m, "call")]
    assert len(modules) == 1
    launched: list[bool] = []  # True for a launch that is given memory of the state
    found = []
    for n in range(1, 1000):
        state = tree.map(torch.clone, start)
        leaves = {t.data_ptr() for t in tree.leaves(state)}
        left = n

        def allocate(*args: Any, real: Any = modules[0].empty_strided_cuda) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise torch.OutOfMemoryError("injected")
            return real(*args)

        launched.clear()
        with monkeypatch.context() as patch:
            patch.setattr(modules[0], "empty_strided_cuda", allocate)
            for name, kernel in list(vars(modules[0]).items()):
                if name.startswith("triton_") and hasattr(kernel, "run"):
                    patch.setattr(modules[0], name, Watched(kernel, leaves, launched))
            try:
                step(state, batch)
            except torch.OutOfMemoryError:
                pass
            else:
                break
        try:
            state.step.data_ptr()
            whole = True
        except DonatedStateError:
            whole = False
        found.append(whole)
        assert not (whole and any(launched)), "half-written state counted as whole"
    assert len(found) > 10
    assert found[0]
    assert sum(found) > 0.8 * len(found)


class Watched:
    """Kernel that notes whether it writes to memory of a state."""

    def __init__(self, kernel: Any, leaves: set[int], launched: list[bool]) -> None:
        self._kernel, self._leaves, self._launched = kernel, leaves, launched
        self._names = kernel.fn.arg_names
        self._mutated = kernel.mutated_arg_names

    def run(self, *args: Any, **kwargs: Any) -> Any:
        written = any(
            isinstance(x, torch.Tensor)
            and x.data_ptr() in self._leaves
            and ("out_ptr" in name or name in self._mutated)
            for name, x in zip(self._names, args, strict=False)
        )
        self._launched.append(written)
        return self._kernel.run(*args, **kwargs)
