"""Reader of inductor's generated Python, which finds the first line that writes to an argument.

A program is a function that allocates and launches kernels, line by line. It may call other functions of
its module: the bodies of loops and branches, and the functions `partition_N`, into which programs for
CUDA graphs are divided. Only statements of known forms that write nothing are accepted; any other
statement that mentions an argument, or memory that may be an argument's, is treated as a write.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core._torch_dispatch import OpOverload, may_return_input, names_of, schema_of
from ftrain.core.compile._program_kernels import kernels_read

__all__ = ["ProgramModule"]

# Functions that write to none of their arguments; those in the second tuple also return new memory.
_HARMLESS = (
    *("assert_alignment", "assert_size_stride", "copy_if_misaligned", "get_raw_stream"),
    *("int", "len", "range", "reinterpret_tensor"),
)
_HARMLESS_AND_FRESH = ("extern_kernels.convolution", "torch.stack")
# Tensor methods that neither write to the tensor nor return its memory; methods that fill or empty a
# list.
_METHODS = ("clone", "data_ptr", "item", "numel", "size", "stride")
_LIST_METHODS = ("append", "clear", "extend")
_EXPRESSIONS = (
    *(ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Subscript, ast.Slice, ast.Attribute),
    *(ast.Call, ast.keyword, ast.UnaryOp, ast.Compare, ast.BinOp, ast.BoolOp),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)
#: For each item of the list of arguments of a function, True if a write to it counts; `None`: all count.
Given = tuple[bool, ...] | None

_MOST_PASSES = 100  # over the body of a loop, until nothing more is found

_PARTITION = re.compile(r"self\.partitions\[(\d+)\]")


class ProgramModule:
    """Syntax trees of the Python file that inductor wrote for one compiled graph.

    Args:
        filename: the file, read through `linecache`.

    Attributes:
        functions: its functions, and the methods of its classes, by name.
        kernels: for each kernel that can be read, the positions of the arguments that it only reads.
        blocks: the lines of its `with` statements, which run when a block is entered and when it is
            left.
    """

    def __init__(self, filename: str) -> None:
        module = ast.parse("".join(linecache.getlines(filename)))
        self.functions = {
            node.name: node
            for top in module.body
            for node in (top.body if isinstance(top, ast.ClassDef) else [top])
            if isinstance(node, ast.FunctionDef)
        }
        self.kernels = kernels_read(module)
        self.blocks = {node.lineno for node in ast.walk(module) if isinstance(node, ast.With)}
        self._first: dict[tuple[str, Given], int | None] = {}
        self._returned: dict[tuple[str, Given], Given] = {}

    @classmethod
    @functools.lru_cache(maxsize=64)
    def read(cls, filename: str) -> ProgramModule | None:
        """Return the parsed module in a file; `None` if it cannot be parsed."""
        try:
            return cls(filename)
        except (SyntaxError, ValueError, IndexError):
            return None

    def first_write(self, function: str, given: Given = None) -> int | None:
        """Return the first line of a function's body that may write to an argument; `None` if none.

        Args:
            function: its name.
            given: for each item of its list of arguments, True if a write to it counts; `None`: to all.
        """
        key = function, given
        if key not in self._first:
            self._first[key] = self.functions[function].lineno  # used if it calls itself
            reader = _Reader(self, given)
            self._first[key] = reader.first_write(self.functions[function])
            if self._first[key] is None:
                self._returned[key] = reader.returned
        return self._first[key]

    def returned(self, function: str, given: Given = None) -> Given:
        """Return, for each result of a function, whether it may share memory with an argument.

        `None`: all may be, or the function may write to an argument.
        """
        self.first_write(function, given)
        return self._returned.get((function, given))


class _Reader:
    """Reader of one function that tracks the names that may refer to memory of its arguments.

    Args:
        module: the module that has the function.
        given: as in `ProgramModule.first_write`.

    Attributes:
        returned: for each result, whether it may be memory of an argument; `None`: all may be.
    """

    def __init__(self, module: ProgramModule, given: Given = None) -> None:
        self.returned: Given = None
        self._returns: list[Given] = []  # of each `return`
        self._module = module
        self._arguments: set[str] = set()
        self._lists: set[str] = set()  # names of Python lists, whose items may be arguments
        # For each list of a known length, whether each of its items may be an argument.
        self._items: dict[str, list[bool]] = {} if given is None else {"args": list(given)}
        self._seen = {"args"}  # names that were assigned

    def first_write(self, function: ast.FunctionDef) -> int | None:
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self._arguments = {each.arg for each in parameters} - {"self"}
        self._lists = {"args"}
        first = self._first(function.body)
        known = [each for each in self._returns if each is not None]
        if len(known) == len(self._returns) and len(set(map(len, known))) == 1:
            self.returned = tuple(map(any, zip(*known, strict=True)))
        return first

    def _first(self, body: list[ast.stmt]) -> int | None:
        for statement in body:
            if isinstance(statement, ast.With):
                entered = any(self._evaluates(item.context_expr) for item in statement.items)
                line = statement.lineno if entered else self._first(statement.body)
            else:
                line = statement.lineno if self._writes(statement) else None
            if line is not None:
                return line
        return None

    def _writes(self, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Assign):
            # A list instead of a generator, so that every target is recorded.
            harmless = [self._assign(target, statement.value) for target in statement.targets]
            value = statement.value
            if isinstance(value, ast.Name) and value.id in self._lists:
                harmless += [isinstance(target, ast.Tuple) for target in statement.targets]
            return self._evaluates(value) or not all(harmless)
        if isinstance(statement, ast.Return):
            several = statement.value.elts if isinstance(statement.value, ast.Tuple) else None
            found = None if several is None else tuple(map(self._mentions, several))
            self._returns.append(found)
        if isinstance(statement, (ast.Expr, ast.Return)):
            return statement.value is not None and self._evaluates(statement.value)
        if isinstance(statement, ast.Assert):
            return self._evaluates(statement.test)
        if isinstance(statement, ast.Raise):
            return statement.exc is not None and self._evaluates(statement.exc)
        if isinstance(statement, (ast.If, ast.While)):
            for _ in range(_MOST_PASSES):  # the next iteration may read names assigned here
                before = self._known()
                if self._first([*statement.body, *statement.orelse]) is not None:
                    return True
                if self._known() == before:
                    return self._evaluates(statement.test)
            return True
        return not isinstance(statement, (ast.Delete, ast.Pass))

    def _known(self) -> object:
        """Return a snapshot of the names and list items that may be arguments, to detect changes."""
        items = {name: tuple(of_list) for name, of_list in self._items.items()}
        return frozenset(self._arguments), frozenset(self._lists), items

    def _assign(self, target: ast.expr, value: ast.expr) -> bool:
        """Record what a name refers to; return False if the assignment may write to an argument."""
        if isinstance(target, (ast.Tuple, ast.List)):
            n = len(target.elts)
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == n:
                given = [self._may_be_argument(each) for each in value.elts]
            else:
                known = self._known_items(value)
                given = list(known) if len(known) == n else [self._may_be_argument(value)] * n
            harmless = [self._refer(*each) for each in zip(target.elts, given, strict=True)]
            return all(harmless)
        is_argument = self._may_be_argument(value)
        if isinstance(target, ast.Name) and _is_list(value):
            self._new_list(target.id, self._items_of(value))
            if is_argument:
                self._arguments.add(target.id)
            return True
        return self._refer(target, is_argument)

    def _known_items(self, value: ast.expr) -> Sequence[bool]:
        """Return, for each item of a list or of a call's result, whether it may be an argument.

        () if the items are unknown.
        """
        if isinstance(value, ast.Name):
            return self._items.get(value.id, ())
        function = _function(ast.unparse(value.func)) if isinstance(value, ast.Call) else ""
        if function in self._module.functions:
            assert isinstance(value, ast.Call)
            return self._module.returned(function, self._given(value)) or ()
        return ()

    def _new_list(self, name: str, items: list[bool]) -> None:
        """Record the list assigned to a name; merge it with a list assigned to it in another branch."""
        before = self._items.get(name)
        if name not in self._seen:
            self._items[name] = items
        elif before is not None and len(before) == len(items):
            self._items[name] = [a or b for a, b in zip(before, items, strict=True)]
        else:
            self._items.pop(name, None)
        self._lists.add(name)
        self._seen.add(name)

    def _refer(self, target: ast.expr, is_argument: bool) -> bool:
        """Record whether an assigned name or item may be an argument.

        Return False if the assignment may write to an argument.
        """
        name = target.value if isinstance(target, ast.Subscript) else target
        if not isinstance(name, ast.Name):
            return False
        if isinstance(target, ast.Subscript):
            if name.id not in self._lists and (is_argument or name.id in self._arguments):
                return False  # writes to a tensor, or to a list that may have another name
            place, items = _constant(target.slice), self._items.get(name.id)
            if items is not None and place is not None and 0 <= place < len(items):
                items[place] |= is_argument
            else:
                self._items.pop(name.id, None)
        else:
            self._lists.discard(name.id)
            self._items.pop(name.id, None)
            self._seen.add(name.id)
        if is_argument:
            self._arguments.add(name.id)
        return True

    def _items_of(self, value: ast.expr) -> list[bool]:
        """Return, for each item of a list made by the program, whether it may be an argument."""
        if isinstance(value, ast.BinOp):  # [None] * 3
            times = _constant(value.right)
            return self._items_of(value.left) * (times or 0)
        assert isinstance(value, ast.List)
        if any(isinstance(each, ast.Starred) for each in value.elts):
            return []  # of unknown length: what the name may refer to decides
        return [self._may_be_argument(each) for each in value.elts]

    def _may_be_argument(self, value: ast.expr) -> bool:
        return self._mentions(value) and not self._is_fresh(value)

    def _mentions(self, node: ast.AST) -> bool:
        """Return True if an expression reads a variable or an item of a list that may be an argument."""
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            place, items = _constant(node.slice), self._items.get(node.value.id)
            if items is not None and place is not None and 0 <= place < len(items):
                return items[place]
        if isinstance(node, ast.Name):
            return node.id in self._arguments
        return any(map(self._mentions, ast.iter_child_nodes(node)))

    def _evaluates(self, value: ast.expr) -> bool:
        """Return True if evaluating an expression may write to an argument."""
        if not self._mentions(value):
            return False
        return any(
            not isinstance(node, _EXPRESSIONS) or (isinstance(node, ast.Call) and self._calls(node))
            for node in ast.walk(value)
        )

    def _calls(self, call: ast.Call) -> bool:
        """Return True if a call may write to an argument, not counting the calls nested inside of it."""
        name = ast.unparse(call.func)
        if not self._mentions(call) or name in (*_HARMLESS, *_HARMLESS_AND_FRESH):
            return False
        kernel = self._module.kernels.get(name.removesuffix(".run"))
        if kernel is not None:
            keywords = any(self._mentions(keyword.value) for keyword in call.keywords)
            written = (x for i, x in enumerate(call.args) if i not in kernel)
            return keywords or any(map(self._mentions, written))
        if name.startswith("extern_kernels."):
            outs = [keyword.value for keyword in call.keywords if keyword.arg == "out"]
            return not outs or any(map(self._mentions, outs))
        function = _function(name)
        if function in self._module.functions:
            return self._module.first_write(function, self._given(call)) is not None
        if isinstance(call.func, ast.Attribute):
            of = (
                call.func.value.value
                if isinstance(call.func.value, ast.Subscript)
                else call.func.value
            )
            if isinstance(of, ast.Name) and of.id in self._lists:
                if any(map(self._mentions, call.args)):  # append, extend
                    self._arguments.add(of.id)
                    self._items.pop(of.id, None)
                return call.func.attr not in (*_LIST_METHODS, *_METHODS, "unsqueeze")
            if call.func.attr in (*_METHODS, "unsqueeze"):
                return False
        operator = _operator(name)
        return operator is None or _may_write(operator)

    def _given(self, call: ast.Call) -> Given:
        """Return, for each item of the list that is passed to a call, whether it may be an argument."""
        if len(call.args) != 1 or call.keywords or not isinstance(call.args[0], ast.Name):
            return None
        items = self._items.get(call.args[0].id)
        return None if items is None else tuple(items)

    def _is_fresh(self, value: ast.expr) -> bool:
        """Return True if the value of an expression cannot be an argument's memory."""
        if not isinstance(value, ast.Call):
            return False
        name = ast.unparse(value.func)
        if name in _HARMLESS_AND_FRESH or name.startswith("empty_strided_"):
            return True
        if isinstance(value.func, ast.Attribute) and value.func.attr in _METHODS:
            return True
        if _function(name) in self._module.functions:
            returned = self._module.returned(_function(name), self._given(value))
            return returned is not None and not any(returned)
        operator = _operator(name)
        return operator is not None and not may_return_input(operator)


def _function(name: str) -> str:
    """Return the name of the function that a call in generated code runs."""
    return _PARTITION.sub(r"partition_\1", name)


def _constant(node: ast.expr) -> int | None:
    """Return the value of an integer constant; `None` for other expressions."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) else None


def _is_list(value: ast.expr) -> bool:
    if isinstance(value, ast.BinOp):  # an expression such as [None] * 3
        value = value.left
    return isinstance(value, ast.List)


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


def _may_write(operator: OpOverload[..., Any]) -> bool:
    """Return True if an operator may write to its arguments.

    In training, the kernels of batch norm write to the running statistics without declaring it.
    """
    return schema_of(operator).is_mutable or "batch_norm" in names_of(operator)[0]
