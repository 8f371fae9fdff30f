"""Contenders: ftrain, hand-written loops, and other libraries, each at its best settings."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch

import ftrain
from benchmarks import jax_step
from benchmarks.contenders import HandForward, HandUpdate, hand_written, ours, steps
from benchmarks.peers import libraries, trainers
from benchmarks.peers.loops import Loop, stepwise
from benchmarks.peers.workloads import Workload
from ftrain import transforms

__all__ = [
    "CONTENDERS",
    "DONATED",
    "DONATED_CPP",
    "HAND",
    "TORCH_PEERS",
    "Contender",
    "UnsupportedError",
]

Kind = Literal["ftrain", "hand", "library", "jax"]


class UnsupportedError(Exception):
    """Error for a contender that has no program for a workload."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """Program that takes the training step of a workload: ftrain, a loop by hand or a peer.

    Attributes:
        title: the name in tables.
        kind: the kind of program.
        settings: the settings, in words.
        build: `build(workload, backend) -> Loop`; the backend is `torch.compile`'s, and `None` compiles
            nothing.
        packages: the packages that must be installed.
        tolerance: an addition to the workload's tolerance, because the formulas of a peer differ.
    """

    title: str
    kind: Kind
    settings: str
    build: Callable[[Workload, str | None], Loop]
    packages: tuple[str, ...] = ()
    tolerance: float = 0.0

    @property
    def missing(self) -> str:
        """The packages of this contender that are not installed, separated by commas."""
        return ", ".join(p for p in self.packages if importlib.util.find_spec(p) is None)

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages of this contender."""
        return {package: importlib.metadata.version(package) for package in self.packages}


def _ours(work: Workload, backend: str | None, **options: Any) -> Loop:
    compiler: Any = "inductor" if backend == "inductor" else "eager"
    settings: Any = {"accumulate": work.accumulate, "precision": work.precision}
    return stepwise(ours(work.task(), backend=compiler, **settings, **options))


def _from_cpp(work: Workload, backend: str | None) -> Loop:
    return _ours(work, backend, cpp_wrapper=backend == "inductor")


def _scanned(work: Workload, backend: str | None, cpp_wrapper: bool = False) -> Loop:
    task, k = work.task(), work.scan
    made = steps(task, accumulate=work.accumulate, precision=work.precision)
    compiler: Any = "inductor" if backend == "inductor" else "eager"
    step = ftrain.compile(
        transforms.scan(made.train_step, k),
        donate=True,
        backend=compiler,
        cpp_wrapper=cpp_wrapper and backend == "inductor",
    )
    state = made.init_state(0)
    n = len(task.batches)
    in_turn = [task.batches[i % n] for i in range(math.lcm(k, n))]
    groups = [transforms.stack(in_turn[i : i + k]) for i in range(0, len(in_turn), k)]
    batches = itertools.cycle(groups)

    def call() -> torch.Tensor:
        nonlocal state
        state, metrics = step(state, next(batches))
        losses: torch.Tensor = metrics["loss"]
        return losses

    return stepwise(call, k)


def _hand(forward: HandForward, update: HandUpdate, work: Workload, backend: str | None) -> Loop:
    settings: Any = {"accumulate": work.accumulate, "precision": work.precision}
    return stepwise(hand_written(work.task(), forward, update, backend=backend, **settings))


def _by_hand(
    title: str, settings: str, forward: HandForward, update: HandUpdate = "fused"
) -> Contender:
    build = functools.partial(_hand, forward, update)
    return Contender(f"by hand, {title}", "hand", settings, build)


def _jax(work: Workload, backend: str | None) -> Loop:
    if work.jax_loss is None:
        raise UnsupportedError(f"{work.name} is not written in JAX here")
    step = jax_step.training_step(
        work.task(), work.jax_loss, accumulate=work.accumulate, precision=work.precision
    )
    return stepwise(step)


FUSED = "loss under torch.compile, fused AdamW"
DONATED = "ftrain-donated"
DONATED_CPP = "ftrain-donated-cpp"
CONTENDERS: dict[str, Contender] = {
    "ftrain-eager": Contender(
        "ftrain, eager", "ftrain", "train_step", functools.partial(_ours, compiled=False)
    ),
    "ftrain": Contender(
        "ftrain, compiled", "ftrain", "ftrain.compile", functools.partial(_ours, donate=False)
    ),
    DONATED: Contender(
        "ftrain, compiled and donated", "ftrain", "ftrain.compile(donate=True)", _ours
    ),
    DONATED_CPP: Contender(
        "ftrain, donated, C++ wrapper",
        "ftrain",
        "ftrain.compile(donate=True, cpp_wrapper=True)",
        _from_cpp,
    ),
    "ftrain-scan": Contender(
        "ftrain, scan", "ftrain", "ftrain.compile(scan(train_step, k), donate=True)", _scanned
    ),
    "ftrain-scan-cpp": Contender(
        "ftrain, scan, C++ wrapper",
        "ftrain",
        "ftrain.compile(scan(train_step, k), donate=True, cpp_wrapper=True)",
        functools.partial(_scanned, cpp_wrapper=True),
    ),
    "eager-foreach": _by_hand("eager, foreach", "foreach AdamW and clipping", "eager", "foreach"),
    "eager-fused": _by_hand("eager, fused", "fused AdamW, foreach clipping", "eager"),
    "compiled-model": _by_hand(
        "compiled model", "torch.compile(model), fused AdamW", "compiled model"
    ),
    "compiled-loss": _by_hand("compiled loss", FUSED, "compiled loss"),
    "compiled-optimizer": _by_hand(
        "compiled loss and optimizer",
        "loss, clipping and AdamW under torch.compile",
        "compiled loss",
        "compiled fused",
    ),
    "compiled-autograd": _by_hand(
        "compiled autograd",
        "loss under torch.compile, compiled autograd, fused AdamW",
        "compiled autograd",
    ),
    "lightning": Contender(
        "Lightning",
        "library",
        f"barebones, {FUSED} (foreach in bf16-mixed)",
        trainers.lightning,
        ("lightning",),
    ),
    "fabric": Contender("Lightning Fabric", "library", FUSED, libraries.fabric, ("lightning",)),
    "accelerate": Contender("Accelerate", "library", FUSED, libraries.accelerate, ("accelerate",)),
    "transformers": Contender(
        "transformers.Trainer",
        "library",
        f"no logs or files, {FUSED}",
        trainers.transformers,
        ("transformers", "accelerate"),
    ),
    "keras": Contender(
        "Keras on torch",
        "library",
        "fit of a TorchModuleWrapper, loss under torch.compile, Keras' AdamW",
        trainers.keras,
        ("keras",),
        # It adds epsilon before the bias correction, which matters for gradients near it: 3e-4 measured.
        tolerance=1e-3,
    ),
    "torchopt": Contender(
        "TorchOpt",
        "library",
        "loss under torch.compile, adamw in place",
        libraries.torchopt,
        ("torchopt",),
    ),
    "posteriors": Contender(
        "posteriors",
        "library",
        "posteriors.torchopt, eager: torch.compile does not apply inside torch.func",
        libraries.posteriors,
        ("posteriors", "torchopt"),
    ),
    "jax": Contender("JAX and optax", "jax", "jit, donated state", _jax, ("jax", "optax")),
}
HAND = [name for name, each in CONTENDERS.items() if each.kind == "hand"]
TORCH_PEERS = [name for name, each in CONTENDERS.items() if each.kind in ("hand", "library")]
