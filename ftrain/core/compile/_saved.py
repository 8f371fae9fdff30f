"""Files of compiled programs: machine code, captured tensors, and the structure of the arguments.

A file is a zip archive of three members and a manifest. The manifest names what the machine code was
made for, and a file made for something else is refused. `_lowered.py` has the public methods.

Arguments and results are stored as trees of their own containers, with a `_Spec` in place of each
tensor. Unlike the structures of optree, they can be read in a process that has not seen a container's
class before, and their paths show whether the fields of a class have changed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import io
import json
import pathlib
import pickle
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import _file_output, tree
from ftrain.core._torch_inductor_library import library_of, load_library
from ftrain.core.compile._call import Call
from ftrain.core.compile._errors import listed
from ftrain.core.compile._program import Program
from ftrain.core.compile._reader import static_key, static_value
from ftrain.core.compile._trace import TENSOR, Traced
from ftrain.core.errors import DataError

__all__ = ["read", "write"]

_FORMAT = 2
_MANIFEST, _STRUCTURE, _TENSORS, _CODE = "manifest.json", "structure.pkl", "tensors.pt", "code.so"
_RECOMPILE = "Compile the function here, with compile(...).lower(...).compile(), and save it again."
# Instruction sets among the features that Linux lists for an x86 processor; the others depend on the
# kernel, or on a virtual machine.
_INSTRUCTIONS = re.compile(
    r"s?sse\d?|pni|avx|amx|fma|f16c|bmi|v?aes|sha|popcnt|movbe|gfni|v?pclmul|adx|abm|xop|cx16|lahf"
)


class _Spec:
    """Shape, dtype, device and strides of a tensor: a leaf of a stored tree."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, stride: tuple[int, ...]
    ) -> None:
        self.shape, self.dtype, self.device, self.stride = shape, dtype, device, stride

    def example(self) -> torch.Tensor:
        """Return a tensor without values; its memory is not touched."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


class _Result:
    """Leaf of a stored tree in place of a tensor that the program returns."""


@dataclasses.dataclass(frozen=True)
class _Stored:
    """What a file holds besides tensors and machine code.

    Attributes:
        arguments: the tree `(args, kwargs)`, with a `_Spec` in place of each tensor.
        names: the names of its leaves.
        result: the tree that the program returns, with a `_Result` in place of each tensor.
        paths: the paths of its leaves.
        operators: the names of the operators that the program may call, but for torch's own.
    """

    name: str
    parameters: list[str]
    donate: bool
    arguments: Any
    names: list[str]
    result: Any
    paths: list[str]
    settings: tuple[Any, ...]
    n_donated: int
    whole: bool
    shared: list[int]
    operators: list[str]


def write(
    program: Program, name: str, parameters: list[str], donate: bool, path: pathlib.Path
) -> None:
    """Write a program that ran at least once; see `Executable.save`."""
    library = library_of(program.code)
    if library is None:
        raise RuntimeError(_why_not_saved(program, name))
    if changes := program.captured.changes():
        raise RuntimeError(
            f"the program of `{name}` cannot be saved: it does not fit captured tensors any more.\n"
            f"{listed(changes)}\nCall the compiled function, which compiles again; save that program."
        )
    pickled = _pickled(_stored(program, name, parameters, donate))
    tensors = io.BytesIO()
    torch.save(list(map(_copied, program.captured.inputs())), tensors)
    try:
        code = library.read_bytes()
    except FileNotFoundError as error:
        raise RuntimeError(
            f"the program of `{name}` cannot be saved: its machine code was deleted from inductor's "
            f"cache ({library}). Compile it again."
        ) from error
    with _file_output.draft(path) as drafted, zipfile.ZipFile(drafted, "w") as archive:
        archive.writestr(_MANIFEST, json.dumps({"format": _FORMAT, **_made_for()}, indent=1))
        archive.writestr(_STRUCTURE, pickled)
        archive.writestr(_TENSORS, tensors.getvalue())
        archive.writestr(_CODE, code)


def read(path: pathlib.Path) -> tuple[Program, Call, bool]:
    """Read a program; return it with a call that fits it, and whether it donates its first argument.

    It must run in a thread in which no mode or transform of torch is active: see `load_executable`.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            _check_manifest(path, manifest)
            pickled, tensors, code = map(archive.read, (_STRUCTURE, _TENSORS, _CODE))
    except DataError:
        raise
    except Exception as error:  # a damaged directory of an archive raises errors of many kinds
        raise DataError(
            f"{path}: expected a program that `save` wrote, got a damaged or another file ({error}). "
            f"{_RECOMPILE}"
        ) from error
    stored = _unpickled(path, pickled)
    _check_operators(path, stored.operators)
    specs, arguments = tree.flatten(stored.arguments)
    examples = [leaf.example() if isinstance(leaf, _Spec) else leaf for leaf in specs]
    args, kwargs = tree.unflatten(arguments, examples)
    call = Call(_without_source(path, stored.name, stored.parameters), args, kwargs)
    call.settings = stored.settings
    results, treedef = tree.flatten(stored.result)
    for found, expected in ((call.names, stored.names), (tree.paths(stored.result), stored.paths)):
        _check_paths(path, found, expected)
    traced = Traced(
        torch.fx.GraphModule({}, torch.fx.Graph()),
        torch.load(io.BytesIO(tensors), weights_only=True),
        treedef,
        [TENSOR if isinstance(leaf, _Result) else leaf for leaf in results],
        stored.n_donated,
        stored.whole,
    )
    program = Program(call, traced)
    program.load(_load_code(code), stored.shared)
    return program, call, stored.donate


