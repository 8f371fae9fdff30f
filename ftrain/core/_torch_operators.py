"""Private torch APIs: higher-order operators that represent loops and branches in a graph.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.while_loop import while_loop_op

from ftrain.core._loop_bodies import own_memory
from ftrain.core._strides import dense

__all__ = ["cond_operator", "operators_of", "scan_operator", "while_loop_operator"]


def scan_operator(
    body: fx.GraphModule,
    carry: Sequence[torch.Tensor],
    xs: Sequence[torch.Tensor],
    captured: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Record a loop as one operator (torch 2.6 and later); return the last carry, then the stacked ys.

    The operator needs at least one carry and at least one tensor to iterate over.
    """
    with warnings.catch_warnings():
        # The operator clones example inputs, also fake ones, and reads their address for alignment.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        captured = _apart(captured)
        carry = _apart(carry, captured)
        return list(scan_op(body, carry, list(xs), tuple(captured)))


def cond_operator(
    predicate: torch.Tensor,
    taken: fx.GraphModule,
    left: fx.GraphModule,
    operands: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Record a branch as one operator (torch 2.4 and later) without the second trace of `torch.cond`."""
    return list(cond_op(predicate, taken, left, tuple(_apart(operands))))


def while_loop_operator(
    condition: fx.GraphModule,
    body: fx.GraphModule,
    carry: Sequence[torch.Tensor],
    captured: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Record a while loop as one operator (torch 2.3 and later)."""
    # The operator's kernel expects the condition as a tensor and the carry as a tuple.
    for graph in (condition, body):
        node = graph.graph.output_node()
        outputs: Any = node.args[0]
        node.args = (tuple(outputs) if graph is body else outputs[0],)
        graph.recompile()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        captured = _apart(captured)
        carry = _apart(carry, captured)
        return list(while_loop_op(condition, body, tuple(carry), tuple(captured)))


def _apart(
    tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor] = ()
) -> list[torch.Tensor]:
    """Clone tensors that share memory with an earlier tensor or `others`, or are expanded or sliced.

    The operators trace their bodies once more with the given tensors (in torch 2.13, `clone_input`
    returns a fake tensor unchanged). A tensor in two positions becomes a single input of that trace, so
    a carry that is also captured would keep its first value. Inductor raises for inputs that share
    memory. The strides must be those of `torch.empty_like`, with which `BodyGraph.trace` has traced;
    otherwise, for an expanded tensor, the outputs of two branches have different strides.
    """
    return list(own_memory([dense(x) for x in tensors], list(others)))


def operators_of(graph: fx.GraphModule) -> Iterator[torch._ops.OpOverload[..., Any]]:
    """Yield all operators of a graph, including those in the bodies of loops and branches."""
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                    yield node.target
