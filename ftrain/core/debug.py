"""Printing from functions that are traced.

Python's own `print` runs while a function is traced, when its tensors have no values.
"""

from __future__ import annotations

import string
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._printing import Line, is_quiet, record, show
from ftrain.core.compile._trace import is_tracing

__all__ = ["print"]


def print(text: str, *args: Any, **kwargs: Any) -> None:
    """Print tensors each time the calling function runs, compiled or not.

    In compiled code it is an operator of the graph: it prints in each iteration of a `scan` or
    `while_loop`, and only in the selected branch of a `cond`. Lines are printed in the order of the
    calls, except that machine code may change the order of independent loops and branches. Under
    `torch.vmap`, a line is printed for each row. Printing does not change gradients or any bits of the
    results. A checkpointed region prints again when the backward pass recomputes it. On an accelerator,
    each line waits for the device.

    Args:
        text: a format string as for `str.format`: `"step {}, loss {loss:.3f}"`.
        *args: tensors of any shape, other values, or trees of these.
        **kwargs: the same, by name.

    Raises:
        TypeError: `text` is not a string.
        ValueError: `text` names a missing argument, or has a format specification that does not fit its
            argument: `{:.2f}` for a tensor with axes. It is raised at the call, compiled or not.

    >>> import ftrain
    >>> double = ftrain.compile(lambda x: ftrain.debug.print("x = {x:.1f}", x=x) or 2 * x)
    >>> double(torch.tensor(1.5))
    x = 1.5
    tensor(3.)

    Source: `jax.debug.print`.
    """
    _check(text, args, kwargs)
    if is_quiet():
        return
    leaves, treedef = tree.flatten((args, kwargs))
    places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
    tensors = [leaves[place].detach() for place in places]
    statics = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    line = Line(text, treedef, statics, places)
    is_traced = is_tracing() or torch.compiler.is_dynamo_compiling()
    if is_traced or _torch.inside_functorch():
        record(line, tensors, stays=is_traced)
    else:
        show(line, tensors)


class _AnyValue:
    """Placeholder for a tensor of unknown value, used to check a format string."""

    def __format__(self, spec: str) -> str:
        return ""

    def __getattr__(self, name: str) -> _AnyValue:
        return _AnyValue()

    def __getitem__(self, key: Any) -> _AnyValue:
        return _AnyValue()


class _Array(_AnyValue):
    """Placeholder for a tensor with axes, for which every format specification raises."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = tuple(shape)

    def __format__(self, spec: str) -> str:
        if spec:
            raise ValueError(
                f"the format specification {spec!r} needs a 0-d tensor, got shape {self.shape}. "
                "Write {} without a specification, or print one element of the tensor."
            )
        return ""


class _Number(_AnyValue):
    """Placeholder for a 0-d tensor, which formats like its number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.number = 0j if dtype.is_complex else 0.0 if dtype.is_floating_point else 0

    def __format__(self, spec: str) -> str:
        return format(self.number, spec)


def _stand_in(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return _Array(leaf.shape) if leaf.ndim else _Number(leaf.dtype)


def _check(text: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise immediately if `text` cannot format these arguments; a traced graph formats later."""
    if not isinstance(text, str):
        raise TypeError(
            f"ftrain.debug.print: expected text to be a format string, got {type(text).__name__}. Write "
            'ftrain.debug.print("{}", x).'
        )
    args, kwargs = tree.map(_stand_in, (args, kwargs))
    try:
        string.Formatter().vformat(text, args, kwargs)
    except (IndexError, KeyError) as error:
        given = f"{len(args)} positional" + "".join(f", {name!r}" for name in kwargs)
        raise ValueError(
            f"ftrain.debug.print: expected an argument for each field of {text!r}, got {given} "
            f"({error}). Pass the missing argument, or write a literal brace as {{{{ or }}}}."
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"ftrain.debug.print: expected fields that fit their arguments in {text!r}, got the error "
            f"{str(error)!r}. Correct the field. A number format applies to 0-d tensors only: pass the "
            "entries of a larger tensor one by one."
        ) from error
