"""Search for the operator and source line that produced a value, by repeating a call.

A check compares values first, which is fast; only after a violation is the call repeated under a mode
that looks at every operator.

Read next: `pure.py`, which names the operator that wrote into an input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple, TypedDict

import torch
from torch import nn

from ftrain.core import tree
from ftrain.core._leaf_digest import leaf_digest
from ftrain.core._torch_dispatch import TRACED_TENSORS, DispatchMode, backward_pass
from ftrain.core._user_line import is_foreign, show_line
from ftrain.testing._copies import copied
from ftrain.testing.laws._subject import Call

__all__ = [
    "Event",
    "Site",
    "events_of",
    "find_write",
    "first_new",
    "located",
    "origin_of",
    "recorded",
    "running_site",
]

_BACKWARD = " (in the backward pass)"
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_TESTING = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Site(NamedTuple):
    """Operator, with the source line and module that called it.

    Attributes:
        operator: its name, such as "aten.add_.Tensor".
        line: `FILE:LINE in NAME` and the source; `None` if no Python code of the call is running.
        module: the module whose forward ran, such as "layers.0 (Dropout)"; `None` outside of modules.
    """

    operator: str
    line: str | None
    module: str | None

    @property
    def is_backward(self) -> bool:
        """Return True if a backward pass ran the operator."""
        return (self.line or "").endswith(_BACKWARD)

    @property
    def where(self) -> str | None:
        """Return source line and module as text for a message."""
        if self.module is None:
            return self.line
        return f"{self.line or '(no line in user code)'}\n    in module {self.module}"


class Located(TypedDict):
    """Arguments `operator` and `line` of a `LawViolation`."""

    operator: str | None
    line: str | None


def located(site: Site | None) -> Located:
    """Return a site as the arguments `operator` and `line` of a `LawViolation`; both may be `None`."""
    if site is None:
        return {"operator": None, "line": None}
    return {"operator": site.operator, "line": site.where}


class Event(NamedTuple):
    """Call of an operator, with digests of its input and output tensors."""

    site: Site
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def events_of(call: Call) -> list[Event]:
    """Run a call; return its operators in order, with digests of their tensors."""
    return recorded(call)[1]


def recorded(call: Call) -> tuple[Any, list[Event]]:
    """Run a call; return its outputs, and its operators with digests of their tensors."""
    args, mode = copied(call.args), _Recorder()
    with mode:
        output = call.run(args)
    return output, mode.events


def first_new(events: Sequence[Event], others: Sequence[Event]) -> Site | None:
    """Return the first operator of one run with an output that does not occur in the other run."""
    known = {digest for event in others for digest in event.outputs}
    for event in events:
        if any(digest not in known for digest in event.outputs):
            return event.site
    return None


def origin_of(
    path: str, output: Any, events: Sequence[Event], others: Sequence[Event]
) -> Site | None:
    """Return the operator at which the computation of an output leaf begins to differ between two runs.

    The search follows the leaf back to an operator whose inputs all occur in the other run, too.

    Args:
        path: the leaf.
        output: the outputs of the run.
        events: its operators.
        others: the operators of the other run.
    """
    leaves = dict(zip(tree.paths(output), tree.leaves(output), strict=True))
    if not isinstance(leaves.get(path), torch.Tensor):
        return first_new(events, others)
    known = {digest for event in others for digest in (*event.inputs, *event.outputs)}
    wanted, site = _digest(leaves[path]), None
    if wanted in known:  # in this repetition, both runs computed the same values
        return None
    for event in reversed(events):
        if wanted in event.outputs:
            site = event.site
            new = [digest for digest in event.inputs if digest not in known]
            if not new:
                return site
            wanted = new[0]
    return site or first_new(events, others)


def find_write(
    call: Call, watched: Callable[[tuple[Any, ...]], torch.Tensor | None]
) -> Site | None:
    """Repeat a call; return the operator that changes a given tensor; `None` if no operator does.

    Args:
        call: the call.
        watched: returns the tensor: a part of the copied arguments, or one that the function holds.
    """
    args = copied(call.args)
    tensor = watched(args)
    if tensor is None:
        return None
    mode = _Writes(tensor)
    try:
        with mode:
            call.run(args)
    except Exception:  # caused by the changes of the first call, which raised no error
        return mode.site
    return mode.site


def running_site(operator: Any) -> Site:
    """Return the operator that is running, with the line of user code and the module that called it."""
    frame, module, root = _user_frame(sys._getframe(1)), None, None
    walk: FrameType | None = sys._getframe(1)
    while walk is not None and walk.f_code is not _CALL:
        if walk.f_code.co_name in ("forward", "_call_impl"):
            of = walk.f_locals.get("self")
            if isinstance(of, nn.Module):
                module, root = module or of, of
        walk = walk.f_back
    line = None if frame is None else show_line(frame.f_code, frame.f_lineno).strip()
    if backward_pass() != -1:
        line = f"{line or '(no line in user code)'}{_BACKWARD}"
    return Site(str(operator), line, _path(module, root))


def _path(module: nn.Module | None, root: nn.Module | None) -> str | None:
    if module is None or root is None:
        return None
    name = next((name for name, each in root.named_modules() if each is module), "")
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


def _user_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of user code in the checked call; if none, one outside torch."""
    other = None
    while frame is not None and frame.f_code is not _CALL:
        name = frame.f_code.co_filename
        if not is_foreign(name):
            return frame
        if other is None and not name.startswith((_TORCH, _TESTING, "<")):
            other = frame
        frame = frame.f_back
    return other


class _Recorder(DispatchMode):
    """Dispatch mode that records each operator with digests of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        inputs = tuple(_digest(x) for x in _tensors((*args, *(kwargs or {}).values())))
        out = func(*args, **(kwargs or {}))
        digests = tuple(_digest(x) for x in _tensors(out))
        if digests:
            self.events.append(Event(running_site(func), inputs, digests))
        return out


class _Writes(DispatchMode):
    """Dispatch mode that compares one tensor before and after each operator."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.site: Site | None = None
        self._tensor = tensor
        self._last = _digest(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.site is None and _digest(self._tensor) != self._last:
            self.site = running_site(func)
        return out


def _tensors(out: Any) -> list[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [] if _is_traced(out) else [out]
    if isinstance(out, (tuple, list)):
        return [each for x in out for each in _tensors(x)]
    return []


def _is_traced(x: torch.Tensor) -> bool:
    return isinstance(x, TRACED_TENSORS) or x.is_meta or type(x) not in (torch.Tensor, nn.Parameter)


def _digest(x: torch.Tensor) -> str:
    plain = x.detach()
    return leaf_digest(plain if plain.layout == torch.strided else plain.to_dense())


_CALL = Call.run.__code__  # the frame below which all frames belong to the checked call
