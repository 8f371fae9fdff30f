"""Errors for random draws that cannot use a key."""

from __future__ import annotations

import traceback
from typing import Any

import torch

from ftrain.core._torch_dispatch import OpOverload
from ftrain.core._user_line import current_line, user_line
from ftrain.core.errors import UnkeyedRandomError

__all__ = ["BEARTYPE", "in_function", "mapped_draw", "refusal", "scripted_inside", "unkeyed_draw"]

_REMEDY = (
    "  write instead:  ftrain.random.uniform(key, shape), .normal, .bernoulli, .randint or\n"
    "                  .permutation with a key of your own; or draw before the step and pass\n"
    "                  the numbers in with the batch."
)
_WHOSE = {
    "torch": "torch's global generator",
    "device": "torch's global generator of the device",
    "numpy": "NumPy's global generator",
    "python": "Python's global generator (the module `random`)",
    "own": "a generator that the function can reach (in a variable or an attribute)",
}
_OF_TORCH = (
    "Call torch.manual_seed and the like outside of the function, and draw in the thread that runs it: "
    "there torch's draws come from the key."
)
_OF_OTHERS = (
    "Pass the numbers in with the batch, or draw them with torch (torch.rand and the like), whose draws "
    "come from the key."
)


#: Prefix of the names that beartype gives to the code that it generates to check types.
BEARTYPE = "<@beartype("
_OF_BEARTYPE = (
    "beartype draws to choose the items of containers that it checks. No key reaches this generator, "
    "and nothing shows that the numbers have no effect on the result. Turn the checks off: start Python "
    "with -O, or in code of your own write @beartype(conf=BeartypeConf(strategy=BeartypeStrategy.O0))."
)


_OF_FUNCTIONS = {
    "forward": "under a torch.vmap over keys that does not map over its arguments, torch calls it once "
    "for all rows",
    "jvp": "torch calls it for each forward derivative, so that later draws would depend on the "
    "derivatives that are taken",
    "setup_context": "under torch.vmap and torch.func transforms, torch calls it once for each of them, "
    "with other numbers each time",
    "vmap": "torch calls it once for all rows, whose numbers would not be those of single calls",
}


def in_function(function: type, method: str) -> UnkeyedRandomError:
    """Return the error for a draw in a static method of a `torch.autograd.Function`."""
    name = function.__name__
    return UnkeyedRandomError(
        f"a random draw in the {method} of the autograd function {name} cannot use the key of `keyed`: "
        f"{_OF_FUNCTIONS[method]}. It was called here:\n\n{current_line()}\n\nDraw before the call, and "
        f"pass the numbers as an argument: {name}.apply(x, torch.rand(x.shape))."
    )


def refusal(func: Any, why: str) -> UnkeyedRandomError:
    """Return the error for a torch function or operator that draws, with the line of the user's call."""
    name = str(func) if isinstance(func, OpOverload) else ""
    name = name or torch.overrides.resolve_name(func) or getattr(func, "__qualname__", repr(func))
    name = name.replace("_VariableFunctionsClass.", "torch.")
    line = user_line(traceback.extract_stack())
    return UnkeyedRandomError(
        f"{name} {why}. Its numbers would not come from the key of ftrain.random.keyed. It was called "
        "here:\n\n"
        f"{line}\n\n{_REMEDY}"
    )


def unkeyed_draw(names: tuple[str, ...], where: str) -> UnkeyedRandomError:
    """Return the error for code that drew from stateful generators, such as NumPy's, instead of a key.

    Args:
        names: the generators, named as in `_generators.NAMES`.
        where: where the code drew; the message continues with it.
    """
    whose = " and ".join(_WHOSE[name] for name in names)
    of_torch = "torch" in names or "device" in names
    reason = _OF_BEARTYPE
    if BEARTYPE not in where:
        reason = (
            "No key reaches this generator, so the result would not be a function of the arguments. "
            f"{_OF_TORCH if of_torch else _OF_OTHERS}"
        )
    return UnkeyedRandomError(f"{whose} was drawn from or seeded {where}\n\n{reason}")


def mapped_draw(error: Exception) -> UnkeyedRandomError | None:
    """Return the error for a draw that torch.vmap refused, or `None` for other errors."""
    if not isinstance(error, RuntimeError) or "randomness error mode" not in str(error):
        return None
    line = user_line(traceback.extract_tb(error.__traceback__))
    return UnkeyedRandomError(
        f"a random draw under torch.vmap in a function that `keyed` cannot see, here:\n\n{line}\n\n"
        f"{_REMEDY}"
    )


def scripted_inside(error: RuntimeError) -> RuntimeError:
    """Return the error for a `torch.jit.trace` that failed inside of `keyed`."""
    line = user_line(traceback.extract_tb(error.__traceback__))
    return RuntimeError(
        "torch.jit.trace inside of `keyed` (in a step, or where a model is built): torch's tracer "
        f"records no keyed draws and no constants there. It failed here:\n\n{line}\n\n"
        "Leave out torch.jit.trace (ftrain.compile compiles the whole step), or trace a function "
        "without parameters and draws at module level."
    )
