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
from typing import Any

import pytest
import torch  # noqa: F401  # imported before the fork, for its two seconds
from hypothesis import Phase, settings

from tests.mutants.mutations import Mutant

__all__ = ["KILLED", "SURVIVED", "TIMED_OUT", "forked", "run_pytest", "trial"]

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


def trial(mutant: Mutant, module: str, tests: Sequence[str], timeout: float) -> str:
    """Return what became of a mutant: `KILLED`, `SURVIVED` or `TIMED_OUT`."""

    def run() -> dict[str, Any]:
        sys.meta_path.insert(0, _Finder(module, mutant))
        return {"code": run_pytest(["-x", *tests], [_WithoutShrinking()])}

    found = forked(run, timeout)
    if found.get("timeout"):
        return TIMED_OUT
    return SURVIVED if found.get("code") == 0 else KILLED


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


class _WithoutShrinking:
    """Plugin of pytest: a failure is all that is asked for, and shrinking one takes minutes."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Iterator[Any]:
        current = settings.get_profile(settings.get_current_profile_name())
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", current, phases=phases)
        settings.load_profile("mutants")
        return (yield)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importer that gives one module the mutant's source."""

    def __init__(self, module: str, mutant: Mutant) -> None:
        self._module, self._mutant = module, mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._module:
            return None
        where = self._mutant.path
        folder = [os.path.dirname(where)] if where.endswith("__init__.py") else None
        spec = importlib.util.spec_from_file_location(
            name, where, loader=self, submodule_search_locations=folder
        )
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        exec(compile(self._mutant.source, self._mutant.path, "exec"), module.__dict__)
