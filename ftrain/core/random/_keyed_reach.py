"""How far a function mode sees: inside torch's own Python functions, and which calls it must refuse.

A `TorchFunctionMode` sees `F.multi_head_attention_forward` as one call: torch runs the function's body
with the mode popped, and the dropout in it would draw from the global generator. The body asks
`has_torch_function` once, at its start; a copy of the function whose globals answer False goes on into
torch's own body, with the mode in place, in every version of torch.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["draws_inside", "dropout_rate", "is_random", "opened", "unkeyed"]


def _no(*_: Any) -> bool:
    return False


_ANSWERS = {
    "has_torch_function": _no,
    "has_torch_function_unary": _no,
    "has_torch_function_variadic": _no,
}


class _Torch(types.ModuleType):
    """`torch`, for code that asks `torch.overrides.has_torch_function(...)`."""

    overrides = types.SimpleNamespace(**vars(torch.overrides) | _ANSWERS)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _random_names() -> frozenset[str]:
    """The operators that draw, by name: those that take a generator, and those that torch tags."""
    seeded = torch.Tag.nondeterministic_seeded
    names = {"dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout_"}
    names |= {"feature_alpha_dropout", "feature_alpha_dropout_", "scaled_dot_product_attention"}
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace != "aten":
            continue
        if any("Generator" in str(argument.type) for argument in schema.arguments):
            names.add(name)
        else:
            operator = torch._C._get_operation_overload(schema.name, schema.overload_name)
            if operator is not None and seeded in operator[-1]:
                names.add(name)
    return frozenset(names - {"seed", "manual_seed", "initial_seed"})


RANDOM_NAMES = _random_names()


def is_random(func: Callable[..., Any]) -> bool:
    """Whether an operator may draw, by its name: that of a builtin, or of an overload in `torch.ops`."""
    return _name(func) in RANDOM_NAMES


def dropout_rate(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float | None:
    """The `dropout_p` that an operator is called with; None if it has none."""
    if "dropout_p" in kwargs:
        return float(kwargs["dropout_p"])
    packet = getattr(torch.ops.aten, _name(func))
    for overload in packet.overloads():
        for place, argument in enumerate(getattr(packet, overload)._schema.arguments):
            if argument.name == "dropout_p":
                return float(args[place] if place < len(args) else argument.default_value or 0)
    return None


def unkeyed(graph: fx.GraphModule) -> list[str]:
    """The operators of a traced graph that would draw from torch's global generator when it runs.

    A dispatch mode would find them in eager code too, at 5 µs for each operator, where the function mode
    costs 1.3: it is for a graph, which is looked through once, that nothing may be missed.
    """
    return [
        str(node.target)
        for module in graph.modules()  # the bodies of scan and cond are modules of their own
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
        and dropout_rate(node.target, node.args, node.kwargs) != 0
    ]


def _name(func: Callable[..., Any]) -> str:
    name: str = getattr(func, "__name__", "")
    return name.partition(".")[0]


@functools.lru_cache(maxsize=4096)
def draws_inside(func: types.FunctionType) -> bool:
    """Whether a Python function of torch names a random operator, or calls one of torch's that does."""
    seen: set[types.CodeType] = set()

    def names_one(code: types.CodeType, scope: dict[str, Any]) -> bool:
        if code in seen:
            return False
        seen.add(code)
        if not RANDOM_NAMES.isdisjoint(code.co_names):
            return True
        inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        if any(names_one(constant, scope) for constant in inner):
            return True
        called = (scope.get(name) for name in code.co_names)
        return any(
            names_one(function.__code__, function.__globals__)
            for function in called
            if isinstance(function, types.FunctionType) and function.__module__.startswith("torch")
        )

    def enters(function: types.FunctionType) -> bool:
        if names_one(function.__code__, function.__globals__):
            return True
        return any(enters(captured) for captured in _captured(function))

    return enters(func)


@functools.lru_cache(maxsize=512)
def opened(func: types.FunctionType) -> types.FunctionType:
    """A copy of one of torch's functions that goes straight to its body."""
    scope = func.__globals__ | {
        name: no for name, no in _ANSWERS.items() if name in func.__globals__
    }
    if "overrides" in func.__code__.co_names and scope.get("torch") is torch:
        scope["torch"] = _Torch("torch")
    # What decorators and `boolean_dispatch` capture asks the same, under the outer function's name.
    closure = tuple(
        types.CellType(opened(cell.cell_contents))
        if isinstance(cell.cell_contents, types.FunctionType)
        and cell.cell_contents in _captured(func)
        else cell
        for cell in func.__closure__ or ()
    )
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, closure)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _captured(func: types.FunctionType) -> list[types.FunctionType]:
    contents = (cell.cell_contents for cell in func.__closure__ or ())
    return [
        captured
        for captured in contents
        if isinstance(captured, types.FunctionType) and captured.__module__.startswith("torch")
    ]
