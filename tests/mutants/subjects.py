"""Modules of `ftrain/core` that `python -m tests.mutants` changes, and the tests that judge them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ftrain" / "core"

# Modules that run on a CUDA device only, where these tests do not.
NEED_CUDA = ("_torch_cuda", "compile._cuda_graph", "random._cuda_kernel", "random._cuda_samplers")
# Tests, and docstrings with examples. Those that compile machine code take an hour under a tracer.
MARKS = "not inductor"
JUDGES = (
    "ftrain/core",
    "tests/random",
    "tests/core",
    "tests/loop/test_compiler.py",
    "tests/loop/test_metrics.py",
    "tests/laws",
    "tests/compile",
)
# Files that may contain a word for it to choose tests.
_FEW = 6


def subjects() -> dict[str, Path]:
    """Return the modules of `ftrain/core` that run on the CPU, by name, such as `random.keys`."""
    paths = {_name(path): path for path in sorted(CORE.rglob("*.py"))}
    return {name: path for name, path in paths.items() if name not in NEED_CUDA}


def imported(name: str) -> str:
    """Return the name under which a module is imported, such as `ftrain.core.random.keys`."""
    return f"ftrain.core.{name}".removesuffix(".__init__")


def judges() -> list[str]:
    """Return the files of tests that judge a mutant, and the folder whose docstrings do."""
    found = []
    for judge in JUDGES:
        files = sorted((ROOT / judge).rglob("test_*.py"))  # none in a file, and among docstrings
        found += [str(file.relative_to(ROOT)) for file in files] or [judge]
    return found


def relatives(name: str, function: str = "") -> list[str]:
    """Return the files of tests, in all folders, that are nearest to a function of a module.

    First the files named after the module, or that name it if it is private. Then those that name the
    function or a class around it, and those named after a module outside `ftrain/core` that does, if
    they are few: a word that many files contain says little.

    Args:
        name: the module, such as `random.keys`.
        function: the qualified name of the function; "" for none.
    """
    last = name.rpartition(".")[2]
    words = _words(str(ROOT / "tests"))
    tests = [
        file for file in words if Path(file).stem.startswith("test_") and "/mutants/" not in file
    ]

    def named(*stems: str) -> list[str]:
        return [file for file in tests if Path(file).stem.removeprefix("test_") in stems]

    found = named(last.strip("_"))
    if last.startswith("_"):
        found += [file for file in tests if last in words[file]]
    code = _words(str(CORE.parent))
    outside = [file for file in code if not file.startswith("ftrain/core/")]
    for part in (*reversed(function.split(".")), last):
        naming = [file for file in tests if part in words[file]]
        is_word = part.strip("_").isalpha() and part.islower()  # perhaps English, as `written`
        found += naming if len(naming) <= _FEW and not is_word else []
        users = [Path(file).stem for file in outside if part in code[file]]
        if len(users) <= _FEW and not is_word:
            hidden = {stem for stem in users if stem.startswith("_")}  # tested through their users
            users += [Path(file).stem for file in outside if hidden & code[file]]
            found += named(*(stem.strip("_") for stem in users))
    return list(dict.fromkeys(found))


@cache
def _words(folder: str) -> dict[str, frozenset[str]]:
    """Return the words of each Python file of a folder."""
    return {
        str(file.relative_to(ROOT)): frozenset(re.findall(r"\w+", file.read_text()))
        for file in sorted(Path(folder).rglob("*.py"))
    }


def _name(path: Path) -> str:
    return ".".join(path.relative_to(CORE).with_suffix("").parts)
