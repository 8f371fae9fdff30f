"""Graph of a loop body or of a branch, traced while another trace is in progress.

Read next: `core/_traced_loop.py` and `core/_traced_branch.py`, the operators that run these graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core import _torch
from ftrain.core._graph_leaves import unknown_leaves
from ftrain.core._strides import contiguous
from ftrain.core._torch_checkpoint import without_saved_tensor_hooks
from ftrain.core.compile._graph import GraphEditor
from ftrain.core.errors import ImpureFunctionError

__all__ = ["BodyGraph", "distinct"]


@dataclasses.dataclass
class BodyGraph:
    """Traced graph of a body, with the tensors that it captures.

    Attributes:
        module: the graph, from inputs and captured tensors to outputs.
        captured: tensors from outside the body, which are further inputs of the operator.
        graded: for each output, True if it requires a gradient.
        followed: tensors from outside the body with respect to which its outputs can be differentiated.
    """

    module: fx.GraphModule
    captured: list[torch.Tensor]
    graded: list[bool]
    followed: list[torch.Tensor]

    @classmethod
    def trace(
        cls,
        body: Callable[..., Any],
        inputs: Sequence[torch.Tensor],
        graded: Sequence[bool] = (),
    ) -> BodyGraph:
        """Trace `body(*inputs)` separately from the trace in progress.

        Args:
            body: a pure function of tensors, which returns a list of tensors.
            inputs: example tensors with the shapes and dtypes of its inputs.
            graded: for each input, True if it requires a gradient.
        """
        entered: list[torch.Tensor] = []
        returned: list[torch.Tensor] = []

        def flat(*inputs: torch.Tensor) -> list[torch.Tensor]:
            entered.extend(inputs)
            for x, requires_grad in zip(inputs, graded, strict=False):
                x.requires_grad_(requires_grad)
            # The operators require that carries keep their strides, and that branches return equal
            # strides and offsets: a row of a stack has another offset than a new tensor.
            outputs = [contiguous(x) for x in body(*inputs)]
            returned.extend(x.clone() if x.storage_offset() else x for x in outputs)
            if torch.is_grad_enabled():
                # Leaves of inner gradients, which closures of inner bodies may still reference.
                leaves = unknown_leaves(returned, entered, held=True)
                entered.extend(leaf for leaf in leaves if _torch.is_recorded(leaf))
            return list(returned)

        with _torch.aside() as mode, without_saved_tensor_hooks():
            module = _torch.trace_inner(flat, [torch.empty_like(x) for x in inputs])
        editor = GraphEditor(module, mode, [])
        captured = editor.lift_captured(literals=True)
        if editor.first_write() is not None:
            raise ImpureFunctionError(
                "a body of scan, while_loop, cond or switch writes into one of its inputs or into a "
                "tensor that it captures. Write the out-of-place form: x = x + 1, not x += 1 or "
                "x.add_(1)."
            )
        editor.separate_outputs()
        module.graph.lint()
        module.recompile()
        followed: list[torch.Tensor] = []
        if torch.is_grad_enabled():
            followed = [t for t in captured if t.requires_grad]
            # Further tensors are needed even if values do not depend on them: a custom backward may
            # return a gradient for any tensor.
            followed += unknown_leaves(returned, entered, ends=followed, held=True)
            followed = distinct(followed)
        return cls(module, captured, [t.requires_grad for t in returned], followed)

    def drop_unused(self, places: Sequence[int]) -> list[bool]:
        """Remove the inputs at `places` that nothing reads; return which of the places were kept."""
        nodes = list(self.module.graph.find_nodes(op="placeholder"))
        stays = [bool(nodes[place].users) for place in places]
        for place, stay in zip(places, stays, strict=True):
            if not stay:
                self.module.graph.erase_node(nodes[place])
        self.module.recompile()
        return stays

    def take(self, captured: Sequence[torch.Tensor]) -> None:
        """Replace the captured inputs by `captured`, which contains them and possibly others."""
        graph = self.module.graph
        places = list(graph.find_nodes(op="placeholder"))
        own = places[len(places) - len(self.captured) :]
        nodes = {id(t): node for t, node in zip(self.captured, own, strict=True)}
        following = next(node for node in graph.nodes if node.op != "placeholder")
        for index, tensor in enumerate(captured):
            with graph.inserting_before(following):
                new = graph.placeholder(f"taken_{index}")
            with _torch.aside() as mode:
                is_fake = isinstance(tensor, _torch.FakeTensor)
                new.meta["val"] = tensor if is_fake else mode.from_tensor(tensor)
            old = nodes.get(id(tensor))
            if old is not None:
                old.replace_all_uses_with(new)
                graph.erase_node(old)
        self.captured = list(captured)
        graph.lint()
        self.module.recompile()


def distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that are different variables of autograd, each once.

    A tensor that a checkpointed region has recomputed is another object than the first one, but the same
    variable: followed as two, its gradient would not be the sum of their parts.
    """
    found: dict[Any, torch.Tensor] = {}
    for tensor in tensors:
        edge = torch.autograd.graph.get_gradient_edge(tensor)
        found.setdefault((edge.node, edge.output_nr), tensor)
    return list(found.values())
