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
from typing import Any

import torch

from ftrain.core._torch_dispatch import OpOverload, may_return_input, names_of, schema_of

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
_PARTITION = re.compile(r"self\.partitions\[(\d+)\]")
_MUTATED = re.compile(r"'mutated_arg_names': \[([^\]]*)\]")


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
        self.kernels = _kernels(module)
        self.blocks = {node.lineno for node in ast.walk(module) if isinstance(node, ast.With)}
        self._first: dict[str, int | None] = {}
        self._fresh: set[str] = set()

    @classmethod
    @functools.lru_cache(maxsize=64)
    def read(cls, filename: str) -> ProgramModule | None:
        """Return the parsed module in a file; `None` if the file cannot be read."""
        try:
            return cls(filename)
        except (SyntaxError, ValueError, IndexError):
            return None

    def first_write(self, function: str) -> int | None:
        """Return the first line of a function that may write to its arguments; `None` if none does."""
        if function not in self._first:
            self._first[function] = self.functions[function].lineno  # used if it calls itself
            reader = _Reader(self)
            self._first[function] = reader.first_write(self.functions[function])
            if self._first[function] is None and not reader.returns_argument:
                self._fresh.add(function)
        return self._first[function]

    def returns_own_memory(self, function: str) -> bool:
        """Return True for a function that neither writes to its arguments nor returns their memory."""
        return self.first_write(function) is None and function in self._fresh


def _kernels(module: ast.Module) -> dict[str, set[int]]:
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


class _Reader:
    """Reader of one function that tracks the names that may refer to memory of its arguments.

    Attributes:
        returns_argument: True if it may return memory of an argument.
    """

    def __init__(self, module: ProgramModule) -> None:
        self.returns_argument = False
        self._module = module
        self._arguments: set[str] = set()
        self._lists: set[str] = set()  # names of Python lists, whose items may be arguments

    def first_write(self, function: ast.FunctionDef) -> int | None:
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self._arguments = {each.arg for each in parameters} - {"self"}
        self._lists = {"args"}
        return self._first(function.body)

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
            self.returns_argument |= statement.value is not None and self._mentions(statement.value)
        if isinstance(statement, (ast.Expr, ast.Return)):
            return statement.value is not None and self._evaluates(statement.value)
        if isinstance(statement, ast.Assert):
            return self._evaluates(statement.test)
        if isinstance(statement, ast.Raise):
            return statement.exc is not None and self._evaluates(statement.exc)
        if isinstance(statement, (ast.If, ast.While)):
            before = -1
            while len(self._arguments) > before:  # the next iteration may read names assigned here
                before = len(self._arguments)
                if self._first([*statement.body, *statement.orelse]) is not None:
                    return True
            return self._evaluates(statement.test)
        return not isinstance(statement, (ast.Delete, ast.Pass))

    def _assign(self, target: ast.expr, value: ast.expr) -> bool:
        """Record what a name refers to; return False if the assignment may write to an argument."""
        if isinstance(target, (ast.Tuple, ast.List)):
            harmless = [self._assign(each, value) for each in target.elts]
            return all(harmless)
        mentions = self._mentions(value) and not self._is_fresh(value)
        name = target.value if isinstance(target, ast.Subscript) else target
        if not isinstance(name, ast.Name):
            return False
        if isinstance(target, ast.Subscript):
            if name.id not in self._lists and (mentions or name.id in self._arguments):
                return False  # writes to a tensor, or to a list that may have another name
        elif _is_list(value):
            self._lists.add(name.id)
        else:
            self._lists.discard(name.id)
        if mentions:
            self._arguments.add(name.id)
        return True

    def _mentions(self, node: ast.AST) -> bool:
        """Return True if an expression reads a variable that may refer to an argument."""
        names = (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
        return not self._arguments.isdisjoint(names)

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
            return self._module.first_write(function) is not None
        if isinstance(call.func, ast.Attribute):
            of = (
                call.func.value.value
                if isinstance(call.func.value, ast.Subscript)
                else call.func.value
            )
            if isinstance(of, ast.Name) and of.id in self._lists:
                return call.func.attr not in (*_LIST_METHODS, *_METHODS, "unsqueeze")
            if call.func.attr in (*_METHODS, "unsqueeze"):
                return False
        operator = _operator(name)
        return operator is None or _may_write(operator)

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
            return self._module.returns_own_memory(_function(name))
        operator = _operator(name)
        return operator is not None and not may_return_input(operator)


def _function(name: str) -> str:
    """Return the name of the function that a call in generated code runs."""
    return _PARTITION.sub(r"partition_\1", name)


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
