"""Checkpoints: a state of one gigabyte, saved and loaded, against safetensors and one sha256.

    python -m benchmarks.checkpoints

The rival is the least that finds a flipped bit: `safetensors.torch.save_file` and the sha256 of
what it wrote; the sha256 of the file and `load_file`. It syncs nothing; ftrain syncs every file
and both directories before it returns, and copies what it loads into fresh memory. Files stay in
the page cache. Then: how long an asynchronous save keeps the loop, against a copy of the state.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch

import ftrain
from benchmarks.contenders import Sizes
from benchmarks.latency import in_fresh_process
from benchmarks.measure import Report, Turns, arguments, die_unless, take_turns
from ftrain import checkpoint

TENSORS = 48


def run(
    quick: bool = False,
    *,
    megabytes: int = 1000,
    directory: str | None = None,
    sizes: Sizes | None = None,
    backend: Literal["inductor", "eager"] = "inductor",
) -> Report:
    report = Report(
        "checkpoints", f"A state of {megabytes} MB: save, load, and what a loop waits for"
    )
    rounds = 2 if quick else 7
    numbers = megabytes * 1_000_000 // 4 // TENSORS
    generator = torch.Generator().manual_seed(0)
    state = {f"w{i}": torch.randn(numbers, generator=generator) for i in range(TENSORS)}
    blank = {name: torch.zeros(()).expand(w.shape).clone() for name, w in state.items()}
    with tempfile.TemporaryDirectory(dir=directory, prefix="ftrain-benchmark-") as name:
        base = Path(name)
        ours, theirs = base / "ours", base / "theirs.safetensors"

        def save() -> None:
            shutil.rmtree(ours, ignore_errors=True)
            checkpoint.save(ours, state)

        def save_rival(sync: bool) -> str:
            theirs.unlink(missing_ok=True)
            safetensors.torch.save_file(state, theirs)
            if sync:
                with open(theirs, "rb") as file:
                    os.fsync(file.fileno())
            return sha256(theirs)

        def load() -> dict[str, torch.Tensor]:
            return checkpoint.load(ours, like=blank)[0]

        def load_rival(copies: bool) -> dict[str, torch.Tensor]:
            die_unless(sha256(theirs) == expected, "the file changed")
            found = safetensors.torch.load_file(theirs)
            return {name: w.clone() for name, w in found.items()} if copies else found

        expected = save_rival(False)
        save()
        same = ftrain.tree.digest(load()) == ftrain.tree.digest(load_rival(False))
        die_unless(same, "the two loaded other bits")
        plain, synced = "safetensors + sha256", "safetensors + fsync + sha256"
        turns = take_turns(
            {"ftrain": save, plain: lambda: save_rival(False), synced: lambda: save_rival(True)},
            rounds=rounds, seconds=0.0, warmup=1,
        )  # fmt: skip
        _report(report, "save", turns, [plain, synced], megabytes)
        copied = "safetensors + sha256 + copy"
        turns = take_turns(
            {"ftrain": load, plain: lambda: load_rival(False), copied: lambda: load_rival(True)},
            rounds=rounds, seconds=0.0, warmup=1,
        )  # fmt: skip
        _report(report, "load", turns, [plain, copied], megabytes)
        _asynchronous(report, base, state, rounds)
    with tempfile.TemporaryDirectory(prefix="ftrain-benchmark-") as name:
        _compile_cache(report, Path(name), sizes, backend)
    return report


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(report: Report, what: str, turns: Turns, rivals: list[str], megabytes: int) -> None:
    report.section(f"{what}, in")
    report.turns(what, turns)
    rate = megabytes / 1e3 / turns.median("ftrain")
    report.figure(f"{what}: rate", rate, "GB/s", "ftrain")
    report.target(
        f"{what}: rate over {rivals[0]}", turns.ratio(rivals[0], "ftrain"), "at least", 0.7
    )
    for rival in rivals[1:]:
        report.figure(
            f"{what}: over {rival}", turns.ratio(rival, "ftrain"), "x", f"rate over {rival}"
        )
    low, high = turns.spread(rivals[0], "ftrain")
    report.note(f"quartiles of the first ratio {low:.2f} to {high:.2f}")


def _asynchronous(report: Report, base: Path, state: dict[str, torch.Tensor], rounds: int) -> None:
    """What `save` keeps the loop for, when nothing is in flight."""
    with (
        checkpoint.Store(base / "copied", keep_last=1, asynchronous=True) as copying,
        checkpoint.Store(base / "held", keep_last=1, asynchronous=True, donates=False) as holding,
    ):
        steps = iter(range(10**6))
        waiting = {
            "save, donated states": lambda: copying.save(state, step=next(steps)),
            "save, immutable states": lambda: holding.save(state, step=next(steps)),
            "tree.map(torch.clone)": lambda: ftrain.tree.map(torch.clone, state),
        }

        def timed(name: str) -> float:
            copying.wait()
            holding.wait()
            start = time.perf_counter()
            kept = waiting[name]()
            seconds = time.perf_counter() - start
            del kept
            return seconds

        found: dict[str, list[float]] = {name: [] for name in waiting}
        for turn in range(rounds + 1):
            for name in waiting:
                seconds = timed(name)
                if turn:
                    found[name].append(seconds)
    report.section("A loop that saves asynchronously waits, in")
    turns = Turns(found)
    report.turns("asynchronous", turns)
    report.target(
        "asynchronous save of donated states over a copy",
        turns.ratio("save, donated states", "tree.map(torch.clone)"), "at most", 1.1,
    )  # fmt: skip


def _compile_cache(
    report: Report, base: Path, sizes: Sizes | None, backend: Literal["inductor", "eager"]
) -> None:
    """The first step of a process on a machine with no cache, and with the run's copied there."""
    cold = in_fresh_process("ours", base / "run", sizes, backend)
    shutil.copytree(base / "run", base / "another" / "machine")
    shutil.rmtree(base / "run")
    resumed = in_fresh_process("ours", base / "another" / "machine", sizes, backend)
    report.section(
        "The compile cache beside the checkpoints: seconds of a process's first GPT step"
    )
    report.figure("compile: cold", cold.call, "s", "no cache on this machine")
    report.figure("compile: resumed", resumed.call, "s", "the run's cache copied here")
    report.figure("compile: speed-up", cold.call / resumed.call, "x", "first step")
    report.figure(
        "compile: process", cold.process / resumed.process, "x", "from the process's start"
    )


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
