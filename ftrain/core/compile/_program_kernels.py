"""Parser that finds which arguments the kernels in inductor's generated Python only read."""

from __future__ import annotations

import ast
import re

__all__ = ["kernels_read"]

_MUTATED = re.compile(r"'mutated_arg_names': \[([^\]]*)\]")


def kernels_read(module: ast.Module) -> dict[str, set[int]]:
    """Return, for each kernel that can be parsed, the positions of the arguments that it only reads."""
    found = {}
    for statement in module.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        maker, arguments = ast.unparse(statement.value.func), statement.value.args
        only_read = None
        if maker == "async_compile.cpp_pybinding":
            only_read = _read_by_cpp(ast.literal_eval(arguments[0]))
        elif maker == "async_compile.triton":
            only_read = _read_by_triton(*map(_text, arguments[:2]))
        if only_read is not None:
            found[ast.unparse(statement.targets[0])] = only_read
    return found


def _read_by_cpp(kinds: list[str]) -> set[int]:
    return {i for i, kind in enumerate(kinds) if "*" not in kind or kind.startswith("const ")}


def _read_by_triton(name: str, source: str) -> set[int] | None:
    """Return the positions that a Triton kernel only reads; `None` if its source is not recognized.

    A buffer that is read and written may be passed twice. `mutated_arg_names` then lists both names, so
    an input in that list is treated as written too.
    """
    parameters = re.search(rf"\ndef {re.escape(name)}\(([^)]*)\)", source)
    mutated = _MUTATED.search(source)
    if parameters is None or mutated is None:
        return None
    names = [parameter.split(":")[0].strip() for parameter in parameters[1].split(",")]
    return {
        i
        for i, name in enumerate(names)
        if re.fullmatch(r"in_ptr\d+", name)
        and f"'{name}'" not in mutated[1]
        and not re.search(rf"\b(store|atomic_\w+)\({name}\b", source)
    }


def _text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""
