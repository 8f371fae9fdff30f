"""Private torch APIs that run `torch.compile`d functions and modules uncompiled, as plain Python.

Random draws in a compiled part of a model would have other sites than in Python code (`F.dropout` in a
graph does not run in a module), which also change after a graph break or at the recompile limit. Inside
ftrain's calls, such parts therefore run as plain Python; `ftrain.compile` compiles the whole function.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import types
import warnings
from typing import Any

import torch

__all__ = ["Plainly", "plain_in_traces"]

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_MODULES = os.path.join(_TORCH, "nn", "modules") + os.sep


class _Here(threading.local):
    depth = 0


_here = _Here()


class Plainly:
    """Context in which this thread runs `torch.compile`d functions and modules uncompiled.

    A warning reports each such function or module. Torch's higher-order operators still compile their
    bodies. Dynamo has one stance for the process (`torch._dynamo.eval_frame._stance`, torch 2.6 and
    later), while this context affects its thread only. In earlier versions, compiled parts stay
    compiled. Entering takes 0.3 µs.
    """

    def __enter__(self) -> None:
        _here.depth += 1
        dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
        if hasattr(dynamo, "_stance") and type(dynamo._stance) is not _stance_of(dynamo):
            dynamo._stance = _stance_of(dynamo)(dynamo._stance)

    def __exit__(self, *_: object) -> None:
        _here.depth -= 1


def plain_in_traces() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `torch.compile`d functions may be traced; they then run uncompiled.

    (`torch._dynamo.config.error_on_nested_fx_trace`: torch 2.0 and later.)
    """
    from torch._dynamo import config  # noqa: PLC0415  # takes a second, and a trace imports it anyway

    patch: Any = config.patch
    context: contextlib.AbstractContextManager[Any] = patch(error_on_nested_fx_trace=False)
    return context


_stances: list[type] = []


def _stance_of(dynamo: Any) -> type:
    """Return a subclass of Dynamo's stance class; the first call defines it."""
    if not _stances:
        _stances.append(_define(dynamo))
    return _stances[0]


def _define(dynamo: Any) -> type:
    class Stance(dynamo.DynamoStance):  # type: ignore[misc]  # a class known at run time only
        """Dynamo's stance: "force_eager" in threads inside of `Plainly`, else that of the process."""

        def __init__(self, own: Any) -> None:
            object.__setattr__(self, "_own", own)

        @property
        def stance(self) -> str:
            if _here.depth and _is_called_plainly(sys._getframe(1)):
                return "force_eager"
            return str(self._own.stance)

        @property
        def skip_guard_eval_unsafe(self) -> bool:
            return bool(self._own.skip_guard_eval_unsafe)

        @property
        def backend(self) -> Any:
            return self._own.backend

    return Stance


def _is_called_plainly(frame: types.FrameType) -> bool:
    """Return True, and warn, if Dynamo was called by code other than torch's own operators.

    Args:
        frame: the frame of the code that is called.
    """
    dynamo, level = frame.f_code.co_filename, 3
    if not dynamo.endswith("eval_frame.py"):
        return False
    caller: types.FrameType | None = frame
    while caller is not None and caller.f_code.co_filename in (dynamo, contextlib.__file__):
        caller, level = caller.f_back, level + 1
    if caller is None or _is_operators_own(caller.f_code.co_filename):
        return False
    if frame.f_code.co_name == "_callback_from_stance" and frame.f_locals.get("callback"):
        while caller.f_back is not None and caller.f_code.co_filename.startswith(_TORCH):
            caller, level = caller.f_back, level + 1
        warnings.warn(_RUNS_PLAINLY, stacklevel=level)
    return True


def _is_operators_own(file: str) -> bool:
    return file.startswith(_TORCH) and not file.startswith(_MODULES)


_RUNS_PLAINLY = (
    "this code, compiled by torch.compile, runs as plain Python inside of ftrain, so that its random "
    "draws are the same in eager, compiled and vmapped steps. Compile the whole step instead: "
    "ftrain.compile(train_step)."
)
