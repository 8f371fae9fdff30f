"""Decision whether C++ code can call the kernels of a program (`compile(cpp_wrapper=True)`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core.compile._cuda_graph import acts_outside

__all__ = ["why_no_cpp_wrapper"]


def why_no_cpp_wrapper(graph: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> str | None:
    """Return the reason for which C++ code cannot call the kernels of a graph; `None` if it can.

    Python operators that act on the host may raise, and from C++ code each of their exceptions arrives
    as a `RuntimeError` (2.13): a `NonFiniteError` would be lost. Inductor writes texts into its C++ code
    without escaping them (2.13).
    """
    device = next((x.device for x in inputs if x.device.type != "cpu"), None)
    if device is not None:
        return f"an input is on {device}"
    for module in graph.modules():  # bodies of scan and cond are separate modules
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if any(
                    not set('"\\\n').isdisjoint(text) for text in _texts((node.args, node.kwargs))
                ):
                    return f"its operator `{node.target}` has a text with quotes as an argument"
    return acts_outside(graph)


def _texts(argument: Any) -> Iterator[str]:
    """Yield the strings in an argument of a node."""
    if isinstance(argument, str):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for each in argument:
            yield from _texts(each)
    elif isinstance(argument, dict):
        yield from _texts(list(argument.values()))
