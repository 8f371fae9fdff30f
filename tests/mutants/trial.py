"""Tests of one mutant, in a process forked after torch was imported and before ftrain was."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, settings

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
    "prepare",
    "run_pytest",
    "trial",
]  # fmt: skip

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


class Outcome(NamedTuple):
    """Outcome of the trial of a mutant.

    Attributes:
        result: `KILLED`, `SURVIVED` or `TIMED_OUT`.
        test: the test that failed, or the file that could not be imported; None after a crash.
    """

    result: str
    test: str | None = None


def prepare() -> None:
    """Import what most tests import, before the forks; share the compiled machine code among them."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / "build" / "mutants" / "inductor"))
    # Without a pool of processes, which would not survive the fork.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch._inductor.compile_fx  # noqa: F401


def trial(
    install: Callable[[], None], tests: Sequence[str], timeout: float, examples: int | None = None
) -> Outcome:
    """Run tests, until one fails, in a forked process.

    Args:
        install: puts the mutant into the process, such as `importing` and `swap.swap` do.
        tests: the tests, as pytest names them.
        timeout: in seconds.
        examples: the number of examples of each property; default: the suite's.
    """

    def run() -> dict[str, Any]:
        install()
        failed = _Failures()
        code = run_pytest(["-x", "-m", MARKS, *tests], [WithoutShrinking(examples), failed])
        return {"code": code, "test": next(iter(failed.tests), None)}

    found = forked(run, timeout)
    if found.get("timeout"):
        return Outcome(TIMED_OUT)
    if found.get("code") in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return Outcome(SURVIVED)
    return Outcome(KILLED, found.get("test"))


def importing(module: str, path: str, source: str) -> Callable[[], None]:
    """Return a function after whose call a module, not imported yet, is imported with this source."""
    return lambda: sys.meta_path.insert(0, _Finder(module, path, source))


def failures(tests: Sequence[str], timeout: float) -> list[str]:
    """Return the tests that fail without a mutant."""

    def run() -> dict[str, Any]:
        failed = _Failures()
        run_pytest(tests, [WithoutShrinking(), failed])
        return {"tests": failed.tests}

    found: list[str] = forked(run, timeout).get("tests", list(tests)) if tests else []
    return found


def run_pytest(arguments: Sequence[str], plugins: Sequence[object] = ()) -> int:
    # Rewritten assertions: pytest's importer would load a module whose doctests it runs, not `_Finder`.
    quiet = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--assert=plain"]
    return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


def forked(run: Callable[[], dict[str, Any]], timeout: float) -> dict[str, Any]:
    """Return what `run` returns in a forked process; `{"timeout": True}` if it takes too long."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _become(run, theirs)
    os.close(theirs)
    try:
        return _read(ours, time.monotonic() + timeout)
    finally:
        os.close(ours)
        # The group: a test may have started processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _become(run: Callable[[], dict[str, Any]], pipe: int) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        text = json.dumps(run()).encode()
        while text:
            text = text[os.write(pipe, text) :]
        code = 0
    finally:
        os._exit(code)


def _read(pipe: int, until: float) -> dict[str, Any]:
    parts = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return {"timeout": True}
        part = os.read(pipe, 1 << 20)
        if not part:
            return json.loads(b"".join(parts)) if parts else {"crashed": True}
        parts.append(part)


class WithoutShrinking:
    """Plugin of pytest: a failure is all that is asked for, and shrinking one takes minutes."""

    def __init__(self, examples: int | None = None) -> None:
        self._options = {} if examples is None else {"max_examples": examples}

    def load(self) -> None:
        current = settings.get_profile(settings.get_current_profile_name())
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", current, phases=phases, **self._options)
        settings.load_profile("mutants")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Iterator[Any]:
        self.load()
        return (yield)


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


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importer that gives one module another source."""

    def __init__(self, module: str, path: str, source: str) -> None:
        self._module, self._path, self._source = module, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._module:
            return None
        where = self._path
        folder = [os.path.dirname(where)] if where.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            name, where, loader=self, submodule_search_locations=folder
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)
