"""Tests of one mutant, in a forked process whose processor time is limited.

Time is the processor's: a limit on the clock would stop trials on a busy machine, and a mutant that a
limit stops counts as killed. `forked` also stops a process that neither computes nor ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings

from tests import preloaded
from tests.mutants.started import sitecustomize
from tests.mutants.started.sitecustomize import Finder
from tests.mutants.subjects import MARKS, ROOT

__all__ = [
    "KILLED",
    "SURVIVED",
    "TIMED_OUT",
    "Outcome",
    "WithoutShrinking",
    "failures",
    "forked",
    "importing",
    "is_property",
    "passed_on",
    "prepare",
    "run_pytest",
    "trial",
]  # fmt: skip

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
SETTINGS = (
    "_hypothesis_internal_use_settings"  # the attribute where Hypothesis keeps those of a test
)


class Outcome(NamedTuple):
    """Outcome of the trial of a mutant.

    Attributes:
        result: `KILLED`, `SURVIVED` or `TIMED_OUT`.
        test: the test that failed, or the file that could not be imported; None after a crash.
    """

    result: str
    test: str | None = None


def prepare() -> None:
    """Import what most tests import, before the forks; keep what is compiled without mutants."""
    os.environ[CACHE] = str(ROOT / "build" / "mutants" / "inductor")
    # Without a pool of processes, which would not survive the fork.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import jax  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401


def trial(
    install: Callable[[], object],
    tests: Sequence[str],
    timeout: float,
    examples: int | None = None,
    marks: str = MARKS,
) -> Outcome:
    """Run tests, until one fails, in a forked process.

    It starts with the machine code that was compiled without mutants. What it adds, a mutant may have
    changed, so that it is deleted.

    Args:
        install: puts the mutant into the process, such as `importing` and `swap.swap` do.
        tests: the tests, as pytest names them.
        timeout: in seconds of a processor.
        examples: at most so many examples of each property; default: the suite's.
        marks: the expression of marks that selects tests; "" for all.
    """

    with tempfile.TemporaryDirectory(prefix="ftrain-mutant-", ignore_cleanup_errors=True) as cache:

        def run() -> dict[str, Any]:
            if Path(os.environ.get(CACHE, "")).is_dir():
                shutil.copytree(os.environ[CACHE], cache, dirs_exist_ok=True)
            os.environ[CACHE] = preloaded.ENVIRONMENT[CACHE] = cache
            install()
            failed = _Failures()
            code = run_pytest(["-x", "-m", marks, *tests], [WithoutShrinking(examples), failed])
            return {"code": code, "test": next(iter(failed.tests), None)}

        found = forked(run, timeout)
    if found.get("timeout"):
        return Outcome(TIMED_OUT)
    if found.get("code") in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return Outcome(SURVIVED)
    return Outcome(KILLED, found.get("test"))


def importing(module: str, path: str, source: str) -> Callable[[], None]:
    """Return a function after whose call a module, not imported yet, is imported with this source."""
    return lambda: sys.meta_path.insert(0, Finder(module, path, source))


def passed_on(module: str, path: str, source: str, file: Path) -> None:
    """Give a module this source in each Python process that this one or its server starts.

    Args:
        module: the name under which it is imported.
        path: its file.
        source: its source.
        file: where these are written.
    """
    file.write_text(json.dumps([module, path, source]))
    before = os.environ.get("PYTHONPATH")
    folder = str(Path(sitecustomize.__file__).parent)
    os.environ["PYTHONPATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
    os.environ[sitecustomize.VARIABLE] = str(file)
    for name in ("PYTHONPATH", sitecustomize.VARIABLE):
        preloaded.ENVIRONMENT[name] = os.environ[name]


def failures(tests: Sequence[str], timeout: float) -> list[str]:
    """Return the tests that fail without a mutant."""

    def run() -> dict[str, Any]:
        failed = _Failures()
        run_pytest(tests, [WithoutShrinking(), failed])
        return {"tests": failed.tests}

    found: list[str] = forked(run, timeout).get("tests", list(tests)) if tests else []
    return found


def run_pytest(arguments: Sequence[str], plugins: Sequence[object] = ()) -> int:
    # Rewritten assertions: pytest's importer would load a module whose doctests it runs, not `Finder`.
    quiet = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--assert=plain"]
    return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


def forked(run: Callable[[], dict[str, Any]], timeout: float, idle: float = 60.0) -> dict[str, Any]:
    """Return what `run` returns in a forked process.

    Args:
        run: its result is written as JSON.
        timeout: in seconds of a processor, for the process and for each that it starts.
        idle: seconds without any computation after which it is stopped: it waits for a lock or a pipe.

    Returns:
        The result; `{"timeout": True}` if the process was stopped, `{"crashed": True}` if it crashed.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _become(run, theirs, timeout)
    os.close(theirs)
    found: dict[str, Any] = {"timeout": True}
    try:
        found = _read(ours, child, idle)
    finally:
        os.close(ours)
        # The group: a test may have started processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    stopped = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    return {"timeout": True} if stopped else found


def _become(run: Callable[[], dict[str, Any]], pipe: int, timeout: float) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        seconds = max(1, round(timeout))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        text = json.dumps(run()).encode()
        while text:
            text = text[os.write(pipe, text) :]
        code = 0
    finally:
        os._exit(code)


def _read(pipe: int, group: int, idle: float) -> dict[str, Any]:
    """Return what a process writes until it ends, or `{"timeout": True}` once its group is idle."""
    parts = []
    computed, since = 0.0, time.monotonic()
    while True:
        if not select.select([pipe], [], [], 5.0)[0]:
            now = _processor_time(group)
            if now > computed + 0.1:
                computed, since = now, time.monotonic()
            elif time.monotonic() > since + idle:
                return {"timeout": True}
            continue
        part = os.read(pipe, 1 << 20)
        if not part:
            return json.loads(b"".join(parts)) if parts else {"crashed": True}
        parts.append(part)


def _processor_time(group: int) -> float:
    """Return the seconds that the processes of a group have computed; the clock's without `/proc`."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()  # a name may hold spaces
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return (
        ticks / os.sysconf("SC_CLK_TCK") if Path("/proc/self/stat").exists() else time.monotonic()
    )


def is_property(item: Any) -> bool:
    """Return True if a test that pytest has collected is run on examples of Hypothesis."""
    return hasattr(getattr(item, "function", None), SETTINGS)


class WithoutShrinking:
    """Plugin of pytest: a failure is all that is asked for, and shrinking one takes minutes.

    Args:
        examples: at most so many examples of each property; default: as many as the test asks for.
    """

    def __init__(self, examples: int | None = None) -> None:
        self._examples = examples

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Set the options of each test: a profile would not reach tests that are imported already."""
        functions = {getattr(item, "function", None) for item in items}
        for function in functions:
            of_test = getattr(function, SETTINGS, None)
            if of_test is not None:
                most = min(of_test.max_examples, self._examples or of_test.max_examples)
                phases = tuple({Phase.explicit, Phase.generate} & set(of_test.phases))
                changed = settings(of_test, max_examples=most, phases=phases)
                setattr(function, SETTINGS, changed)


class _Failures:
    """Plugin of pytest that notes the tests that fail, and the files that cannot be imported."""

    def __init__(self) -> None:
        self.tests: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.tests.append(report.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.tests:
            self.tests.append(report.nodeid)
