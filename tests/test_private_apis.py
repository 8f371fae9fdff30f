"""Private torch APIs are used in `core/_torch*.py` only, so that a new torch affects few files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ftrain"

#: `(file, name)`: why it is used outside of those files.
ALLOWED = {
    (
        "__init__.py",
        "torch._C._functorch.peek_interpreter_stack",
    ): "must not import a module of ours",
    (
        "core/_printing.py",
        "torch._higher_order_ops.effects._EffectType",
    ): "one use, beside its operator",
    (
        "core/_printing.py",
        "torch._higher_order_ops.effects._register_effectful_op",
    ): "one use, likewise",
    ("core/compile/_call.py", "_backward_hooks"): "read for each leaf of each call",
    ("core/compile/_ownership.py", "_cdata"): "of a storage, which has no other identity",
    ("core/random/_generators.py", "_bit_generator"): "NumPy's",
    ("core/random/_generators.py", "_inst"): "Python's `random`",
    ("core/random/_generators.py", "_rand"): "NumPy's",
    ("core/random/_own_generators.py", "_inst"): "Python's `random`",
    ("core/random/_own_generators.py", "_rand"): "NumPy's",
    ("core/tree.py", "_Hash"): "the type of `hashlib`'s objects",
    (
        "tasks/metrics/from_torchmetrics.py",
        "_defaults",
    ): "torchmetrics', whose states have no other list",
    ("tasks/metrics/from_torchmetrics.py", "_reductions"): "torchmetrics', likewise",
}

_PYTHON = {"_asdict", "_current_frames", "_exit", "_fields", "_getframe", "_make", "_replace"}
_PYTHON |= {"_run_exitfuncs"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Return every name that a module binds: functions, classes, variables, attributes, arguments."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def dotted(node: ast.expr) -> str:
    """Return a dotted name such as `torch._C._functorch`, with `?` for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def private_uses(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of each private API of another package."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if any(map(is_private, name.split("."))):
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("torch.") and any(map(is_private, alias.name.split("."))):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            name = dotted(node)
            first, *others = name.split(".")
            if "aten" in others or first in ("aten", "self", "cls"):
                continue  # operators are called by the names of their schemas
            if first in ("torch", "nn") and any(map(is_private, others)):
                yield node.lineno, name
                continue
            for part in others:
                if is_private(part) and part not in own:
                    yield node.lineno, part
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            name = str(node.args[1].value)
            if is_private(name) and name not in own:
                yield node.lineno, name


def uses_outside(package: Path) -> dict[tuple[str, str], str]:
    """Return the line of each use outside of `core/_torch*.py`, by `(file, name)`."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    own = _PYTHON | {name for tree in trees.values() for name in defined(tree)}
    own |= {path.stem for path in trees}
    return {
        (path.relative_to(package).as_posix(), name): f"{path}:{line}"
        for path, tree in trees.items()
        if not path.relative_to(package).as_posix().startswith("core/_torch")
        for line, name in private_uses(tree, own)
    }


@pytest.fixture(scope="module")
def uses() -> dict[tuple[str, str], str]:
    return uses_outside(PACKAGE)


def test_private_torch_apis_are_used_in_core_torch_files_only(
    uses: dict[tuple[str, str], str],
) -> None:
    new = {where: name for (file, name), where in uses.items() if (file, name) not in ALLOWED}
    assert not new, f"wrap these in ftrain/core/_torch*.py: {new}"


def test_every_allowed_private_api_use_still_exists(uses: dict[tuple[str, str], str]) -> None:
    assert set(ALLOWED) <= set(uses)


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch.utils import _pytree",
        "from torch._ops import OpOverload",
        "x = torch._C._len_torch_dispatch_stack()",
        "x = tensor._is_zerotensor()",
        "x = tensor.untyped_storage()._cdata",
        "x = getattr(operator, '_schema')",
        "x = nn.modules.batchnorm._BatchNorm",
    ],
)
def test_new_private_api_use_outside_core_torch_files_is_reported(
    line: str, tmp_path: Path
) -> None:
    (tmp_path / "core").mkdir()
    for name in ("core/_torch_new.py", "core/step.py"):
        (tmp_path / name).write_text(line + "\n")
    assert [file for file, _ in uses_outside(tmp_path)] == ["core/step.py"]
