"""Detection of writes that a donating program made before it failed.

Inductor's programs are Python functions that allocate and launch kernels, line by line; an exception's
traceback names the line it came from. If no line before it writes to an argument, the arguments are
unchanged. A line that cannot be read counts as a write.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
import types
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core._torch_dispatch import OpOverload, schema_of

__all__ = ["may_have_written"]

_HARMLESS = ("empty_strided", "assert_", "args.clear", "get_raw_stream", "reinterpret_tensor")
_PARAMETERS = re.compile(r"\ndef \w+\(([^)]*)\)")


def may_have_written(error: BaseException) -> bool:
    """Return True if arguments may have been written to before this exception was raised."""
    trace = error.__traceback__
    while trace is not None:
        first = _first_write(trace.tb_frame)
        if first is not _NO_PROGRAM:
            return first is not None and trace.tb_lineno >= first
        trace = trace.tb_next
    return True  # not raised in a program, but before or after it


_NO_PROGRAM: Any = object()


def _first_write(frame: types.FrameType) -> int | None:
    """Return the first line of a frame's program that writes to an argument; `None` if none does."""
    code = frame.f_code
    if code.co_name == "forward" and code.co_filename.startswith("<eval_with_key>"):
        return _first_copy(code.co_filename)
    if code.co_name == "call" and "reinterpret_tensor" in frame.f_globals:
        return _first_write_of(code.co_filename, code.co_firstlineno)
    return _NO_PROGRAM  # type: ignore[no-any-return]


def _first_copy(filename: str) -> int | None:
    """Return the line number of the first copy in an eager graph (all copies come last)."""
    lines = linecache.getlines(filename)
    if not lines:
        return 0
    return next((i for i, line in enumerate(lines, 1) if ".copy_.default(" in line), None)


@functools.lru_cache(maxsize=64)
def _first_write_of(filename: str, line: int) -> int | None:
    """Return the first line of inductor's program that writes to an argument."""
    source = "".join(linecache.getlines(filename))
    try:
        module = ast.parse(source)
    except SyntaxError:
        return 0
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == "call" and node.lineno == line
    ]
    if not source or not calls:
        return 0
    return _Reader(_kernels(module)).first_write(calls[0])


def _kernels(module: ast.Module) -> dict[str, set[int]]:
    """Return, for each kernel, the positions of the arguments that it writes to."""
    found = {}
    for statement in module.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        maker, arguments = ast.unparse(statement.value.func), statement.value.args
        if maker == "async_compile.cpp_pybinding":
            kinds = ast.literal_eval(arguments[0])
            written = {i for i, kind in enumerate(kinds) if "*" in kind and "const" not in kind}
        elif maker == "async_compile.triton" and isinstance(arguments[1], ast.Constant):
            parameters = _PARAMETERS.search(str(arguments[1].value))
            if parameters is None:
                continue
            names = parameters[1].split(",")
            written = {i for i, name in enumerate(names) if "out_ptr" in name}
        else:
            continue
        found[ast.unparse(statement.targets[0])] = written
    return found


class _Reader:
    """Reader of a program's lines that tracks which names refer to its arguments' memory."""

    def __init__(self, kernels: dict[str, set[int]]) -> None:
        self._kernels = kernels
        self._arguments: set[str] = set()

    def first_write(self, program: ast.FunctionDef) -> int | None:
        for statement in _flat(program.body):
            if isinstance(statement, ast.Assign):
                self._assign(statement)
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Call) and self._writes(value):
                return statement.lineno
        return None

    def _assign(self, statement: ast.Assign) -> None:
        value, target = statement.value, statement.targets[0]
        if isinstance(value, ast.Name) and value.id == "args":  # arg0_1, arg1_1 = args
            self._arguments |= {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        elif self._is_argument(value) and isinstance(target, ast.Name):
            self._arguments.add(target.id)

    def _is_argument(self, value: ast.expr) -> bool:
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "reinterpret_tensor":
            value = value.args[0]
        return isinstance(value, ast.Name) and value.id in self._arguments

    def _writes(self, call: ast.Call) -> bool:
        name = ast.unparse(call.func)
        if name.startswith(_HARMLESS):
            return False
        kernel = self._kernels.get(name.removesuffix(".run"))
        if kernel is not None:
            return any(i in kernel and self._is_argument(x) for i, x in enumerate(call.args))
        if name.startswith("extern_kernels."):
            outs = [keyword.value for keyword in call.keywords if keyword.arg == "out"]
            return not outs or any(map(self._is_argument, outs))
        operator = _operator(name)
        if operator is not None and not schema_of(operator).is_mutable:
            return False
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        return any(
            self._is_argument(x) for top in given for x in ast.walk(top) if isinstance(x, ast.expr)
        )


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.With):
            yield from _flat(statement.body)
        else:
            yield statement


def _operator(name: str) -> OpOverload[..., Any] | None:
    """Return the operator with a name such as `torch.ops.aten.add.Tensor`; `None` if there is none."""
    path = name.split(".")
    if path[0] == "aten":
        path = ["torch", "ops", *path]
    if path[:2] != ["torch", "ops"]:
        return None
    found: Any = torch.ops
    for part in path[2:]:
        found = getattr(found, part, None)
    return found if isinstance(found, OpOverload) else None
