"""Implementation of `debug.print` as operators, which print each time a graph runs.

`ftrain::print` returns nothing. In the graph of a function it is an operator with an effect, which
compilers neither drop nor reorder. Inductor does not support effects inside the bodies of loops and
branches (torch 2.13); there each print becomes an operator through which a returned tensor passes.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from ftrain.core import tree

__all__ = ["Line", "chain_prints", "is_quiet", "quiet", "record", "show"]

# The library must exist as long as its operators.
_LIBRARY = torch.library.Library("ftrain", "FRAGMENT")  # type: ignore[no-untyped-call]


class Line(NamedTuple):
    """Format string and constant arguments of one call of `debug.print`, without its tensors.

    Attributes:
        text: a format string.
        treedef: the structure of its arguments.
        statics: the leaves that are not tensors; `None` in the place of each tensor.
        places: the positions of the tensors among the leaves.
    """

    text: str
    treedef: tree.TreeDef
    statics: tuple[Any, ...]
    places: tuple[int, ...]


class _Thread(threading.local):
    quiet = False


_here = _Thread()
_numbers = itertools.count()
_lines: dict[int, Line] = {}  # lines of graphs are never removed


def is_quiet() -> bool:
    """Return True if prints are suppressed in this thread, by the context `quiet`."""
    return _here.quiet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints inside the context, where a body runs again only to compute its derivative."""
    before, _here.quiet = _here.quiet, True
    try:
        yield
    finally:
        _here.quiet = before


def show(line: Line, tensors: Sequence[Tensor]) -> None:
    """Print a line with the values of `tensors` filled in."""
    leaves = list(line.statics)
    for place, tensor in zip(line.places, tensors, strict=True):
        leaves[place] = tensor
    args, kwargs = tree.unflatten(line.treedef, leaves)
    builtins.print(line.text.format(*args, **kwargs), flush=True)


def record(line: Line, tensors: Sequence[Tensor], *, stays: bool) -> None:
    """Call the print operator, which prints now or, in a trace, each time the traced graph runs.

    Args:
        stays: True if a graph is being traced, which needs the line later.
    """
    number = next(_numbers)
    _lines[number] = line
    _print(number, list(tensors))
    if not stays:
        del _lines[number]


def chain_prints(graph: fx.GraphModule) -> None:
    """Make the first output of each loop or branch body depend on its prints, so that they are kept."""
    for module in graph.modules():
        if not isinstance(module, fx.GraphModule) or module is graph:
            continue
        prints = module.graph.find_nodes(op="call_function", target=_print)
        output = module.graph.output_node()
        returned: Any = output.args[0]
        is_one = isinstance(returned, fx.Node)  # True for the condition of a while loop
        outputs = [returned] if is_one else list(returned)
        for node in prints:
            with module.graph.inserting_before(output):
                handed_on = module.graph.call_function(_print_and_return, (*node.args, outputs[0]))
            handed_on.meta["val"] = outputs[0].meta["val"]
            outputs[0] = handed_on
            module.graph.erase_node(node)
        if prints:
            output.args = (outputs[0] if is_one else type(returned)(outputs),)
            module.recompile()


def _run(line: int, tensors: Sequence[Tensor]) -> None:
    show(_lines[line], tensors)


def _run_and_return(line: int, tensors: Sequence[Tensor], returned: Tensor) -> Tensor:
    _run(line, tensors)
    return returned.clone()


def _by_row(info: Any, in_dims: Any, line: int, tensors: Sequence[Tensor]) -> tuple[None, None]:
    """Print a line for each row of `torch.vmap`."""
    dims = in_dims[1]
    for i in range(info.batch_size):
        rows = zip(tensors, dims, strict=True)
        _print(line, [x if dim is None else x.select(dim, i) for x, dim in rows])
    return None, None


# A CUDA graph would replay the kernels without the print.
_TAGS: Any = {"tags": (torch.Tag.cudagraph_unsafe,)}
_LIBRARY.define("print(int line, Tensor[] tensors) -> ()", **_TAGS)  # type: ignore[no-untyped-call]
_LIBRARY.impl("print", _run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("ftrain::print", lambda line, tensors: None, lib=_LIBRARY)
torch.library.register_vmap("ftrain::print", _by_row, lib=_LIBRARY)
_print: Any = torch.ops.ftrain.print.default
fx.node.has_side_effect(_print)
_register_effectful_op(_print, _EffectType.ORDERED)

_LIBRARY.define(  # type: ignore[no-untyped-call]
    "print_and_return(int line, Tensor[] tensors, Tensor returned) -> Tensor", **_TAGS
)
_LIBRARY.impl("print_and_return", _run_and_return, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "ftrain::print_and_return", lambda line, tensors, returned: returned.clone(), lib=_LIBRARY
)
_print_and_return: Any = torch.ops.ftrain.print_and_return.default
