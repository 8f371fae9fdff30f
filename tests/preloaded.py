"""Start Python processes that have imported torch and ftrain: 0.05 s of processor time instead of 3 s.

    done = preloaded.run("-m", "ftrain", "train", "run.yaml", cwd=folder)      # as subprocess.run
    process = preloaded.start("-c", "print(1)", stdout=subprocess.PIPE)         # as subprocess.Popen

Each is a fork of a server, of which every pytest process starts one. The server imports modules and
does nothing else: it has no tensor, no thread and no kernel. A process has the environment of the test,
except for what is read at a start of Python or at an import of torch.

The hash seed is the server's, drawn at its start: other than that of pytest, the same in all processes.
A test of imports, of hash seeds, of closed descriptors or of the end of an interpreter starts
`sys.executable` instead, because none of them happens here. A campaign starts new interpreters only.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.reduction
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any

from tests.campaign import CAMPAIGN

__all__ = ["CONTEXT", "Process", "run", "start"]

ROOT = Path(__file__).parents[1]
#: What the programs of the tests import; the server ignores those that are not installed.
MODULES = [
    "torch._dynamo",
    "torch.distributed._functional_collectives",
    "torch.distributed.device_mesh",
    "hypothesis",
    "pytest",
    "ftrain.cli._dispatch",
    "ftrain.cli._training",
    "ftrain.checkpoint",
    "ftrain.config.run",
    "ftrain.data",
    "ftrain.distributed",
    "ftrain.loop.callbacks",
    "ftrain.optim",
    "ftrain.tasks",
    "ftrain.transforms",
]
#: The environment in which the server starts: that of the import, before any test changes it.
ENVIRONMENT = dict(os.environ)

#: The context of `multiprocessing` whose processes are forks of the server.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(MODULES)

_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def ensure_server() -> None:
    """Start the server, if there is none, in the environment and directory that pytest started in."""
    here, environment = os.getcwd(), dict(os.environ)
    try:
        os.chdir(ROOT)
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(here)


class Process:
    """A started process, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, process: Any, stdin: IO[str] | None, stdout: IO[str] | None) -> None:
        self._process = process
        self.stdin, self.stdout = stdin, stdout
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code, minus the signal that killed the process, or None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self.returncode

    def communicate(
        self, text: str | None = None, timeout: float | None = None
    ) -> tuple[str, None]:
        """Write a text, read the remaining output, and wait for the end."""
        if self.stdin is not None:
            with self.stdin:
                self.stdin.write(text or "")
        late = threading.Timer(timeout, self.kill) if timeout else None
        if late:
            late.start()
        with contextlib.closing(self.stdout) if self.stdout else contextlib.nullcontext():
            said = self.stdout.read() if self.stdout else ""
        self.wait(timeout)
        if late:
            late.cancel()
        return said, None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdin, self.stdout):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        self.wait()


def start(
    *arguments: str,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> Process | subprocess.Popen[str]:
    """Start `python *arguments`: `-m module`, `-c code` or a script, with its own arguments.

    Args:
        *arguments: what would follow `sys.executable`.
        cwd: the directory; default: the current one.
        env: the environment; default: the current one.
        stdin: `subprocess.PIPE`, or None for an empty input.
        stdout: `subprocess.PIPE`, a descriptor, a file, or None for that of pytest.
        stderr: `subprocess.STDOUT`, a descriptor, a file, or None for that of pytest.
    """
    if CAMPAIGN:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, text=True,
        )  # fmt: skip
    ensure_server()
    ours: dict[int, int] = {}  # ends of pipes
    theirs: list[int] = []  # descriptors to close once the process has them
    given: dict[int, int] = {}

    def pipe(target: int) -> None:
        reader, writer = os.pipe()
        ours[target], end = (writer, reader) if target == 0 else (reader, writer)
        theirs.append(end)
        given[target] = end

    for target, wanted in enumerate((stdin, stdout, stderr)):
        if wanted is subprocess.PIPE:
            pipe(target)
        elif wanted is subprocess.STDOUT:
            given[target] = given[1]
        elif wanted is not None:
            given[target] = wanted if isinstance(wanted, int) else wanted.fileno()
    environment = dict(os.environ if env is None else env)
    process = CONTEXT.Process(
        target=_main,
        args=(
            arguments,
            os.fspath(cwd or os.getcwd()),
            environment,
            {target: _Descriptor(number) for target, number in given.items()},
        ),
    )
    process.start()
    _alive.add(process)
    for number in theirs:
        os.close(number)
    files = {target: os.fdopen(number, "r" if target else "w") for target, number in ours.items()}
    return Process(process, files.get(0), files.get(1))


def run(
    *arguments: str,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments` to its end; return its exit code and all that it wrote.

    Raises:
        AssertionError: with `check`, the exit code is not 0; the message shows the output.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start(*arguments, cwd=cwd, env=env, stdout=output, stderr=errors)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess(list(arguments), code, output.read(), errors.read())
    assert not check or code == 0, f"exit code {code}\n{done.stdout}{done.stderr}"
    return done


class _Descriptor:
    """A file descriptor that a new process gets a copy of."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (multiprocessing.reduction.DupFd(self.number),)  # type: ignore[no-untyped-call]


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _main(
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    descriptors: dict[int, _Descriptor],
) -> None:
    """Do in a fork of the server what `python *arguments` does."""
    for target, descriptor in descriptors.items():
        os.dup2(descriptor.number, target)
    for number in {descriptor.number for descriptor in descriptors.values()}:
        os.close(number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # else workers are forks of the server too
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    try:
        _execute(arguments, folder)
    except KeyboardInterrupt:  # ends an interpreter by the signal itself
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _execute(arguments: tuple[str, ...], folder: str) -> None:
    """Run code, a module or a script as `__main__`."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    kind, *others = arguments
    if kind == "-m":
        name, *rest = others
        sys.path.insert(0, folder)
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        code, *rest = others
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
        sys.argv = [kind, *others]
        runpy.run_path(kind, run_name="__main__")


@atexit.register
def _end_all() -> None:
    """Kill what failed tests have left: multiprocessing would wait for it."""
    for process in list(_alive):
        if process.is_alive():
            process.kill()
