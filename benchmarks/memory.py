"""Memory that a training step allocates beyond its state, compared with an in-place loop.

    python -m benchmarks.memory

Every allocation and release of torch's CPU allocator during one step is taken from `torch.profiler`
(`profile_memory=True`) and summed over time; the highest point of the sum is the step's peak. The
profiler does not see the release of what was allocated before it started, so the state counts as held
throughout, and gradients that a loop keeps from the step before are no part of the peak. The
model is an MLP whose parameters dominate: three layers of 2048 x 2048, batch 16, AdamW, clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

import ftrain
from benchmarks.contenders import HandForward, hand_written, mlp_task, ours
from benchmarks.measure import Report, arguments, die_unless
from ftrain.bench import allocated

MIB = 2**20


def run(
    quick: bool = False, *, width: int = 2048, backend: Literal["inductor", "eager"] = "inductor"
) -> Report:
    report = Report("memory", "Memory of a training step beyond its state")
    check_method(report)
    step(report, width, backend, compiled=not quick)
    gradient(report, (2 * width) ** 2)
    return report


def check_method(report: Report) -> None:
    """Check the memory measurement with a call of known peak memory."""

    def known() -> torch.Tensor:
        a = torch.empty(MIB, dtype=torch.uint8)
        b = torch.empty(2 * MIB, dtype=torch.uint8)
        del a
        c = torch.empty(MIB // 2, dtype=torch.uint8)
        del c
        return b

    found = allocated(known)
    report.section(
        "The method on a known case: 1 MiB, 2 MiB more, the first released, 0.5 MiB more"
    )
    report.figure("known peak", found.peak / MIB, "MiB", "peak (3 is right)")
    report.figure("known rest", found.kept / MIB, "MiB", "held at the end (2 is right)")
    die_unless(found == (3 * MIB, 2 * MIB), "the profiler does not see all allocations")


def step(
    report: Report, width: int, backend: Literal["inductor", "eager"], *, compiled: bool
) -> None:
    task = mlp_task(width, 16)
    parameters = sum(p.numel() * p.element_size() for p in task.model().parameters())

    def by_hand(forward: HandForward, **options: Any) -> Callable[[], Any]:
        return hand_written(task, forward, "fused", backend=backend, **options)

    kinds: dict[str, Callable[[], Callable[[], Any]]] = {
        "by hand: eager, fused AdamW": lambda: by_hand("eager", clear_after=True),
        "by hand: the same, gradients kept until the next step": lambda: by_hand("eager"),
        "ftrain, compiled and donated": lambda: ours(task, backend=backend),
        "ftrain, compiled, not donated": lambda: ours(task, backend=backend, donate=False),
        "ftrain, eager": lambda: ours(task, compiled=False),
    }
    if compiled:
        kinds["by hand: compiled loss, fused AdamW"] = lambda: by_hand(
            "compiled loss", clear_after=True
        )
    report.section(
        f"A step of the MLP, parameters {parameters / MIB:.1f} MiB, state 3 x that; beyond the state, "
        "in units of the parameters"
    )
    found = {}
    for name, make in kinds.items():
        one = make()
        for _ in range(3):
            one()
        found[name] = allocated(one).peak
        what = f"{name} ({found[name] - parameters:+d} bytes over one set of gradients)"
        report.figure(f"step: {name}", found[name] / parameters, "x", what)
        del one
    ours_ = found["ftrain, compiled and donated"]
    report.target(
        "peak beyond the state, donated, over the in-place loop's",
        ours_ / found["by hand: eager, fused AdamW"],
        "at most",
        1.0,
    )
    if compiled:
        more = ours_ - found["by hand: compiled loss, fused AdamW"]
        report.figure("step: over compiled by hand", more, "bytes", "more than the compiled loop")
    report.note("before: a pure step for Adam allocated 7 times the parameters, written in place 1")
    report.note(
        "a loop that keeps its gradients until the next step holds 1 more at all times; were that "
        "counted as state, its own peak would be 1 lower"
    )


def donated_peak(width: int, backend: Literal["inductor", "eager"]) -> tuple[int, int, int]:
    """Return the bytes of a donated step of the MLP: peak beyond the state, gradients, one weight."""
    task = mlp_task(width, 16)
    sizes = [p.numel() * p.element_size() for p in task.model().parameters()]
    one = ours(task, backend=backend)
    for _ in range(3):
        one()
    return allocated(one).peak, sum(sizes), max(sizes)


def gradient(report: Report, numbers: int) -> None:
    """Measure the peak memory of the gradient of ten layers of sin(cos(x)), on an input of 16 MiB."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = x.cos().sin()
        return x.sum()

    x = torch.randn(numbers // 4)
    size = x.numel() * x.element_size()

    def plain() -> Any:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)

    kinds: dict[str, Callable[[], Any]] = {
        "torch.autograd.grad": plain,
        "ftrain.value_and_grad": lambda: ftrain.value_and_grad(loss)(x),
        "torch.func.grad_and_value": lambda: torch.func.grad_and_value(loss)(x),
        "torch.vmap of ftrain.value_and_grad": lambda: torch.vmap(ftrain.value_and_grad(loss))(
            x.view(2, -1)
        ),
    }
    report.section(
        f"The gradient of ten layers of sin(cos(x)) on {size / MIB:.0f} MiB, eager, peak"
    )
    peaks = {}
    for name, call in kinds.items():
        call()
        peaks[name] = allocated(call).peak
        report.figure(f"gradient: {name}", peaks[name] / MIB, "MiB", name)
    report.target(
        "value_and_grad: peak over torch.autograd.grad's",
        peaks["ftrain.value_and_grad"] / peaks["torch.autograd.grad"],
        "at most",
        1.25,
    )
    report.note("before: torch.func.grad 1004 MiB against 356 for torch.autograd.grad")


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
