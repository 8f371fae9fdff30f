"""Time to save and load a state of 1 GB, compared with safetensors and one SHA-256 pass.

    python -m benchmarks.checkpoints

The rival does the least that finds a flipped bit: `safetensors.torch.save_file` and the sha256 of the
file to save; the sha256 of the file and `load_file` to load. The rival syncs nothing; ftrain syncs every
file and both directories before it returns, and copies loaded tensors into fresh memory. Files stay in
the page cache. The time for which an asynchronous save blocks the loop is compared with the time of a
copy of the state; both write to fresh pages.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import resource
import shutil
import statistics
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
            die_unless(
                sha256(theirs) == expected,
                "the safetensors file has another checksum than expected",
            )
            found = safetensors.torch.load_file(theirs)
            return {name: w.clone() for name, w in found.items()} if copies else found

        expected = save_rival(False)
        save()
        same = ftrain.tree.digest(load()) == ftrain.tree.digest(load_rival(False))
        die_unless(same, "the two readers returned different bytes")
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
    """Measure how long a background `save` blocks the loop, compared with a copy of the tensors.

    Each call begins with an allocator that holds no memory in reserve, so that all copies go to fresh
    pages; how many they touched is counted. The first contender changes from round to round.
    """
    small = {f"w{i}": torch.ones(3000) for i in range(300)}
    report.section("A loop that saves asynchronously waits, in")
    found, faults = _waits(base / "large", state, rounds)
    report.turns("asynchronous", found)
    for name, count in faults.items():
        report.figure(f"asynchronous: page faults: {name}", count, "", f"page faults of {name}")
    low, high = found.spread(_DONATED, _COPY)
    report.note(f"quartiles of the ratio {low:.2f} to {high:.2f}")
    report.target(
        "asynchronous save of donated states over a copy",
        found.ratio(_DONATED, _COPY), "at most", 1.1,
    )  # fmt: skip
    report.section("The same for 300 tensors of 12 kB")
    found, _ = _waits(base / "small", small, 5 * rounds)
    report.turns("asynchronous, small", found, "us")


_DONATED, _IMMUTABLE, _COPY = "save, donated states", "save, immutable states", "a copy"


def _waits(
    base: Path, state: dict[str, torch.Tensor], rounds: int
) -> tuple[Turns, dict[str, float]]:
    """Return the seconds of each call, and the median number of page faults per call."""
    with (
        checkpoint.Store(base / "copied", keep_last=1, asynchronous=True) as copying,
        checkpoint.Store(base / "held", keep_last=1, asynchronous=True, copy=False) as holding,
    ):
        steps = iter(range(10**6))
        calls = {
            _DONATED: lambda: copying.save(state, step=next(steps)),
            _IMMUTABLE: lambda: holding.save(state, step=next(steps)),
            _COPY: lambda: ftrain.tree.map(torch.clone, state),
        }
        names = list(calls)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        faults: dict[str, list[int]] = {name: [] for name in names}
        gc.collect()
        for turn in range(rounds + 1):
            for name in names[turn % 3 :] + names[: turn % 3]:
                copying.wait()
                holding.wait()
                _give_memory_back()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.perf_counter()
                kept = calls[name]()
                taken = time.perf_counter() - start
                touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                del kept
                if turn:
                    seconds[name].append(taken)
                    faults[name].append(touched)
    return Turns(seconds), {name: statistics.median(faults[name]) for name in names}


def _give_memory_back() -> None:
    """Return free memory to the operating system, so that copies use new pages (glibc only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt"):
        # A fixed threshold, because glibc's own grows to 32 MB as memory is freed.
        libc.mallopt(_MMAP_THRESHOLD, 1 << 20)
        libc.malloc_trim(0)


_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>


def _compile_cache(
    report: Report, base: Path, sizes: Sizes | None, backend: Literal["inductor", "eager"]
) -> None:
    """Measure the first step of a new process, without a compile cache and with one from a run."""
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
