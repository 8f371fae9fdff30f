"""What inductor needs to be told so that donation is exact.

Imported only when something is compiled: torch's compiler takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

__all__ = ["ReadBeforeWrite"]

copy_ = torch.ops.aten.copy_.default


class ReadBeforeWrite(CustomGraphPass):  # type: ignore[misc]  # untyped in torch
    """Copy what one donated input hands to another before either is overwritten.

    With `new.target = old.params`, the graph ends in `params.copy_(new_params)` and
    `target.copy_(params)`. Traced, the second source is a clone made in time; inductor removes clones
    as no-ops, and the target would receive the new parameters. So this pass, which runs after the
    removal, puts the clones back (torch 2.13; without donated inputs that trade places it does nothing).
    """

    def __call__(self, graph: fx.Graph) -> None:
        writes = list(graph.find_nodes(op="call_function", target=copy_))
        inputs = {_storage(write.args[0]) for write in writes if write.args[0].op == "placeholder"}
        for write in writes:
            source = write.args[1]
            if isinstance(source, fx.Node) and _storage(source) in inputs:
                with graph.inserting_before(writes[0]):
                    clone = graph.call_function(torch.ops.aten.clone.default, (source,))
                clone.meta["val"] = source.meta["val"].clone()
                write.args = (write.args[0], clone, *write.args[2:])

    def uuid(self) -> Any:
        return "ftrain ReadBeforeWrite 1"


def _storage(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
