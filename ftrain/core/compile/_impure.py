"""Error for a function that writes into its inputs; it names the input, the operator and the line.

`_graph.py` finds the write. This module finds the line, by running the function once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from ftrain.core import _torch
from ftrain.core._write_line import WriteWatch
from ftrain.core.compile._errors import describe
from ftrain.core.compile._graph import Write
from ftrain.core.errors import ImpureFunctionError

__all__ = ["raise_impure"]


def raise_impure(
    flat: Callable[..., Any],
    function: str,
    write: Write,
    tensors: Sequence[torch.Tensor],
    captured: Sequence[torch.Tensor],
    names: Sequence[str],
) -> NoReturn:
    """Raise the error for a write into an argument or a captured tensor.

    Args:
        flat: the traced function, as a function of tensors only.
        function: its name in the message.
        write: the write in the graph, whose inputs are `tensors`, then `captured`.
        names: the name of each of `tensors` in the message.
    """
    mode = _torch.fake_mode()
    inputs = [mode.from_tensor(tensor.detach()) for tensor in tensors]
    inputs += [mode.from_tensor(tensor) for tensor in captured]
    watch = WriteWatch([*tensors, *captured, *inputs])
    with torch.enable_grad(), mode, watch:
        flat(*inputs[: len(tensors)])
    if write.place < len(names):
        what = f"its argument `{names[write.place]}`"
        remedy = (
            "Write the out-of-place form (`x = x + 1`, not `x.add_(1)` or `x += 1`), or work on "
            "x.clone(); return what changed as an output."
        )
    else:
        what = f"a tensor that it captures, {describe(captured[write.place - len(names)])}"
        remedy = "Pass it in as an argument and return its new value as an output."
    remedy = _BY_OPERATOR.get(write.operator, remedy)
    where = f" here:\n\n{watch.line}\n\n" if watch.line else ". "
    raise ImpureFunctionError(
        f"`{function}` writes into {what}, with {write.operator}{where}"
        f"A compiled function is pure: it leaves its inputs unchanged. {remedy}"
    )


#: Remedies for writes that torch's own code makes, so that the user did not write `x += 1`.
_BY_OPERATOR = {
    "aten.embedding_renorm_.default": "Leave max_norm out of the embedding, and scale its rows between "
    "steps: state.replace(params=...)."
}
