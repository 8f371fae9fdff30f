"""The machine code behind inductor's C++ wrapper: its file, and calls of it in another process.

Inductor compiles a program with a C++ wrapper to one extension module, and calls it from a Python
function that inductor generates (`cpp_wrapper`, torch 2.13; 2.14 does the same). Without what
these functions look for, a program cannot be saved.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["library_of", "load_library"]

_ENTRY = "inductor_entry_cpp"
_ADDRESS = "_torchinductor_pyobject_tensor_data_ptr"
_CONSTANTS = "constants_tensor"  # variable of the generated function, if the code has constants


def library_of(code: Callable[..., Any] | None) -> pathlib.Path | None:
    """Return the extension module that a generated function calls and that needs nothing else.

    `None`: Python calls the kernels, or the code has constants, which the module does not hold, or
    results that are not tensors.
    """
    if not isinstance(code, types.FunctionType):
        return None
    if _CONSTANTS in code.__code__.co_varnames or "item" in code.__code__.co_names:
        return None
    for cell in code.__closure__ or ():
        entry = cell.cell_contents
        module = getattr(entry, "__self__", None)
        file = getattr(module, "__file__", None)
        if getattr(entry, "__name__", None) == _ENTRY and isinstance(file, str):
            return pathlib.Path(file)
    return None


def load_library(file: pathlib.Path) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """Load an extension module of inductor; return a function that empties the list of its inputs.

    The path must be new in this process, since the system's loader returns the first module that it
    loaded from a path, whatever the file holds now.
    """
    from torch._C import _aoti  # noqa: PLC0415  only saved programs need it
    from torch._C._dynamo import guards  # noqa: PLC0415

    address = getattr(guards, _ADDRESS)
    os.environ[_ADDRESS.upper()] = str(address)  # the module reads it when it loads
    spec = importlib.util.spec_from_file_location(_ENTRY, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entry = getattr(module, _ENTRY)
    handles_of = _aoti.unsafe_alloc_void_ptrs_from_tensors
    tensors_of = _aoti.alloc_tensors_by_stealing_from_void_ptrs

    def run(inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        handles = handles_of(inputs)
        inputs.clear()
        outputs: Sequence[torch.Tensor] = tensors_of(entry(handles))
        return outputs

    return run