def _stored(program: Program, name: str, parameters: list[str], donate: bool) -> _Stored:
    signature = program.signature
    leaves = [_Spec(*spec) if len(spec) == 4 else static_value(spec) for spec in signature.specs]
    results: list[Any] = [_Result() for _ in range(program.out_treedef.num_leaves)]
    for place, value in program.static:
        results[place] = value
    result = tree.unflatten(program.out_treedef, results)
    return _Stored(
        name,
        parameters,
        donate,
        tree.unflatten(signature.treedef, leaves),
        signature.names,
        result,
        tree.paths(result),
        signature.settings,
        program.n_donated,
        program.whole,
        program.shared,
        program.operators,
    )


def _pickled(stored: _Stored) -> bytes:
    """Return the pickled structure; raise `TypeError` if it would not be the same in another process."""
    problem = f"the program of `{stored.name}` cannot be saved: its arguments or results contain"
    try:
        pickled = pickle.dumps(stored)
        again = pickle.loads(pickled)
    except Exception as error:  # classes may raise anything
        raise TypeError(
            f"{problem} an object that cannot be pickled ({error}). Define its class or function at the "
            "top level of a module, or leave it out."
        ) from error
    old, new = ((tree.leaves(each.arguments)) for each in (stored, again))
    for before, after in zip(old, new, strict=True):
        if not isinstance(before, _Spec) and static_key(before) != static_key(after):
            raise TypeError(
                f"{problem} {before!r}, which does not equal its copy: no call would fit the loaded "
                "program. Give its class __eq__ and __hash__, or leave it out."
            )
    return pickled


def _unpickled(path: pathlib.Path, pickled: bytes) -> _Stored:
    try:
        stored: _Stored = pickle.loads(pickled)
    except Exception as error:  # classes may raise anything
        raise DataError(
            f"{path}: a class, function or value in the program's arguments or results was not found "
            f"({error}). Make its module importable under the same name, or compile and save again."
        ) from error
    return stored


def _check_paths(path: pathlib.Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise if the classes of the containers have other fields here, or other orders of them."""
    if found != expected:
        raise DataError(
            f"{path}: the program was compiled for the leaves {', '.join(expected)}; with the classes "
            f"here, they are {', '.join(found)}. {_RECOMPILE}"
        )


def _check_operators(path: pathlib.Path, operators: Sequence[str]) -> None:
    for each in operators:
        namespace, _, name = each.partition("::")
        if not hasattr(getattr(torch.ops, namespace), name):
            raise DataError(
                f"{path}: the program calls the operator {each}, which is not registered here. Import "
                "the module that registers it first."
            )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the same values and strides, whose memory holds nothing else."""
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = tensor.detach().as_strided((span,), (1,)).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), 0)


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
            f"{start}inductor calls its machine code with other arguments or results than its own, as "
            "for a constant that the function makes, such as torch.tensor([1.0, 2.0]). Make such "
            "tensors outside the function, or use the cache of inductor (TORCHINDUCTOR_CACHE_DIR)."
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
    for key, value in here.items():
        if key != "features" and manifest[key] != value:
            raise DataError(
                f"{path}: the program was compiled with {key} {manifest[key]}, here it is {value}. "
                f"{_RECOMPILE}"
            )


def _made_for() -> dict[str, Any]:
    try:
        version = importlib.metadata.version("ftrain")
    except importlib.metadata.PackageNotFoundError:  # a folder on PYTHONPATH
        version = "unknown"
    return {
        "ftrain": version,
        "torch": torch.__version__,
        "python": sys.implementation.cache_tag,
        "machine": platform.machine(),
        "system": sys.platform,
        "kernels for": torch.backends.cpu.get_cpu_capability(),
        "features": _features(),
    }


def _features() -> list[str]:
    """Return the instruction sets of this processor, which inductor's C++ compiler may use."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return sorted(filter(_INSTRUCTIONS.match, value.split()))
                if name.strip() == "Features":  # Arm
                    return sorted(value.split())
    except OSError:
        pass
    return []


def _without_source(path: pathlib.Path, name: str, parameters: list[str]) -> Callable[..., Any]:
    """Return a function that has the name and the parameters of the one that was compiled."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"the program of `{name}` was loaded from {path}, without the function: it can be called, "
            "but not be traced, differentiated or compiled again, nor be called inside "
            "ftrain.random.keyed. Use the function itself for that."
        )

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__name__ = function.__qualname__ = name
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, kind) for each in parameters]
    )
    return function
