"""Files of compiled programs: machine code, captured tensors, and the structure of the arguments.

A file is a zip archive of three members and a manifest. The manifest names what the machine code was
made for, and a file made for something else is refused. `_lowered.py` has the public methods.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import io
import json
import os
import pathlib
import pickle
import platform
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import _file_output
from ftrain.core._torch_inductor_library import library_of, load_library
from ftrain.core.compile._call import Call
from ftrain.core.compile._program import Program
from ftrain.core.compile._reader import static_value
from ftrain.core.compile._trace import TENSOR, Traced
from ftrain.core.errors import DataError

__all__ = ["read", "write"]

_FORMAT = 1
_MANIFEST, _STRUCTURE, _CAPTURED, _CODE = "manifest.json", "structure.pkl", "captured.pt", "code.so"
_RECOMPILE = "Compile the function here, with compile(...).lower(...).compile(), and save it again."


def write(
    program: Program, name: str, parameters: list[str], donate: bool, path: pathlib.Path
) -> None:
    """Write a program that ran at least once; see `Executable.save`."""
    library = library_of(program.code)
    if library is None:
        raise RuntimeError(_why_not_saved(program, name))
    signature = program.signature
    structure = {
        "name": name,
        "parameters": parameters,
        "donate": donate,
        "treedef": signature.treedef,
        "names": signature.names,
        "leaves": [
            _Spec(*spec) if len(spec) == 4 else static_value(spec) for spec in signature.specs
        ],
        "settings": signature.settings,
        "n_donated": program.n_donated,
        "whole": program.whole,
        "out_treedef": program.out_treedef,
        "static": program.static,
        "shared": program.shared,
    }
    try:
        pickled = pickle.dumps(structure)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"the program of `{name}` cannot be saved: its arguments or results contain an object that "
            f"cannot be pickled ({error}). Define its class or function at the top level of a module."
        ) from error
    captured = io.BytesIO()
    torch.save([tensor.detach() for tensor in program.captured.tensors], captured)
    with _file_output.draft(path) as drafted, zipfile.ZipFile(drafted, "w") as archive:
        archive.writestr(_MANIFEST, json.dumps({"format": _FORMAT, **_made_for()}, indent=1))
        archive.writestr(_STRUCTURE, pickled)
        archive.writestr(_CAPTURED, captured.getvalue())
        archive.write(library, _CODE)


def read(path: pathlib.Path) -> tuple[Program, dict[str, Any]]:
    """Read a program; return it with the rest of the file; see `load_executable`."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            _check_manifest(path, manifest)
            pickled, captured, code = map(archive.read, (_STRUCTURE, _CAPTURED, _CODE))
    except (zipfile.BadZipFile, KeyError, EOFError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: expected a program that `save` wrote, got a damaged or another file ({error}). "
            f"{_RECOMPILE}"
        ) from error
    try:
        saved = pickle.loads(pickled)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{path}: a class or function in the program's arguments or results was not found "
            f"({error}). Make its module importable under the same name, or compile and save again."
        ) from error
    leaves = [leaf.example() if isinstance(leaf, _Spec) else leaf for leaf in saved["leaves"]]
    args, kwargs = saved["treedef"].unflatten(leaves)
    call = Call(_without_source(path, saved["name"], saved["parameters"]), args, kwargs)
    call.settings = saved["settings"]
    call.names = saved["names"]
    out_leaves = [TENSOR] * saved["out_treedef"].num_leaves
    for place, value in saved["static"]:
        out_leaves[place] = value
    program = Program(
        call,
        Traced(
            torch.fx.GraphModule({}, torch.fx.Graph()),
            torch.load(io.BytesIO(captured), weights_only=True),
            saved["out_treedef"],
            out_leaves,
            saved["n_donated"],
            saved["whole"],
        ),
    )
    program.load(_load_code(code), saved["shared"])
    return program, {**saved, "fn": call.fn, "key": call.key}


class _Spec:
    """Shape, dtype, device and strides of a tensor."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, stride: tuple[int, ...]
    ) -> None:
        self.shape, self.dtype, self.device, self.stride = shape, dtype, device, stride

    def example(self) -> torch.Tensor:
        """Return a tensor without values; its memory is not touched."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def _load_code(code: bytes) -> Callable[[list[torch.Tensor]], Any]:
    with tempfile.TemporaryDirectory(prefix="ftrain-", ignore_cleanup_errors=True) as folder:
        file = pathlib.Path(folder, "code.so")
        file.write_bytes(code)
        try:
            return load_library(file)
        except ImportError as error:
            raise DataError(
                f"the machine code of the program cannot be loaded from {folder}: {error}. If that is "
                "mounted without permission to execute, set TMPDIR to another. Otherwise: "
                f"{_RECOMPILE}"
            ) from error


def _why_not_saved(program: Program, name: str) -> str:
    start = f"the program of `{name}` cannot be saved: "
    if program.is_loaded:
        return f"{start}it was loaded from a file. Copy that file."
    if not program.has_run:
        return f"{start}it has not run. Call it once, then save it."
    if program.has_cpp_wrapper:
        return (
            f"{start}inductor's wrapper changes its arguments or results. Use the cache of inductor "
            "(TORCHINDUCTOR_CACHE_DIR) instead."
        )
    if program.why_python is not None:
        return (
            f"{start}Python calls its kernels, because {program.why_python}. Use the cache of "
            "inductor (TORCHINDUCTOR_CACHE_DIR) instead."
        )
    return (
        f"{start}only programs with a C++ wrapper can be saved. Write "
        "compile(..., cpp_wrapper=True), with backend='inductor' and mode=None."
    )


def _check_manifest(path: pathlib.Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != _FORMAT:
        raise DataError(
            f"{path}: expected a program of format {_FORMAT}, got format {manifest['format']}. "
            f"{_RECOMPILE}"
        )
    here = _made_for()
    missing = sorted(set(manifest["features"]) - set(here["features"]))
    if missing:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise DataError(
            f"{path}: the program was compiled for a processor with {shown}, which this one lacks. "
            f"{_RECOMPILE}"
        )
    for key in ("ftrain", "torch", "python", "machine", "system"):
        if manifest[key] != here[key]:
            raise DataError(
                f"{path}: the program was compiled with {key} {manifest[key]}, here it is {here[key]}. "
                f"{_RECOMPILE}"
            )


def _made_for() -> dict[str, Any]:
    return {
        "ftrain": importlib.metadata.version("ftrain"),
        "torch": torch.__version__,
        "python": sys.implementation.cache_tag,
        "machine": platform.machine(),
        "system": sys.platform,
        "features": _features(),
    }


@functools.cache
def _features() -> list[str]:
    """Return the instruction sets of this processor, which inductor's C++ compiler may use."""
    if not os.path.exists("/proc/cpuinfo"):
        return [torch.backends.cpu.get_cpu_capability()]
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return sorted(value.split())
    return [torch.backends.cpu.get_cpu_capability()]


def _without_source(path: pathlib.Path, name: str, parameters: list[str]) -> Callable[..., Any]:
    """Return a function that has the name and the parameters of the one that was compiled."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"the program of `{name}` was loaded from {path}, without the function: it can be called, "
            "but not be traced, differentiated or compiled again. Use the function itself for that."
        )

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__name__ = function.__qualname__ = name
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, kind) for each in parameters]
    )
    return function
