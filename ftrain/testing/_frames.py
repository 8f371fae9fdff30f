"""Search for the innermost stack frame of the code under test."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import traceback
import types

import torch

__all__ = ["innermost", "is_ours"]

_OURS = str(pathlib.Path(__file__).resolve().parents[1]) + os.sep
_TESTING = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SKIPPED = (
    _TESTING,
    contextlib.__file__,
    os.path.dirname(torch.__file__) + os.sep,
    *("<eval_with_key", "<frozen ", "<ftrain ", "<string>"),  # generated code
)
# Methods of modes, which run on behalf of a caller.
_PASSED = frozenset({"__torch_function__", "__torch_dispatch__"})


def is_ours(frame: traceback.FrameSummary) -> bool:
    """Return True if a frame is in a file of ftrain."""
    return frame.filename.startswith(_OURS)


def innermost(*, ours: bool = True) -> traceback.FrameSummary | None:
    """Return the innermost stack frame outside torch and `ftrain.testing`; `None` if there is none.

    Args:
        ours: False to skip frames in any file of ftrain.
    """
    skipped = _SKIPPED if ours else (*_SKIPPED, _OURS)
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(skipped) or frame.f_code.co_name in _PASSED
    ):
        frame = frame.f_back
    if frame is None:
        return None
    return traceback.StackSummary.extract([(frame, frame.f_lineno)])[0]
