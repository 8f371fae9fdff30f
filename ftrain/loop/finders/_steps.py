"""Preparation for the finders: compile the training step and copy the state."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.compile import Compiled
from ftrain.core.compile import compile as compile_step
from ftrain.core.errors import RecompileWarning
from ftrain.core.step import Steps

__all__ = ["CompileOptions", "Step", "compiled", "copied", "is_factory", "quietly", "step_of"]

Step = Callable[[Any, Any], tuple[Any, Any]]
CompileOptions = bool | Mapping[str, Any]


def is_factory(steps: Any) -> bool:
    """Return True if `steps` is a function `learning rate -> steps`, False if it is a step."""
    if isinstance(steps, (Steps, Compiled, tuple)) or not callable(steps):
        return False
    try:
        parameters = inspect.signature(steps).parameters.values()
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)


def step_of(steps: Any, what: str) -> Step:
    """Return the training step in a `Steps` or a pair `(step, eval_step)`; return a step unchanged.

    Raises:
        TypeError: `steps` is not one of these.
    """
    if isinstance(steps, Steps):
        return steps.train_step
    if isinstance(steps, tuple) and steps and callable(steps[0]):
        return steps[0]  # type: ignore[no-any-return]
    if callable(steps) and not isinstance(steps, torch.nn.Module):
        step: Step = steps
        return step
    raise TypeError(
        f"{what}: expected the result of ftrain.make_steps, or a step `(state, batch) -> (state, "
        f"metrics)`, got {type(steps).__name__}. Pass ftrain.make_steps(...)."
    )


def compiled(step: Step, options: CompileOptions) -> Step:
    """Compile a step with donation, so that it uses as much memory as in training."""
    if options is False or isinstance(step, Compiled):
        return step
    return compile_step(step, donate=True, **({} if options is True else dict(options)))


def copied(state: Any) -> Any:
    """Copy the tensors of a state, so that steps do not change the caller's tensors."""
    return tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress `RecompileWarning`, because a finder recompiles for each batch size on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompileWarning)
        yield
