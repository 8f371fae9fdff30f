"""Train on a full disk, resume with free space, and compare with an uninterrupted run.

    python -m tests.cli.full_disk             # all of the following
    python -m tests.cli.full_disk --sizes     # on a tmpfs of 4 kB, 8 kB, ...; needs the right to mount
    python -m tests.cli.full_disk --writes    # the k-th write fails, alone or with all later ones
    python -m tests.cli.full_disk --limits    # with limits of file sizes (RLIMIT_FSIZE)

A run that fails must print one sentence that names the cause and the remedy, without a traceback, and
leave no temporary file. After a resume with free space, its checkpoints must equal those of the
uninterrupted run, byte for byte, except the numbers of logged rows, of which some could not be written.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ftrain.cli import main as command
from ftrain.loop import plots
from tests.cli.interruptions import checkpoints
from tests.config.tiny import configured

#: Functions of `os` that need free space on the disk.
NEED_SPACE = ("open", "write", "fsync", "mkdir", "replace", "rename")
CAUSE = re.compile("No space left on device|File too large")
REMEDY = re.compile(
    r"free (some space|[0-9.]+ [kMG]B)|raise the limit \(ulimit -f\)|write elsewhere"
)
LIMITS = (0, 1, 100, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 50000)


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    said: str

    def faults(self, folder: pathlib.Path) -> list[str]:
        """Return the faults in the output and files of a run that ended on a full disk."""
        found = []
        ends = [line for line in self.said.splitlines() if _is_end(line)]
        if self.code not in (0, 1, 2):
            found.append(f"exit code {self.code}")
        if "Traceback" in self.said:
            found.append("a traceback")
        if self.code and len(ends) != 1:
            found.append(f"{len(ends)} closing sentences")
        if self.code and ends and not (CAUSE.search(ends[0]) and REMEDY.search(ends[0])):
            found.append("a closing sentence without cause and remedy")
        if self.said.count("\nnote: the checkpoint of step") > 1:
            found.append("a repeated note")
        left = [path for path in folder.rglob("*") if path.name.startswith((".draft", ".tmp"))]
        return found + [f"{path.name} left" for path in left]


def _is_end(line: str) -> bool:
    return line.startswith(("ftrain train:", "ftrain resume:")) or "output_dir: " in line


def commanded(arguments: list[str], prepare: Callable[[], Any] = lambda: None) -> Outcome:
    """Call `prepare` and run a command in a forked process; return the command's outcome."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        code = 99
        try:
            os.close(reading)
            for name, number in (("stdout", 1), ("stderr", 2)):
                os.dup2(writing, number)
                stream = open(os.dup(number), "w", buffering=1)  # noqa: SIM115  # pytest's is another
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            warnings.resetwarnings()
            prepare()
            code = command(arguments)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as output:
        said = output.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def train(configuration: pathlib.Path, folder: pathlib.Path) -> list[str]:
    return ["train", str(configuration), f"output_dir={folder}"]


def recovered(configuration: pathlib.Path, folder: pathlib.Path) -> Outcome:
    """Run again with free space: resume the run if it left a configuration, else train."""
    began = (folder / "config.yaml").is_file()
    arguments = ["resume", str(folder)] if began else train(configuration, folder)
    return commanded(arguments)


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Return the bytes of a run's checkpoints, without the numbers of rows in its logs."""
    return {
        name: re.sub(rb'"rows": *[0-9]+', b"", data)
        for name, data in checkpoints(folder).items()
        if not name.endswith("/SHA256SUMS")
    }


def tried(
    configuration: pathlib.Path,
    folder: pathlib.Path,
    uninterrupted: dict[str, bytes],
    prepare: Callable[[], Any],
    free: Callable[[], Any] = lambda: None,
) -> tuple[Outcome, list[str]]:
    """Run on a full disk and again with free space; return the first outcome, and all faults."""
    first = commanded(train(configuration, folder), prepare)
    faults = first.faults(folder)
    free()
    second = recovered(configuration, folder)
    if second.code:
        faults.append(f"exit code {second.code} with space: {second.said}")
    elif content(folder) != uninterrupted:
        faults.append("other checkpoints")
    if faults:
        faults.append(first.said)
    return first, faults


class KthWrite:
    """Replacement of functions of `os`, of which the k-th call in a directory and all later ones fail.

    Args:
        folder: the directory.
        k: the number of the call, from 0.
        sticky: False: only this call fails.
    """

    def __init__(self, folder: pathlib.Path, k: int, sticky: bool) -> None:
        self.folder, self.k, self.sticky, self.count = os.fspath(folder), k, sticky, -1

    def install(self) -> None:
        for name in NEED_SPACE:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if self._concerns(name, arguments):
                self.count += 1
                if self.count == self.k or (self.sticky and self.count > self.k):
                    code = errno.ENOSPC
                    raise OSError(code, os.strerror(code), *self._path(arguments))
            return function(*arguments, **options)

        return called

    def _concerns(self, name: str, arguments: tuple[Any, ...]) -> bool:
        first = arguments[0]
        if name == "open" and not arguments[1] & os.O_CREAT:
            return False
        if isinstance(first, int):
            with contextlib.suppress(OSError):
                first = os.readlink(f"/proc/self/fd/{first}")
        return os.path.abspath(str(first)).startswith(self.folder)

    def _path(self, arguments: tuple[Any, ...]) -> tuple[str, ...]:
        return () if isinstance(arguments[0], int) else (os.fspath(arguments[0]),)


