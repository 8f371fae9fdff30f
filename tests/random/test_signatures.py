"""Defaults of arguments: those of the torch function that is replaced, and those of JAX."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.random
import pytest
import torch

from ftrain.core import random
from ftrain.core.random._keyed_draws import DRAWS
from ftrain.core.random._keyed_families import FAMILIES
from ftrain.core.random._keyed_fills import FILLS
from ftrain.core.random._keyed_layers import LAYERS
from ftrain.core.random._keyed_operators import _BY_NAME
from ftrain.core.random._keyed_transforms import UNDER_TRANSFORMS

NAMED = {
    getattr(func, "__name__", str(func)): handler
    for func, handler in {**DRAWS, **FILLS, **LAYERS, **FAMILIES, **UNDER_TRANSFORMS}.items()
}
REPLACEMENTS = _BY_NAME | NAMED
SHARED = sorted(name for name in random.__all__ if hasattr(jax.random, name))


def defaults(func: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults that are numbers or flags; none for a wrapper of a builtin function."""
    if not inspect.isfunction(inspect.unwrap(func)):
        return {}
    return {
        name: each.default
        for name, each in inspect.signature(func).parameters.items()
        if isinstance(each.default, bool | int | float)
    }


def of_schemas(name: str) -> dict[str, set[Any]]:
    """Return the defaults of the arguments of torch's operators of this name."""
    found: dict[str, set[Any]] = {}
    for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}"):
        for argument in schema.arguments:
            if isinstance(argument.default_value, bool | int | float):
                found.setdefault(argument.name, set()).add(argument.default_value)
    return found


def test_argument_defaults_of_keyed_replacements_equal_those_of_torchs_functions() -> None:
    compared = 0
    for name, handler in REPLACEMENTS.items():
        theirs = of_schemas(name)
        for argument, default in defaults(handler).items():
            expected = theirs.get(argument)
            assert default in (expected or ()), (name, argument, default, expected)
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("name", SHARED)
def test_argument_defaults_of_ftrain_random_equal_those_of_jax_random(name: str) -> None:
    ours, theirs = defaults(getattr(random, name)), defaults(getattr(jax.random, name))
    assert {k: v for k, v in ours.items() if k in theirs} == {
        k: v for k, v in theirs.items() if k in ours
    }
