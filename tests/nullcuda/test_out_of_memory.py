"""Out of memory in a compiled donated step: the state is whole or reported lost, never half-written.

`tests/compile/test_failed_donation.py` compares the bytes of a whole state on the CPU. Here kernels
compute nothing, so launches are watched that would write to memory of the state.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tree
from ftrain.core.errors import DonatedStateError
from tests.nullcuda.device import counted
from tests.nullcuda.test_cuda_graphs import batch_of, loss_fn, on_device

pytestmark = pytest.mark.inductor

MODES = (None, "reduce-overhead", "max-autotune-no-cudagraphs")


class Task:
    """A donated step in one compiled program, and the module that inductor wrote for it."""

    def __init__(self, mode: str | None, accumulate: int = 1) -> None:
        from torch._inductor.codecache import PyCodeCache

        known = set(map(id, PyCodeCache.modules))
        self.steps = ftrain.make_steps(
            lambda: nn.Sequential(
                nn.Linear(4, 16), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 4)
            ),
            loss_fn,
            optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)),
            accumulate=accumulate,
        )
        self.start, self.batch = on_device(self.steps.init_state(0)), batch_of()
        self.step = ftrain.compile(self.steps.train_step, donate=True, mode=mode)
        self.step(self.state(), self.batch)
        new = [m for m in PyCodeCache.modules if id(m) not in known and hasattr(m, "call")]
        assert len(new) == 1
        self.module: ModuleType = new[0]

    def state(self) -> Any:
        return tree.map(torch.clone, self.start)

    def fails(self, injected: Callable[[], contextlib.AbstractContextManager[None]]) -> str:
        """Run a step in which memory may run out; return "done", "whole" or "lost"."""
        state = self.state()
        try:
            with watched(self.module, tree.leaves(state)) as written, injected():
                self.step(state, self.batch)
        except torch.OutOfMemoryError:
            try:
                state.step.data_ptr()
            except DonatedStateError:
                return "lost"
            assert not any(written), "half-written state counted as whole"
            after, _ = self.step(state, self.batch)  # it goes on
            assert tree.structure(after) == tree.structure(self.start)
            return "whole"
        return "done"


@contextlib.contextmanager
def watched(module: ModuleType, leaves: list[torch.Tensor]) -> Iterator[list[bool]]:
    """Note, for each kernel launched inside the block, whether it writes to memory of the leaves."""
    addresses = {leaf.data_ptr() for leaf in leaves}
    written: list[bool] = []

    def note(tensor: Any) -> None:
        written.append(isinstance(tensor, torch.Tensor) and tensor.data_ptr() in addresses)

    class Triton:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def run(self, *args: Any, **kwargs: Any) -> Any:
            for name, x in zip(self._kernel.fn.arg_names, args, strict=False):
                if "out_ptr" in name or name in self._kernel.mutated_arg_names:
                    note(x)
            return self._kernel.run(*args, **kwargs)

    class Extern:
        def __init__(self, kernels: Any) -> None:
            self._kernels = kernels

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                note(kwargs.get("out"))
                return kernel(*args, **kwargs)

            kernel = getattr(self._kernels, name)
            return call

    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in list(vars(module).items()):
            if name.startswith("triton_") and hasattr(kernel, "run"):
                patch.setattr(module, name, Triton(kernel))
        if hasattr(module, "extern_kernels"):
            patch.setattr(module, "extern_kernels", Extern(module.extern_kernels))
        yield written


@contextlib.contextmanager
def allocation_fails(module: ModuleType, n: int) -> Iterator[None]:
    """Raise at the n-th allocation of a program."""
    left = n

    def allocate(*args: Any, real: Any = module.empty_strided_cuda) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("injected")
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "empty_strided_cuda", allocate)
        yield


@contextlib.contextmanager
def line_fails(module: ModuleType, n: int) -> Iterator[None]:
    """Raise before the n-th line that a program executes: libraries allocate memory in any of them."""
    left = n

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0:
            left = -1
            raise torch.OutOfMemoryError("injected")
        return local

    def start(frame: FrameType, *_: Any) -> Any:
        return local if frame.f_code.co_filename == module.__file__ else None

    before = sys.gettrace()
    sys.settrace(start)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("mode", "accumulate"), [*((mode, 1) for mode in MODES), (None, 4)])
def test_out_of_memory_at_any_line_keeps_a_donated_state_or_reports_that_it_was_overwritten(
    mode: str | None, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop over micro-batches writes into its carry, which is no memory of the state."""
    from ftrain.core.compile._cuda_graph import ReplayedProgram

    # A later state may have the memory of an earlier one: its step would be captured, and run no line.
    monkeypatch.setattr(ReplayedProgram, "_try_to_capture", lambda *_: None)
    task = Task(mode, accumulate)
    for fails, least, share in ((allocation_fails, 10, 0.8), (line_fails, 40, 0.5)):
        found = []
        for n in range(1, 2000):
            found.append(task.fails(lambda fails=fails, n=n: fails(task.module, n)))
            if found[-1] == "done":
                break
        assert found.pop() == "done"
        assert len(found) >= least
        assert found[0] == "whole"
        assert found.count("whole") >= share * len(found), found


def test_out_of_memory_before_a_replay_keeps_the_state_and_its_cuda_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ftrain.core.compile import _cuda_graph

    task = Task("reduce-overhead")
    state = task.state()
    for _ in range(5):
        state, _ = task.step(state, task.batch)

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(_cuda_graph, "_like", fails)
        with pytest.raises(torch.OutOfMemoryError, match="injected"):
            task.step(state, task.batch)
    with counted() as counts:
        task.step(state, task.batch)
    assert counts.graphs == 1


def test_allocator_out_of_memory_keeps_a_donated_state_or_reports_that_it_was_overwritten() -> None:
    """Each limit of memory, in steps of half a leaf, from what the step holds to what it needs."""
    wide = 1 << 18  # 4 MiB for a weight; the allocator reserves such blocks one by one
    steps = ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(4, wide), nn.GELU(), nn.Linear(wide, 4)),
        loss_fn,
        optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)),
    )
    batch = batch_of()
    step = ftrain.compile(steps.train_step, donate=True)
    start = on_device(steps.init_state(0))
    step(tree.map(torch.clone, start), batch)
    total = torch.cuda.get_device_properties(0).total_memory
    found: list[str] = []
    for n in range(200):
        torch.cuda.empty_cache()
        state = tree.map(torch.clone, start)
        limit = torch.cuda.memory_reserved(0) + n * (2 << 20)
        torch.cuda.set_per_process_memory_fraction(limit / total, 0)
        try:
            step(state, batch)
            found.append("done")
            break
        except torch.OutOfMemoryError:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
            try:
                step(state, batch)
                found.append("whole")
            except DonatedStateError:
                found.append("lost")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert found[-1] == "done"
    assert found.count("whole") >= 3, found