def count(configuration: pathlib.Path, folder: pathlib.Path) -> int:
    """Return the number of operations of an uninterrupted run that need free space."""
    reading, writing = os.pipe()

    def prepare() -> None:
        never = KthWrite(folder, -1, sticky=False)
        never.install()
        exits = os._exit

        def leave(code: int) -> None:
            os.write(writing, str(never.count + 1).encode())
            exits(code)

        os._exit = leave  # type: ignore[assignment]

    outcome = commanded(train(configuration, folder), prepare)
    os.close(writing)
    with open(reading) as pipe:
        assert outcome.code == 0, outcome.said
        return int(pipe.read())


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def can_mount() -> bool:
    """Return True if this process may mount a tmpfs."""
    with tempfile.TemporaryDirectory() as place:
        return mounted(place, 4096) and unmounted(place)


def mounted(place: str | pathlib.Path, size: int, *options: str) -> bool:
    chosen = ",".join((*options, f"size={size}"))
    command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(place)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def unmounted(place: str | pathlib.Path) -> bool:
    return subprocess.run(["umount", str(place)], check=False).returncode == 0


@contextlib.contextmanager
def small_disk(place: pathlib.Path, size: int) -> Iterator[Callable[[], Any]]:
    """Mount a disk of `size` bytes; yield a function that enlarges the disk."""
    place.mkdir()
    assert mounted(place, size)
    try:
        yield lambda: mounted(place, 64 << 20, "remount")
    finally:
        assert unmounted(place)


class Project:
    """A configuration with its uninterrupted run, in a directory."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.number = folder, 0
        plots.image_grid(torch.zeros(1, 2, 2))  # imports matplotlib once, before the forks
        self.configuration = configured(folder)
        outcome = commanded(train(self.configuration, folder / "uninterrupted"))
        assert outcome.code == 0, outcome.said
        self.uninterrupted = content(folder / "uninterrupted")

    def new(self) -> pathlib.Path:
        self.number += 1
        return self.folder / f"run-{self.number}"

    def on_disk_of(self, size: int) -> tuple[Outcome, list[str]]:
        place = self.new()
        with small_disk(place, size) as enlarge:
            return tried(
                self.configuration, place / "run", self.uninterrupted, lambda: None, enlarge
            )

    def with_failing_write(self, k: int, sticky: bool) -> tuple[Outcome, list[str]]:
        folder = self.new()
        prepare = KthWrite(folder, k, sticky).install
        return tried(self.configuration, folder, self.uninterrupted, prepare)

    def with_limit(self, size: int) -> tuple[Outcome, list[str]]:
        return tried(self.configuration, self.new(), self.uninterrupted, lambda: limited(size))


def campaign(parts: list[str]) -> int:
    """Run parts of the campaign; print each result, and return the number of runs with faults."""
    wrong = 0
    began = time.monotonic()

    def report(what: str, result: tuple[Outcome, list[str]]) -> None:
        nonlocal wrong
        outcome, faults = result
        wrong += bool(faults)
        print(f"{what}: exit code {outcome.code}", *faults, sep="\n  ", flush=True)

    with tempfile.TemporaryDirectory(prefix="ftrain-full-disk-") as name:
        project = Project(pathlib.Path(name))
        if "sizes" in parts and not can_mount():
            print("sizes: skipped, this process may not mount a tmpfs")
        elif "sizes" in parts:
            size, whole = 0, 0
            while whole < 2:  # until two sizes were large enough for the whole run
                size += 4096
                outcome, faults = project.on_disk_of(size)
                report(f"a disk of {size} bytes", (outcome, faults))
                whole = 0 if outcome.code or CAUSE.search(outcome.said) else whole + 1
        if "writes" in parts:
            number = count(project.configuration, project.new())
            for k in range(number):
                for sticky in (True, False):
                    what = "and all after it" if sticky else "alone"
                    report(f"write {k} of {number} {what}", project.with_failing_write(k, sticky))
        if "limits" in parts:
            for size in LIMITS:
                report(f"files of at most {size} bytes", project.with_limit(size))
    print(f"{wrong} with faults, {time.monotonic() - began:.0f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("sizes", "writes", "limits")
    for name in names:
        parser.add_argument(f"--{name}", action="store_true")
    options = vars(parser.parse_args())
    return min(campaign([each for each in names if options[each]] or [*names]), 1)


if __name__ == "__main__":
    sys.exit(main())
