"""Passes over a newly traced graph: captured tensors, writes to inputs, aliased outputs.

Tensors with the same storage, also of fake tensors, are aliases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ftrain.core import _torch
from ftrain.core._recomputation import order_recomputations
from ftrain.core._torch_dispatch import OpOverload, schema_of
from ftrain.core._torch_tensors import storage_id
from ftrain.core._write_line import written
from ftrain.core.compile import _donate
from ftrain.core.errors import DonationError

__all__ = ["GraphEditor", "Write", "custom_operators", "storage_of", "written", "written_by"]

aten = torch.ops.aten


class Write(NamedTuple):
    """Operator that writes into an input of a graph.

    Attributes:
        place: the position of the input.
        operator: its name.
    """

    place: int
    operator: str


class GraphEditor:
    """Editor of a traced graph; `names` are the names of the graph's inputs in error messages."""

    def __init__(self, module: fx.GraphModule, mode: Any, names: Sequence[str]) -> None:
        self.module = module
        self.graph = module.graph
        self._recover_untraced_views()
        self._materialize_zeros()
        self._replace_tangent_copies()
        order_recomputations(self.graph)
        self.eliminate_dead_code()
        self.mode = mode
        self.names = list(names)
        self.inputs = list(self.graph.find_nodes(op="placeholder"))

    def eliminate_dead_code(self) -> None:
        """Remove operators without effect.

        Batch norm's writes to buffers, which fx does not see, are kept.
        """
        self.graph.eliminate_dead_code(lambda node: node.is_impure() or bool(written_by(node)))

    def _recover_untraced_views(self) -> None:
        """Replace constants that are views of a traced value by operators that compute these views.

        `nn.Parameter(x)` of a vmapped `x` is made without any dispatch mode (`Tensor._make_subclass`,
        torch 2.13), so that the trace records no view; later writes to the parameter change `x`.

        Only a node at the same place in memory is taken. A view by offsets into a storage would be wrong
        in a call whose argument begins elsewhere in its own storage, as a row of a stack does.
        """
        nodes: dict[int, list[fx.Node] | None] = {}  # by storage; None for memory from outside
        for node in list(self.graph.nodes):
            value = node.meta.get("val")
            if node.op == "get_attr":
                if not isinstance(getattr(self.module, node.target, None), _torch.FakeTensor):
                    continue
                twins = [
                    other
                    for other in nodes.setdefault(storage_of(node), None) or ()
                    if _same_place(value, _val(other))
                    and (value.shape, value.dtype) == (_val(other).shape, _val(other).dtype)
                ]
                if twins:
                    self._replace_by_view(node, twins[0])
            elif isinstance(value, torch.Tensor) and value.layout is torch.strided:
                known = nodes.setdefault(storage_id(value), [])
                if known is not None:
                    known.append(node)

    def _replace_by_view(self, node: fx.Node, source: fx.Node) -> None:
        with self.graph.inserting_before(node):
            view = self.graph.call_function(aten.detach.default, (source,))
        view.meta["val"] = _val(node)
        node.replace_all_uses_with(view)

    def _materialize_zeros(self) -> None:
        """Allocate the zero tangents of forward mode.

        They have no memory, but may become outputs.
        """
        for node in self.graph.find_nodes(
            op="call_function", target=aten._efficientzerotensor.default
        ):
            node.target = aten.zeros.default

    def _replace_tangent_copies(self) -> None:
        """Clone a tangent where forward mode copies it into memory with the strides of the primal.

        The primal may be expanded (the gradient of a sum), and kernels cannot write into expanded
        memory.
        """
        zeros = aten._new_zeros_with_same_feature_meta.default
        for node in self.graph.find_nodes(op="call_function", target=aten.copy_.default):
            target, source = node.args[:2]
            if (
                isinstance(target, fx.Node)
                and target.target is zeros
                and len(target.users) == 1
                and (_val(target).shape, _val(target).dtype)
                == (_val(source).shape, _val(source).dtype)
            ):
                node.target, node.args = aten.clone.default, (source,)

    def lift_captured(self, *, literals: bool = False) -> list[torch.Tensor]:
        """Make captured tensors inputs, so that every call reads their current values."""
        lifted: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        for node in list(self.graph.find_nodes(op="get_attr")):
            value = getattr(self.module, node.target, None)
            if not isinstance(value, torch.Tensor) or (_is_literal(node) and not literals):
                continue
            if id(value) not in lifted:
                before = self.inputs[-1].next if self.inputs else next(iter(self.graph.nodes))
                with self.graph.inserting_before(before):
                    new = self.graph.placeholder(f"captured_{len(lifted)}")
                is_fake = isinstance(value, _torch.FakeTensor)
                new.meta["val"] = value if is_fake else self.mode.from_tensor(value)
                lifted[id(value)] = (value, new)
                self.inputs.append(new)
            node.replace_all_uses_with(lifted[id(value)][1])
            self.graph.erase_node(node)
        return [value for value, _ in lifted.values()]

    def first_write(self) -> Write | None:
        """Return the first write into an input, or `None` if nothing writes into one."""
        inputs = {storage_of(node): i for i, node in reversed([*enumerate(self.inputs)])}
        for node in self.graph.nodes:
            for target in written_by(node):
                if isinstance(target, fx.Node) and storage_of(target) in inputs:
                    return Write(inputs[storage_of(target)], str(node.target))
        return None

    def write_back(self, n: int, function: str) -> None:
        """Turn the first `n` outputs into writes to the first `n` inputs."""
        outputs = self.outputs()
        before, after = (
            [_val(node) for node in self.inputs[:n]],
            [_val(node) for node in outputs[:n]],
        )
        changed = _donate.changed_leaf(self.names[:n], before, after)
        if changed is not None:
            raise DonationError(
                f"`{function}` cannot write the new state into the old one's memory: {changed}. A state "
                "keeps its shapes, dtypes and devices from step to step: cast or reshape the new "
                "tensor in the step, or compile with donate=False."
            )
        donated = {storage_of(node) for node in self.inputs[:n]}
        copies = []
        for old, new in zip(self.inputs[:n], outputs[:n], strict=True):
            if _same_place(_val(old), _val(new)):
                continue
            # All reads of the old state must come before the first write.
            copies.append((old, self.clone(new) if storage_of(new) in donated else new))
        rest = [self.clone(x) if storage_of(x) in donated else x for x in outputs[n:]]
        with self.graph.inserting_before(self.graph.output_node()):
            for old, new in copies:
                self.graph.call_function(aten.copy_.default, (old, new)).meta["val"] = _val(old)
        self.set_outputs(rest)

    def separate_outputs(self) -> None:
        """Clone every output that shares memory with an input or an earlier output, or is expanded."""
        taken = {storage_of(node) for node in self.inputs}
        outputs = []
        for node in self.outputs():
            shared = storage_of(node) in taken or _overlaps_itself(_val(node))
            outputs.append(self.clone(node) if shared else node)
            taken.add(storage_of(outputs[-1]))
        self.set_outputs(outputs)

    def clone(self, node: fx.Node) -> fx.Node:
        with self.graph.inserting_before(self.graph.output_node()):
            new = self.graph.call_function(aten.clone.default, (node,))
        with self.mode:
            new.meta["val"] = _val(node).clone()
        return new

    def outputs(self) -> list[fx.Node]:
        return list(self.graph.output_node().args[0])  # type: ignore[arg-type]

    def set_outputs(self, nodes: Sequence[fx.Node]) -> None:
        self.graph.output_node().args = (list(nodes),)


def _val(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), node
    return value


def storage_of(node: fx.Node) -> int:
    """Return the identity of the storage of a node's value."""
    return storage_id(_val(node))


def _same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        storage_id(a) == storage_id(b)
        and a.stride() == b.stride()
        and a.storage_offset() == b.storage_offset()
    )


def _overlaps_itself(value: torch.Tensor) -> bool:
    return any(s == 0 and n > 1 for s, n in zip(value.stride(), value.shape, strict=True))


def _is_literal(node: fx.Node) -> bool:
    """Return True for a tensor that the function makes of numbers: `torch.tensor([1.0, 2.0])`."""
    return all(user.target is aten.lift_fresh_copy.default for user in node.users)


def written_by(node: fx.Node) -> list[Any]:
    """Return the arguments that a node writes to."""
    return written(node.target, node.args, node.kwargs) if node.op == "call_function" else []


def custom_operators(graph: fx.GraphModule) -> list[str]:
    """Return the names of the operators of a graph, and of its bodies, that are not torch's ATen."""
    found = set()
    for module in graph.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if isinstance(node.target, OpOverload) and node.target.namespace != "aten":
                found.add(schema_of(node.target).name)
    return sorted(found)
