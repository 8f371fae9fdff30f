"""Packages of ftrain import only those in lower layers, and modules have no import cycles.

Every import statement counts: at the top of a module, inside a function, under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room may import the rooms before it, and itself; rooms of one line do not import each other.
FLOORS = [
    {"core"},
    {"bench", "optim", "data", "checkpoint"},
    {"distributed", "tasks", "testing", "transforms"},
    {"loop"},
    {"config"},
    {"cli"},
]
# Rooms that may import fewer rooms than their floor allows.
# `testing` resumes runs from real checkpoints, draws optimizers and switches the workers of loaders.
ONLY = {
    "distributed": {"core", "optim", "checkpoint"},
    "tasks": {"core", "optim"},
    "transforms": {"core", "optim"},
    "testing": {"core", "optim", "data", "checkpoint"},
}
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = ("ftrain", "ftrain._public")  # they hand on the names of `core`, so stand just above it


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package below `root`, by its dotted name."""
    found = {}
    for path in sorted((root / "ftrain").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(name: str, path: Path, known: dict[str, Path]) -> dict[str, int]:
    """Return the modules that a module imports, with lines; a package stands for its `__init__`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: dict[str, int] = {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from package import module` imports the module, not what `package/__init__.py` holds.
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [each if each in known else base for each in names]
        else:
            continue
        for target in targets:
            if target in known and target != name:
                found.setdefault(target, node.lineno)
    return found


def room(name: str) -> str | None:
    """Return the subpackage of a module, or `None` for the few files outside of subpackages."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else None


def violations(root: Path) -> list[str]:
    """Return every import from a higher layer, as `file:line imports module`."""
    known = modules(root)
    found = []
    for name, path in known.items():
        own = room(name)
        if own is None:
            continue
        for target, line in imports(name, path, known).items():
            other = "core" if target in PUBLIC else room(target)
            if other is None or (other == own and target not in PUBLIC):
                continue
            if FLOOR[other] >= FLOOR[own] or other not in ONLY.get(own, FLOOR):
                found.append(f"{path.relative_to(root)}:{line} imports {target}")
    return found


def circle(root: Path) -> list[str]:
    """Return one import cycle, or an empty list."""
    known = modules(root)
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        members: list[str] = error.args[1]
        return members
    return []


def test_packages_import_only_packages_of_lower_layers() -> None:
    assert violations(ROOT) == []


def test_modules_have_no_import_cycles() -> None:
    assert circle(ROOT) == []


def test_every_helper_module_in_the_tests_directory_can_be_imported() -> None:
    """The suite itself imports only what its tests need, not the campaigns."""
    scripts = {"tests.checkpoint.by_hand"}  # it trains at its import
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not path.stem.startswith(("test_", "__")) and name not in scripts:
            importlib.import_module(name)


def test_every_package_has_a_layer_in_the_import_order() -> None:
    rooms = {path.name for path in (ROOT / "ftrain").iterdir() if (path / "__init__.py").exists()}
    assert rooms == FLOOR.keys()


@pytest.mark.parametrize(
    "statement",
    [
        "from ftrain.loop import Trainer",
        "import ftrain.config.schema",
        "def late():\n    from ftrain.optim import adam",
        "from ftrain import compile",
    ],
)
def test_import_from_a_higher_layer_is_reported(tmp_path: Path, statement: str) -> None:
    write(tmp_path, "core/tree.py", statement)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(("statement", "count"), [("ftrain.optim", 0), ("ftrain.data", 1)])
@pytest.mark.parametrize("package", ["tasks", "transforms"])
def test_tasks_and_transforms_may_import_core_and_optim_only(
    tmp_path: Path, package: str, statement: str, count: int
) -> None:
    write(tmp_path, f"{package}/losses.py", f"import {statement}")
    assert len(violations(tmp_path)) == count


def test_import_cycle_by_imports_in_a_function_and_under_type_checking_is_reported(
    tmp_path: Path,
) -> None:
    write(tmp_path, "core/a.py", "def late():\n    from ftrain.core import b")
    write(
        tmp_path,
        "core/b.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ftrain.core.a import late",
    )
    assert set(circle(tmp_path)) == {"ftrain.core.a", "ftrain.core.b"}


def write(root: Path, path: str, text: str) -> None:
    """Write a module of a package with just enough subpackages for these tests."""
    for each in ("loop", "config", "tasks", "transforms", "data", "optim", "core"):
        package = root / "ftrain" / each
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
    (root / "ftrain" / "__init__.py").write_text("")
    (root / "ftrain" / "config" / "schema.py").write_text("")
    (root / "ftrain" / "optim" / "adam.py").write_text("")
    (root / "ftrain" / path).write_text(text)
