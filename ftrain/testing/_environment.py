"""Report of the settings and operators that make the bits of a run depend on the process.

Read next: `_operators.py`, which examines the operators.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import platform
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.checkpoint._determinism import RECORDED, changes, fingerprint, versions
from ftrain.checkpoint._read import open_checkpoint
from ftrain.core._torch_settings import blas, inductor_settings
from ftrain.testing._operators import OperatorBits, examine

__all__ = ["Environment", "OperatorBits", "environment"]

_VARIABLES = re.compile(
    r"(OMP|KMP|MKL|GOMP|ONEDNN|DNNL|OPENBLAS|BLIS|ATEN|CUBLAS|CUDNN|CUDA|NVIDIA|TORCHINDUCTOR)_\w+"
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """Settings and operators on which the bits of a run depend; prints as a table.

    Attributes:
        settings: build, processor, threads, flags, libraries, environment variables and inductor
            settings, by name.
        changes: the differences from the checkpoint that was given, as sentences.
        operators: the operators of the step that was given, one row for each kind of inputs.
    """

    settings: dict[str, Any]
    changes: tuple[str, ...] = ()
    operators: tuple[OperatorBits, ...] = ()

    @property
    def nondeterministic(self) -> tuple[OperatorBits, ...]:
        """Operators that returned different bytes for equal inputs."""
        return tuple(each for each in self.operators if not each.deterministic)

    @property
    def thread_dependent(self) -> tuple[OperatorBits, ...]:
        """Operators whose bytes depend on the number of threads."""
        return tuple(each for each in self.operators if each.thread_dependent)

    @property
    def alignment_dependent(self) -> tuple[OperatorBits, ...]:
        """Operators whose bytes depend on the memory alignment of their inputs."""
        return tuple(each for each in self.operators if each.alignment_dependent)

    def __str__(self) -> str:
        width = max(map(len, self.settings), default=0)
        lines = [f"{name:<{width}}  {value}" for name, value in self.settings.items()]
        if self.changes:
            lines += ["", "differs from the checkpoint:", *(f"  {each}" for each in self.changes)]
        if self.operators:
            kinds = len(self.operators)
            lines += ["", f"operators examined: {kinds} kinds"]
        lines += _section("nondeterministic", self.nondeterministic)
        lines += _section("bytes depend on the number of threads", self.thread_dependent)
        lines += _section("bytes depend on the alignment of inputs", self.alignment_dependent)
        return "\n".join(lines)


def environment(
    step: Callable[..., Any] | None = None,
    *args: Any,
    checkpoint: str | os.PathLike[str] | None = None,
    threads: Sequence[int] | None = None,
    repeats: int = 5,
) -> Environment:
    """Return the settings that affect the bits of a step, and its operators with unstable bits.

    Each kind of operator that the step runs is repeated by itself: with equal inputs, with several
    numbers of threads, and with inputs at another memory address. The examination stores a copy of the
    arguments of each kind; for a GPT of 0.2 million parameters it took 40 s on two busy cores. A race
    between threads that changes none of the repeats is missed; more repeats find more races. Of a
    compiled step, the Python function is examined operator by operator; machine code of inductor is not
    examined.

    Args:
        step: a function, such as a training step; `None`: settings only.
        *args: its arguments.
        checkpoint: the directory of a checkpoint to compare the settings with.
        threads: the numbers of threads to compare; default: 1, the current one, and all processors (at
            least 2).
        repeats: the number of equal calls at each number of threads.

    Raises:
        ValueError: `repeats` is below 2, or a number of threads is not positive.
        CheckpointNotFoundError: the checkpoint does not exist.

    Example:
        >>> found = environment(torch.add, torch.ones(3), torch.ones(3))
        >>> found.settings["torch"] == torch.__version__
        True
        >>> [operator.name for operator in found.operators], found.nondeterministic
        (['aten.add.Tensor'], ())
    """
    counts = _counts(threads)
    if repeats < 2 or min(counts) < 1:
        raise ValueError(
            "repeats, threads: expected at least 2 repeats and positive numbers of threads, got "
            f"{repeats} and {list(counts)}. Use larger numbers."
        )
    here = fingerprint()
    differences = () if checkpoint is None else _differences(checkpoint, here)
    operators = examine(_function(step), args, counts, repeats) if step is not None else ()
    return Environment({**here, **_more()}, differences, operators)


def _differences(checkpoint: str | os.PathLike[str], here: dict[str, Any]) -> tuple[str, ...]:
    """Return the settings and library versions that differ from those recorded in a checkpoint."""
    with open_checkpoint(checkpoint) as source:
        saved = source.manifest.determinism
        known = {name: value for name, value in saved.items() if name in RECORDED}
        of_libraries = changes(source.manifest.versions, versions())
    found = [*changes(known, here), *(f"version of {each}" for each in of_libraries)]
    return tuple(each for each in found if not each.startswith("version of torch"))


def _function(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the Python function from which a step was compiled; return any other function unchanged."""
    return inspect.unwrap(step) if hasattr(step, "graph") else step


def _counts(threads: Sequence[int] | None) -> tuple[int, ...]:
    if threads is not None:
        return tuple(threads)
    return tuple(sorted({1, torch.get_num_threads(), max(2, os.cpu_count() or 1)}))


def _more() -> dict[str, Any]:
    """Return settings that affect bits, but that checkpoints do not record."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads between operators": torch.get_num_interop_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "fill uninitialized memory": getattr(
            torch.utils.deterministic, "fill_uninitialized_memory", None
        ),
        **blas(),
        **{f"version of {name}": each for name, each in versions().items() if name != "torch"},
        **{f"${name}": value for name, value in sorted(os.environ.items()) if _matters(name)},
        **{f"inductor {name}": value for name, value in inductor_settings().items()},
    }
    return found


def _matters(variable: str) -> bool:
    return _VARIABLES.fullmatch(variable) is not None and not variable.endswith("_DIR")


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or "unknown"


def _section(title: str, rows: Sequence[OperatorBits]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{title}:"]
    for row in rows:
        lines.append(f"  {row.name} of {row.inputs} ({row.calls} calls)")
        lines.append(textwrap.indent(textwrap.dedent(row.line), "    "))
    return lines
