"""Run a program in each mode and classify the result: equal, refused, wrong, or an error."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import ftrain
from tests.compositions.in_duals import Duals, plain
from tests.compositions.in_torch import Torch
from tests.compositions.programs import (
    Checkpoint,
    Compiled,
    Custom,
    Function,
    Jvp,
    Program,
    Step,
    While,
    nodes,
)
from tests.compositions.strategies import loses_tangents

__all__ = ["COUNTS", "MODES", "check", "expected_at", "refusal"]

#: How often each outcome came up in this process, by mode and outcome.
COUNTS: Counter[tuple[str, str]] = Counter()

OfVector = Callable[[torch.Tensor], torch.Tensor]


def _compiled(f: OfVector) -> OfVector:
    # A captured tensor that requires a gradient is refused where gradients are on.
    return torch.no_grad()(ftrain.compile(f, backend="eager"))


MODES: dict[str, Callable[[OfVector, torch.Tensor], torch.Tensor]] = {
    "eager": lambda f, xs: torch.stack([f(x) for x in xs]),
    "compiled": lambda f, xs: _compiled(f)(xs[0])[None],
    "vmapped": lambda f, xs: torch.vmap(f)(xs),
    "compiled vmapped": lambda f, xs: _compiled(torch.vmap(f))(xs),
}

# What may be refused, by the message and the node (or the derivative at the outside) that it is about.
_REFUSALS: dict[str, Any] = {
    r"while_loop: .* requires a gradient, and reverse mode needs a fixed number": While,
    r"a step returns tensors without an autograd graph, so no gradient can flow through it": Step,
    r"`.*` of `.*` requires a gradient, and a compiled program is opaque to autograd": Compiled,
    r"`.*` captures a tensor (that requires a gradient|with a tangent)": Compiled,
    r"is called inside torch.func.\w+: a compiled program cannot be transformed further": Compiled,
    r"it takes a derivative in forward mode that torch cannot trace": (Jvp, "jvp"),
    r"a custom operator \(torch.library.custom_op\) has no gradient under torch's transforms": Custom,
    r"requires_grad_\(\) cannot be used under torch's transforms": "autograd",
    r"the autograd function Turned has no second derivative in forward mode": Function,
    r"captures both a result of .*, an autograd function, and a tensor that the result was": Function,
    r"the custom operator ftrain_compositions::\w+ has no derivative in forward mode": Custom,
    # torch's own, in transforms of torch.func:
    r"In order to use an autograd.Function with functorch transforms": Custom,
    r"torch.func.* don't yet support saved tensor hooks": Checkpoint,
    r"cannot run inside a region that the backward pass recomputes": Checkpoint,
    r"tensor may have escaped from inside a function being vmapped": Checkpoint,
    r"^interpreter must not be None$": Checkpoint,  # the same, of a custom operator
    # A region of torch's under torch.vmap, which torch.autograd.grad differentiates without ftrain:
    r"^maybe_level.has_value\(\) INTERNAL ASSERT FAILED": "autograd",
    r"A different number of tensors was saved during the original forward": "autograd",
    r"You are attempting to call Tensor.requires_grad_": "autograd",
}


def expected_at(program: Program, xs: np.ndarray) -> np.ndarray | None:
    """Return what the oracle computes, or `None` if the numbers are too large to compare."""
    with np.errstate(all="ignore"):
        f = program.function(Duals())
        found = np.stack([plain(f(x)) for x in xs])
    return found if np.isfinite(found).all() and np.abs(found).max() < 1e5 else None


def refusal(program: Program, error: Exception) -> str | None:
    """Return the pattern of the error's message, if the program may be refused for that reason."""
    held = {type(node) for node in nodes(program)} | {*program.orders}
    for pattern, cause in _REFUSALS.items():
        causes = cause if isinstance(cause, tuple) else (cause,)
        if held.intersection(causes) and re.search(pattern, str(error), re.DOTALL):
            return pattern
    return None


def check(program: Program, points: Any, mode: str) -> None:
    """Raise unless the program has the oracle's values at two points, or may be refused.

    Only a trace sees where torch loses a tangent, so such programs run in compiled code alone.
    """
    xs = np.asarray(points, np.float64).reshape(2, 2)
    expected = expected_at(program, xs)
    if expected is None or ("compiled" not in mode and loses_tangents(program)):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = MODES[mode](program.function(Torch()), torch.from_numpy(xs)).numpy(force=True)
    except Exception as error:
        reason = refusal(program, error)
        if reason is None:
            COUNTS[mode, f"error: {type(error).__name__}"] += 1
            error.add_note(f"in {mode} mode, at {xs.tolist()}:\n{program!r}")
            raise
        COUNTS[mode, reason] += 1
        return
    expected = expected[: len(found)]
    # Rounding, of numbers larger than the result; measured 3e-15 over 286 programs.
    off, size = np.abs(found - expected).max(), max(1e-3, np.abs(expected).max())
    is_equal = bool(off <= 1e-9 * size)
    COUNTS[mode, "equal" if is_equal else "wrong"] += 1
    assert is_equal, (
        f"{found.tolist()} in {mode} mode, expected {expected.tolist()}, at {xs.tolist()}:\n{program!r}"
    )
