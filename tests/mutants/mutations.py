"""Mutants of a module: its source with one comparison, operator, constant or statement changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property

__all__ = ["Mutant", "mutants"]

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes:
        path: the file.
        line: the line of the change, from 1.
        last: the last line of the changed statement or expression.
        function: the qualified name of the innermost function or class around it; "" for none.
        scope: the first and the last line of that function or class; those of the file for none.
        change: the change in words, such as "Lt becomes LtE".
        original: the module without the change.
        index: the number of the changed node among the nodes that run.
    """

    path: str
    line: int
    last: int
    function: str
    scope: tuple[int, int]
    change: str
    original: str = field(repr=False)
    index: int

    @cached_property
    def tree(self) -> ast.Module:
        """The whole module with the change, and with the lines of the original."""
        module = ast.parse(self.original)
        _apply(next(node for i, node in enumerate(_code(module)) if i == self.index))
        return ast.fix_missing_locations(module)

    @cached_property
    def source(self) -> str:
        """The whole module with the change, as text."""
        return ast.unparse(self.tree)

    @cached_property
    def lines(self) -> tuple[str, str]:
        """The line that differs, without and with the change, as `ast.unparse` writes it."""
        pairs = zip(_lines(self.original), self.source.splitlines(), strict=True)
        return next((a.strip(), b.strip()) for a, b in pairs if a != b)

    def __str__(self) -> str:
        before, after = self.lines
        return f"{self.path}:{self.line}: {self.change}\n    {before}\n    {after}"


@cache
def _lines(source: str) -> list[str]:
    return ast.unparse(ast.parse(source)).splitlines()


def mutants(path: str, source: str) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines.

    Text is not changed: docstrings, messages, annotations, `__all__`, and types.
    """
    found = []
    module = ast.parse(source)
    around = _around(module, "", (1, len(source.splitlines())))
    for index, node in enumerate(_code(module)):
        change = _change(node)
        if change is not None:
            last = getattr(node, "end_lineno", None) or node.lineno
            found.append(Mutant(path, node.lineno, last, *around[node], change, source, index))
    return sorted(found, key=lambda mutant: mutant.line)


def _around(
    node: ast.AST, name: str, scope: tuple[int, int]
) -> dict[ast.AST, tuple[str, tuple[int, int]]]:
    """Return the qualified name and the lines of the function or class around each inner node."""
    found = {}
    for child in ast.iter_child_nodes(node):
        found[child] = name, scope
        inner = name, scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}".strip("."), (child.lineno, child.end_lineno or 0)
        found |= _around(child, *inner)
    return found


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run, each before its children, in a fixed order."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_text(child):
                if hasattr(child, "lineno"):
                    yield child
                yield from _code(child)


def _is_text(node: ast.AST) -> bool:
    """Return True for a node whose only effect is a message, a name or a type."""
    match node:
        case ast.Raise() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name == "__all__" or (name.isupper() and _is_type(node.value))
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Call(func=ast.Name(id="cast" | "TypeVar" | "ParamSpec")):
            return True
    return False


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript)


def _change(node: ast.AST) -> str | None:
    """Return the change that `_apply` makes at a node, in words; None if it makes none."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            return f"{_name(op)} becomes {COMPARISONS[type(op)].__name__}"
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            return f"{_name(op)} becomes {OPERATORS[type(op)].__name__}"
        case ast.BoolOp(op=op):
            return f"{_name(op)} becomes {'Or' if isinstance(op, ast.And) else 'And'}"
        case ast.UnaryOp(op=ast.Not()):
            return "Not is dropped"
        case ast.UnaryOp(op=ast.USub()):
            return "the sign is dropped"
        case ast.Constant(value=bool(value)):
            return f"{value} becomes {not value}"
        case ast.Constant(value=int(value) | float(value)) if value + 1 != value:
            return f"{value} becomes {value + 1}"
        case ast.IfExp() | ast.If() | ast.While():
            return "the condition is negated"
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            return "None is returned"
        case ast.Expr(value=ast.Call()):
            return "the call is dropped"
        case ast.Continue():
            return "Continue becomes Break"
    return None


def _apply(node: ast.AST) -> None:
    match node:
        case ast.Compare():
            node.ops = [COMPARISONS[type(node.ops[0])]()]
        case ast.BinOp() | ast.AugAssign():
            node.op = OPERATORS[type(node.op)]()
        case ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not()):
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        case ast.UnaryOp():
            node.op = ast.UAdd()
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant():
            node.value += 1
        case ast.IfExp() | ast.If() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Return():
            node.value = ast.Constant(None)
        case ast.Expr():
            node.value = ast.Constant(None)
        case ast.Continue():
            node.__class__ = ast.Break


def _name(op: ast.AST) -> str:
    return type(op).__name__
