"""Mutants of functions, put into modules that are imported already.

A fork of a process that has imported ftrain and its tests runs the first tests of a mutant in a fifth of
the time that one takes which has to import them. It sees no change of what runs at import, and none of a
module that no test imports: `swappable` finds the mutants that must be imported instead.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import math
import types
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.mutants.mutations import Mutant
from tests.mutants.subjects import CORE
from tests.mutants.trial import forked

__all__ = ["changed_functions", "functions_of", "import_tests", "swap", "swappable"]

Pair = tuple[types.CodeType, types.CodeType]
Place = tuple[str, str, int]
LIMIT = 1800.0  # seconds of a processor to import all tests


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


def swappable(mutants: Sequence[Mutant], package: str, imports: Callable[[], object]) -> list[bool]:
    """Return, for each mutant, True if `swap` has the same effect as an import of the mutant.

    The changed functions must be in memory after the imports, and must not have run during that of the
    package. They may have run during that of a test: to import such mutants too would take five times
    as long, so only survivors are worth it (`--survivors --imported`).

    Args:
        mutants: changes of modules that are not imported yet.
        package: the package of the modules.
        imports: imports what the trials import, as `import_tests` does. It runs in a forked process.
    """
    found = forked(
        lambda: {"swappable": _swappable(mutants, package, imports)}, LIMIT, idle=math.inf
    )
    if "swappable" not in found:
        raise RuntimeError(f"expected the tests to be imported, got {found}. Run them with pytest.")
    answers: list[bool] = found["swappable"]
    return answers


def _swappable(
    mutants: Sequence[Mutant], package: str, imports: Callable[[], object]
) -> list[bool]:
    import coverage

    folders = sorted({str(Path(mutant.path).parent) for mutant in mutants})
    tracer = coverage.Coverage(data_file=None, config_file=False, source=folders, messages=False)
    tracer.start()
    try:
        importlib.import_module(package)
    finally:
        tracer.stop()
    imports()
    data = tracer.get_data()
    run = {path: set(data.lines(path) or ()) for path in data.measured_files()}
    return [
        bool(pairs := changed_functions(mutant))
        and run.get(mutant.path, set()).isdisjoint(range(mutant.line, mutant.last + 1))
        and bool(_in_memory(pairs))
        for mutant in mutants
    ]


def functions_of(pairs: Sequence[Pair]) -> list[tuple[types.FunctionType, types.CodeType]]:
    """Return every function in memory that runs a changed code, with the new one.

    Raises:
        RuntimeError: there is none, so that a swap would change nothing.
    """
    found = _in_memory(pairs)
    if not found:
        places = [_place(before) for before, _ in pairs]
        raise RuntimeError(f"expected a function in memory, got none of {places}. Import it.")
    return found


def _in_memory(pairs: Sequence[Pair]) -> list[tuple[types.FunctionType, types.CodeType]]:
    found = []
    for before, after in pairs:
        functions = _functions.get(_place(before), ()) or _find([before])[_place(before)]
        found += [(each, after) for each in functions if each.__code__ == before]
    return found


def swap(functions: Sequence[tuple[types.FunctionType, types.CodeType]]) -> None:
    """Give functions other code."""
    for function, code in functions:
        function.__code__ = code


def import_tests(files: Sequence[str]) -> None:
    """Import files of tests, and so the modules of ftrain that they use.

    Their objects are kept out of later collections of garbage, so that forks share their memory.
    """
    importlib.import_module("tests.conftest")
    for file in files:
        if file.endswith(".py"):
            importlib.import_module(file.removesuffix(".py").replace("/", "."))
    gc.collect()
    _functions.update(_find(None))
    gc.freeze()


_functions: dict[Place, list[types.FunctionType]] = {}  # those of `ftrain/core` in frozen memory


def _find(codes: Sequence[types.CodeType] | None) -> dict[Place, list[types.FunctionType]]:
    """Return the functions in memory that run some codes, or any of `ftrain/core`, by their place."""
    places = None if codes is None else {_place(code) for code in codes}
    found: dict[Place, list[types.FunctionType]] = defaultdict(list)
    for function in gc.get_objects():
        if type(function) is types.FunctionType:
            place = _place(function.__code__)
            if place[0].startswith(str(CORE)) if places is None else place in places:
                found[place].append(function)
    return found


def _place(code: types.CodeType) -> Place:
    return code.co_filename, code.co_qualname, code.co_firstlineno
