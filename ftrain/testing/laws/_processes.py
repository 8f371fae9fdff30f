"""Calls of the steps under test in a new process, which imports them by name or unpickles them.

Read next: `_worker.py`, the program of that process.
"""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.testing.laws._sites import Event, recorded
from ftrain.testing.laws._subject import Call, name_of, parts_of

__all__ = [
    "Job",
    "in_new_process",
    "outputs_in_new_process",
    "recorded_in_new_process",
    "reference_to",
]

_DEADLINE = 600  # seconds


class Job(NamedTuple):
    """Description of a new process's work, which is `task(subject, payload)`.

    Attributes:
        task: a function at the top of a module of this package.
        subject: a string `"module:name"`, or the pickled subject.
        payload: the pickled argument.
        path: `sys.path`, to find the same modules.
        main: the file of the program, whose functions pickle as `__main__`; `None` if it has none.
        threads: the number of threads of torch.
    """

    task: Callable[[Any, Any], Any]
    subject: str | bytes
    payload: bytes
    path: list[str]
    main: str | None
    threads: int


def outputs_in_new_process(subject: Any, calls: Sequence[Call], *, hash_seed: int) -> list[Any]:
    """Call the subject (the steps under test) in one new process; return the outputs of all calls.

    Raises:
        TypeError: a new process cannot find the subject.
    """
    payload = [(_part(subject, call), call.args) for call in calls]
    found: list[Any] = in_new_process(_call, subject, payload, hash_seed=hash_seed)
    return found


def recorded_in_new_process(subject: Any, call: Call, *, hash_seed: int) -> tuple[Any, list[Event]]:
    """Call the subject (steps under test) in a new process; return its outputs and its operators."""
    payload = (_part(subject, call), call.args)
    found: tuple[Any, list[Event]] = in_new_process(_record, subject, payload, hash_seed=hash_seed)
    return found


def in_new_process(
    task: Callable[[Any, Any], Any], subject: Any, payload: Any, *, hash_seed: int = 1
) -> Any:
    """Return `task(subject, payload)`, computed in a new process.

    Raises:
        TypeError: a new process cannot find the subject.
        RuntimeError: the process failed; the message has its error.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    job = Job(
        task,
        reference_to(subject),
        pickle.dumps(payload),
        [os.path.abspath(entry) for entry in sys.path],
        main,
        torch.get_num_threads(),
    )
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "job"), pathlib.Path(folder, "result")
        source.write_bytes(pickle.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "ftrain.testing.laws._worker", str(source), str(target)],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": _python_path()},
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"the new process that repeats {name_of(subject)} failed:\n{done.stderr.strip()}\n"
                "Run the subject in a new interpreter to see the error."
            )
        return pickle.loads(target.read_bytes())


def reference_to(subject: Any) -> str | bytes:
    """Return the name by which a new process can import the steps under test, or their pickle.

    Raises:
        TypeError: there is no such name, and the subject cannot be pickled.
    """
    if isinstance(subject, str):
        return subject
    for module_name, module in list(sys.modules.items()):
        if module_name in ("__main__", "__mp_main__") or not hasattr(module, "__dict__"):
            continue
        for name, value in list(vars(module).items()):
            if value is subject:
                return f"{module_name}:{name}"
    try:
        buffer = io.BytesIO()
        pickle.Pickler(buffer).dump(subject)
    except Exception as error:
        raise TypeError(
            f"subject: expected steps that a new process can import, got {name_of(subject)}, which is "
            f"not a global variable of an imported module and cannot be pickled ({error}). Assign it to "
            "a global variable, such as STEPS = ftrain.make_steps(...), and pass that variable or "
            "'module:STEPS'."
        ) from error
    return buffer.getvalue()


def _python_path() -> str:
    """Return a `PYTHONPATH` on which this copy of ftrain comes first."""
    root = str(pathlib.Path(__file__).resolve().parents[3])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _part(subject: Any, call: Call) -> str:
    """Return the name of the step that a call uses; `""` if `subject` itself is called."""
    if call.fn is subject or call.names[:1] != ("state",):
        return ""
    return "train_step" if call.outputs else "eval_step"


def _called(subject: Any, part: str, args: tuple[Any, ...]) -> Call:
    """Return the `Call` that the new process makes: of `subject`, or of its step named by `part`."""
    fn = subject
    if part:
        step, evaluate, _ = parts_of(subject)
        fn = step if part == "train_step" else evaluate
    return Call("", fn, args, ())


def _call(subject: Any, payload: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
    return [_called(subject, part, args)() for part, args in payload]


def _record(subject: Any, payload: tuple[str, tuple[Any, ...]]) -> tuple[Any, list[Event]]:
    return recorded(_called(subject, *payload))
