"""Torch functions that draw internally, and copies whose draws a `TorchFunctionMode` can see.

A `TorchFunctionMode` sees `F.multi_head_attention_forward` as one call: torch runs the function's body
without the mode, and the dropout inside would draw from the global generator. At its start the body
calls `has_torch_function`. In a copy of the function, this call returns False, so that torch's own body
runs with the mode active, in every version of torch.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core._torch_dispatch import OpOverload, OpOverloadPacket, schema_of

__all__ = [
    "RUN_THE_GRAPH",
    "draws_inside",
    "draws_nothing",
    "is_random",
    "is_seeded",
    "takes_generator",
    "unkeyed",
    "without_dispatch",
]


def _no(*_: Any) -> bool:
    return False


_ANSWERS = {
    "has_torch_function": _no,
    "has_torch_function_unary": _no,
    "has_torch_function_variadic": _no,
}


class _Torch(types.ModuleType):
    """Stand-in for `torch` whose `overrides.has_torch_function` and its variants return False."""

    overrides = types.SimpleNamespace(**vars(torch.overrides) | _ANSWERS)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# Functions that call hooks and backward functions of the user, whose draws must be keyed.
RUN_THE_GRAPH: frozenset[Any] = frozenset(
    {torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad}
)

_Overload = OpOverload[..., Any]

# Composite operators that draw, which torch does not tag.
_COMPOSITES = frozenset(
    {
        "alpha_dropout_",
        "dropout_",
        "feature_alpha_dropout",
        "feature_alpha_dropout_",
        "feature_dropout",
        "feature_dropout_",
        "scaled_dot_product_attention",
    }
)


@functools.lru_cache(maxsize=4096)
def _draws(name: str) -> bool:
    """Return True if the torch function of this name draws random numbers."""
    return name in _COMPOSITES or any(map(is_seeded, _overloads(name)))


def is_seeded(overload: _Overload) -> bool:
    """Return True if an operator takes a generator, or has the tag `nondeterministic_seeded`."""
    return torch.Tag.nondeterministic_seeded in overload.tags or any(
        "Generator" in str(argument.type) for argument in schema_of(overload).arguments
    )


def is_random(func: Callable[..., Any]) -> bool:
    """Return True if an operator draws, at least when its dropout rate is above 0."""
    return getattr(func, "__name__", "") in _COMPOSITES or any(map(is_seeded, _overloads(func)))


def draws_nothing(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return True if a call of a random operator draws nothing: dropout rate 0, or eval mode."""
    for overload in _overloads(func):
        given = _arguments(overload, args, kwargs)
        rates = [given[name] for name in ("dropout_p", "dropout") if name in given]
        modes = [given[name] for name in ("train", "training") if name in given]
        if rates or modes:
            return not all(float(rate or 0) for rate in rates) or any(on is False for on in modes)
    return False


def takes_generator(func: _Overload, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return True if an operator is called with `generator=`."""
    return _arguments(func, args, kwargs).get("generator") is not None


def _arguments(overload: _Overload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name."""
    return {
        argument.name: args[place]
        if place < len(args)
        else kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(schema_of(overload).arguments)
    }


def unkeyed(graph: fx.GraphModule) -> list[str]:
    """Return the operators of a traced graph that would draw from torch's global generator."""
    return [
        str(node.target)
        for module in graph.modules()  # the bodies of scan and cond are submodules
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
        if isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
        and not draws_nothing(node.target, node.args, node.kwargs)
    ]


def _overloads(func: Callable[..., Any] | str) -> list[_Overload]:
    """Return the overloads of an operator, or of the aten operator with the name of a function."""
    if isinstance(func, OpOverload):
        return [func]
    if not isinstance(func, OpOverloadPacket):
        name = func if isinstance(func, str) else getattr(func, "__name__", "")
        func = getattr(torch.ops.aten, name, func)
    if not isinstance(func, OpOverloadPacket):
        return []
    names: list[str] = func.overloads()  # type: ignore[no-untyped-call]  # torch's
    return [getattr(func, name) for name in names]


@functools.lru_cache(maxsize=4096)
def draws_inside(func: types.FunctionType) -> bool:
    """Return True if a torch function uses a random operator, itself or in a torch function it calls."""
    seen: set[types.CodeType] = set()

    def names_one(code: types.CodeType, scope: dict[str, Any]) -> bool:
        if code in seen:
            return False
        seen.add(code)
        if any(map(_draws, code.co_names)):
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

    # The cache key is the function, because all functions from one decorator have the same code object.
    entered: set[types.FunctionType] = set()

    def enters(function: types.FunctionType) -> bool:
        if function in entered:
            return False
        entered.add(function)
        if names_one(function.__code__, function.__globals__):
            return True
        return any(enters(captured) for captured in _captured(function))

    return enters(func)


@functools.lru_cache(maxsize=512)
def without_dispatch(func: types.FunctionType) -> types.FunctionType:
    """Return a copy of a torch function that runs its body directly, bypassing the function mode."""
    return _copy(func, {})


def _copy(
    func: types.FunctionType, copies: dict[types.FunctionType, types.FunctionType]
) -> types.FunctionType:
    """Copy a function and the functions that it captures; `copies` holds the copies made so far."""
    if func in copies:
        return copies[func]
    scope = func.__globals__ | {
        name: no for name, no in _ANSWERS.items() if name in func.__globals__
    }
    if "overrides" in func.__code__.co_names and scope.get("torch") is torch:
        scope["torch"] = _Torch("torch")
    # Functions captured by decorators and by `boolean_dispatch` call `has_torch_function` too, with the
    # name of the outer function.
    cells, captured = func.__closure__ or (), _captured(func)
    closure = tuple(types.CellType(cell.cell_contents) for cell in cells)
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, closure)
    copy.__kwdefaults__ = func.__kwdefaults__
    copies[func] = copy
    for cell in closure:
        if any(cell.cell_contents is function for function in captured):
            cell.cell_contents = _copy(cell.cell_contents, copies)
    return copy


def _captured(func: types.FunctionType) -> list[types.FunctionType]:
    contents = (cell.cell_contents for cell in func.__closure__ or ())
    return [
        captured
        for captured in contents
        if isinstance(captured, types.FunctionType) and captured.__module__.startswith("torch")
    ]
