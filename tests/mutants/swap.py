"""Mutants of functions, put into modules that are imported already.

A fork of a process that has imported ftrain and its tests runs the first tests of a mutant in a fifth of
the time that one takes which has to import them. It sees no change of what runs at import.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import types
from collections.abc import Sequence

from tests.mutants.lines import EXAMPLES
from tests.mutants.mutations import Mutant
from tests.mutants.trial import WithoutShrinking

__all__ = ["changed_functions", "functions_of", "import_tests", "swap"]

Pair = tuple[types.CodeType, types.CodeType]


def changed_functions(mutant: Mutant) -> list[Pair]:
    """Return the code of each changed function, without and with the change.

    None where a module or the body of a class changes, or where a function is dropped.
    """
    before = compile(mutant.original, mutant.path, "exec", dont_inherit=True)
    after = compile(mutant.tree, mutant.path, "exec", dont_inherit=True)
    found: list[Pair] = []
    return found if _collect(before, after, found) else []


def _collect(before: types.CodeType, after: types.CodeType, found: list[Pair]) -> bool:
    """Collect the functions that differ; return False if anything else does."""
    inner = [_inner(before), _inner(after)]
    if len(inner[0]) != len(inner[1]):
        return False
    is_function = bool(before.co_flags & inspect.CO_OPTIMIZED)  # no module, no body of a class
    if before == after:
        return True
    if is_function:
        found.append((before, after))
    elif _without_inner(before) != _without_inner(after):
        return False
    return all(_collect(a, b, found) for a, b in zip(*inner, strict=True))


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [each for each in code.co_consts if isinstance(each, types.CodeType)]


def _without_inner(code: types.CodeType) -> tuple[object, ...]:
    consts = [None if isinstance(x, types.CodeType) else (type(x), x) for x in code.co_consts]
    return code.co_code, code.co_names, consts


def functions_of(pairs: Sequence[Pair]) -> list[tuple[types.FunctionType, types.CodeType]]:
    """Return every function in memory that runs a changed code, with the new one.

    Raises:
        RuntimeError: there is none, so that a swap would change nothing.
    """
    new = {(a.co_filename, a.co_qualname, a.co_firstlineno): (a, b) for a, b in pairs}
    found = []
    for function in gc.get_objects():
        if type(function) is types.FunctionType:
            code = function.__code__
            pair = new.get((code.co_filename, code.co_qualname, code.co_firstlineno))
            if pair is not None and pair[0] == code:
                found.append((function, pair[1]))
    if not found:
        raise RuntimeError(f"expected a function in memory, got none of {list(new)}. Import it.")
    return found


def swap(functions: Sequence[tuple[types.FunctionType, types.CodeType]]) -> None:
    """Give functions other code."""
    for function, code in functions:
        function.__code__ = code


def import_tests(files: Sequence[str]) -> None:
    """Import files of tests, and so the modules of ftrain that they use."""
    importlib.import_module("tests.conftest")
    WithoutShrinking(EXAMPLES).load()  # decorated tests keep the settings of their import
    for file in files:
        if file.endswith(".py"):
            importlib.import_module(file.removesuffix(".py").replace("/", "."))
