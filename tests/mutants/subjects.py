"""Modules of `ftrain/core` that `python -m tests.mutants` changes, and the tests that judge them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ftrain" / "core"

# Modules that run on a CUDA device only, where these tests do not.
NEED_CUDA = ("_torch_cuda", "compile._cuda_graph", "random._cuda_kernel")
# Tests, and docstrings with examples. Those that compile machine code take an hour under a tracer.
MARKS = "not inductor"
JUDGES = (
    "ftrain/core",
    "tests/random",
    "tests/core",
    "tests/loop/test_metrics.py",
    "tests/laws",
    "tests/compile",
)


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


def relatives(name: str) -> list[str]:
    """Return the files of tests that are named after a module, or that name it if it is private."""
    last = name.rpartition(".")[2]
    word = re.compile(rf"\b{last}\b")
    return [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if file.parent.name != "mutants"
        and (
            file.stem.removeprefix("test_") == last.strip("_")
            or (last.startswith("_") and word.search(file.read_text()))
        )
    ]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(CORE).with_suffix("").parts)
