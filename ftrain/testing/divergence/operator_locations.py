"""Location of an operator's call in a program: the module's path and the source line.

Both are read off the Python stack when an operator runs. An operator of a backward pass belongs to the
forward operator whose autograd node runs.
"""

from __future__ import annotations

import dataclasses
import linecache
import os
import pathlib
import sys
from types import CodeType, FrameType
from typing import NamedTuple

import torch.utils.checkpoint
from torch import nn

from ftrain.core._torch import sequence_number
from ftrain.core._torch_tensors import BACKWARD, MODULE_CALL, current_node, node_number
from ftrain.core._user_line import is_foreign

__all__ = ["Place", "Places"]

_FTRAIN = str(pathlib.Path(__file__).resolve().parents[2]) + os.sep
# Packages and files whose frames only pass calls on.
_PASSING = tuple(
    os.path.join(_FTRAIN, *place.split("/"))
    for place in (
        *("testing/", "core/random/", "core/compile/"),
        *("core/_gated.py", "core/_lost_tangents.py"),
    )
)
_CHECKPOINT = str(torch.utils.checkpoint.__file__)


@dataclasses.dataclass(frozen=True)
class Place:
    """Location of an operator's call: module path and source line.

    Attributes:
        module: class of the outermost running module, and the path from there to the innermost:
            `GPT.blocks.0.attention`; "" outside of modules.
        line: `FILE:LINE in FUNCTION: SOURCE` of the innermost line of user code, or of ftrain's
            optimizers and steps; "" if unknown.
        backward: True for the derivative of the operator that ran at this place.
    """

    module: str = ""
    line: str = ""
    backward: bool = False

    def __str__(self) -> str:
        parts = [f"in {self.module}"] if self.module else []
        parts += [f"at {self.line}"] if self.line else []
        text = ", ".join(parts) or "at an unknown line"
        return f"backward of the operator {text}" if self.backward else text


class _Around(NamedTuple):
    """Modules and source line around an operator's call, read from the Python stack.

    Attributes:
        modules: the running modules, innermost first.
        line: the innermost line of user code, or of ftrain's.
        is_backward: True if the operator runs in a backward pass.
        is_recomputed: True if the operator is part of a recomputed checkpoint region.
    """

    modules: list[nn.Module]
    line: str
    is_backward: bool
    is_recomputed: bool


class Places:
    """Reader of the locations of operators during one call of a step.

    Args:
        boundary: the frame that called the step: lines and modules outside of it do not count.
    """

    def __init__(self, boundary: FrameType) -> None:
        self._boundary = boundary
        self._by_node: dict[int, Place] = {}
        self._known: dict[CodeType, bool] = {}
        # References to the modules prevent Python from reusing their ids.
        self._names: dict[int, tuple[nn.Module, dict[int, str]]] = {}
        self._paths: dict[int, tuple[nn.Module, str]] = {}

    def here(self) -> Place:
        """Return the location of the operator that this thread is running."""
        node, around = current_node(), self._walk(sys._getframe(1))
        place = Place(self._path(around.modules), around.line)
        if node is not None and not around.is_recomputed:
            if around.line and around.is_backward:  # Python code of an autograd.Function's backward
                return dataclasses.replace(place, backward=True)
            forward = self._by_node.get(node_number(node), place)
            return dataclasses.replace(forward, backward=True)
        # The newest autograd node is this operator's. A later operator without a node of its own sees
        # the same number, so the first entry stays.
        self._by_node.setdefault(sequence_number() - 1, place)
        return place

    def _walk(self, frame: FrameType | None) -> _Around:
        """Read the Python stack from the innermost frame outwards, up to the call of the step."""
        modules: list[nn.Module] = []
        line, is_recomputed, is_backward = "", False, False
        while frame is not None and frame is not self._boundary:
            code = frame.f_code
            if code is BACKWARD and (modules or line or is_recomputed):
                is_backward = True
                break
            if code is MODULE_CALL:
                modules.append(frame.f_locals["self"])
            elif not line and self._has_lines(code):
                line = _show(code, frame.f_lineno)
            is_recomputed = is_recomputed or code.co_filename == _CHECKPOINT
            frame = frame.f_back
        return _Around(modules, line, is_backward, is_recomputed and is_backward)

    def _has_lines(self, code: CodeType) -> bool:
        """Return True if lines of `code` are reported: user code, or code of ftrain that computes."""
        found = self._known.get(code)
        if found is None:
            name = code.co_filename
            own = name.startswith(_FTRAIN) and not name.startswith(_PASSING)
            found = self._known[code] = own or not is_foreign(name)
        return found

    def _path(self, modules: list[nn.Module]) -> str:
        if not modules:
            return ""
        above = modules[-1]
        # In a recomputed region the outermost module on the stack is inside the model: use the path that
        # the forward pass stored for it.
        _, path = self._paths.setdefault(id(above), (above, type(above).__name__))
        for module in reversed(modules[:-1]):
            if module is not above:
                path = f"{path}.{self._name_in(above, module)}"
                self._paths[id(module)] = (module, path)
                above = module
        return path

    def _name_in(self, above: nn.Module, module: nn.Module) -> str:
        _, names = self._names.get(id(above), (above, {}))
        if id(module) not in names:
            names = {id(found): name for name, found in above.named_modules()}
            names.setdefault(id(module), type(module).__name__)
            self._names[id(above)] = (above, names)
        return names[id(module)]


def _show(code: CodeType, line: int) -> str:
    source = linecache.getline(code.co_filename, line).strip()
    text = f"{code.co_filename}:{line} in {code.co_name}"
    return f"{text}: {source}" if source else text
