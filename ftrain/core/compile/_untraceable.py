"""Errors for operations that a trace cannot record, with the operation, its location and a remedy.

Many of torch's own functions read values: `F.gaussian_nll_loss` checks the sign of a variance,
`torch.cov` compares two sums. As the user did not write this code, the message shows the user's line and
torch's line, and a remedy for the function (`_torch_remedies.py`) or for torch's code in general.
"""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.overrides import resolve_name

from ftrain.core import _torch
from ftrain.core._short_traceback import LIBRARY, TORCH, calls_a_module
from ftrain.core._torch_dynamo import dynamo_refusal
from ftrain.core._user_line import is_foreign, show, user_line
from ftrain.core.compile._errors import causes
from ftrain.core.compile._torch_remedies import BACKWARD, BY_FUNCTION, BY_TORCH_LINE
from ftrain.core.errors import TraceError

__all__ = ["Calls", "untraceable"]

_VALUE = (
    "A compiled function is traced once, without values, and then runs for all of them. Instead of "
    "`if` on a tensor use ftrain.cond(condition, true_fn, false_fn, x), ftrain.switch, or compute both "
    "and pick: torch.where(condition, a, b). Instead of `while` use ftrain.while_loop(cond_fn, body_fn, "
    "x). Keep numbers as 0-d tensors; to log one, return it as an output and read it outside, or print "
    "it with ftrain.debug.print."
)
_SHAPE = (
    "Shapes are fixed when the function is traced. Instead of x[mask] use torch.where(mask, x, fill) "
    "or multiply by the mask; instead of nonzero() use argsort or topk with a fixed size."
)
_NUMPY = (
    "A traced tensor has no values to hand to NumPy. Use the torch function of the same name, or do "
    "the NumPy part outside the compiled function."
)
_STORAGE = (
    "A traced tensor has no memory of its own to read or write. Index and assign through the tensor "
    "itself (x[0] = 1, x.copy_(y), x.fill_(0))."
)
_SWAP = (
    "A traced tensor cannot be swapped for another. Create the module with its final dtype and device, "
    "nn.Linear(..., dtype=..., device=...), instead of converting it with .to(), .half() or .double()."
)
_OF_TORCH = (
    "A compiled function is traced once, without values, and this code of torch's needs them. Call {0} "
    "outside of the compiled function, or write what it computes with operations on tensors of fixed "
    "shapes."
)
_FORWARD = (
    "Torch cannot trace every nesting of forward derivatives (2.13: their tangents have other strides "
    "than their values). Take this one in reverse mode, with ftrain.value_and_grad or torch.func.grad "
    "(for torch.func.hessian(f) write torch.func.jacrev(torch.func.jacrev(f))), or call the function "
    "without ftrain.compile."
)
_HIGHER_ORDER = (
    "Use ftrain.cond, ftrain.switch, ftrain.scan or ftrain.while_loop instead: their functions are "
    "ordinary code, which may return an argument, and an error names the output that differs."
)
_BY_OPERATOR = {
    "aten._local_scalar_dense": "it asks for the value of a tensor (`if`, bool(), float(), int(), "
    ".item() or .tolist())",
    "aten.is_nonzero": "it branches on the value of a tensor",
    "aten.equal": "torch.equal asks whether two tensors have the same values",
    "aten.allclose": "torch.allclose asks for the values of tensors",
    "aten.nonzero": "the shape of nonzero() or of x[mask] depends on values",
    "aten.masked_select": "the shape of masked_select() depends on values",
}
#: Other names of operators, by which a user may know them.
_SPELLED = {
    "aten._local_scalar_dense": (
        "item",
        "tolist",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__getitem__",
        "__setitem__",
    ),
    "aten.is_nonzero": ("__bool__", "is_nonzero"),
    "aten.nonzero": (
        "nonzero",
        "__getitem__",
        "__setitem__",
        "where",
        "argwhere",
        "nonzero_static",
    ),
}


class Calls:
    """Record of the last torch function that raised an error during a trace."""

    error: BaseException | None = None
    function: Any = None

    def raised(self, function: Any, error: BaseException) -> None:
        """Record that a call of `function` raised an error; keep the innermost such call."""
        if error is not self.error:
            self.error, self.function = error, function


class _Place(NamedTuple):
    """Location at which an error was raised.

    Attributes:
        line: the user's line, formatted for a message; empty if it is unknown, as in the backward pass
            of `compile(value_and_grad(loss))`.
        torch_line: the line of torch's Python code that the user's line called; `None` if there is none.
        file: the file with that line, inside of torch's folder.
        names: torch's function with that line, then its callers in the same file.
        backward: True if it was in a backward pass.
    """

    line: str
    torch_line: str | None
    file: str
    names: tuple[str, ...]
    backward: bool


def untraceable(error: BaseException, function: str, calls: Calls) -> TraceError | None:
    """Return a `TraceError` for an operation that a trace cannot record; `None` for other errors.

    Args:
        error: the exception of the trace.
        function: the name of the traced function in messages.
        calls: the calls of torch's functions in the trace.
    """
    found = _remedy(error)
    if found is None:
        return None
    what, remedy = found
    place = _place(traceback.extract_tb(error.__traceback__))
    own = (
        None
        if remedy in (_FORWARD, _HIGHER_ORDER, _NUMPY, _STORAGE, _SWAP)
        else _of_torch(error, place, calls)
    )
    if own is not None:
        what, remedy = own
    below = (
        ""
        if place.torch_line is None
        else f"\n\nwhich runs this line of torch:\n\n{place.torch_line}"
    )
    unknown = ", in a backward pass" if place.backward else ", in code without a file"
    here = f", here:\n\n{place.line}{below}" if place.line or below else unknown
    return TraceError(f"`{function}` cannot become one graph: {what}{here}\n\n{remedy}")


def _of_torch(error: BaseException, place: _Place, calls: Calls) -> tuple[str, str] | None:
    """Return message and remedy if torch's code reads a tensor's value; `None` if user code reads it."""
    # The callers, because versions of torch differ in the helpers of a function: in 2.15 one checks
    # the arguments of a distribution, in 2.13 `Distribution.__init__` itself.
    for name in place.names:
        if (place.file, name) in BY_TORCH_LINE:
            return BY_TORCH_LINE[place.file, name]
    is_ours = isinstance(error, _torch.DATA_DEPENDENT)
    operator = str(error.func).rpartition(".")[0] if is_ours else ""  # type: ignore[attr-defined]
    if place.backward:
        default = f"a backward pass runs {operator or 'an operator'}, which depends on values"
        return BACKWARD.get(operator, (default, _OF_TORCH.format("that part")))
    if place.torch_line is not None and is_ours and isinstance(error, _torch.DATA_DEPENDENT[1]):
        remedy = (
            f"Shapes are fixed when the function is traced. {_OF_TORCH.format('that function')}"
        )
        return "torch's own code makes a tensor whose shape depends on values", remedy
    if place.torch_line is not None:
        return "torch's own code asks for the values of tensors", _OF_TORCH.format("that function")
    if calls.function is None or all(each is not calls.error for each in causes(error)):
        return None
    name = _name(calls.function)
    if name in BY_FUNCTION:
        return BY_FUNCTION[name]
    short = name.rpartition(".")[2]
    own = operator.rpartition(".")[2]
    if not operator or short.strip("_") == own.strip("_") or short in _SPELLED.get(operator, ()):
        return None
    return f"{name} depends on the values of tensors", _OF_TORCH.format(name)


def _name(function: Any) -> str:
    name = resolve_name(function) or getattr(function, "__qualname__", repr(function))
    return str(name).replace("_VariableFunctionsClass.", "torch.")


def _place(frames: Sequence[traceback.FrameSummary]) -> _Place:
    ours = [i for i, frame in enumerate(frames) if not is_foreign(frame.filename)]
    line = user_line(frames) if ours else ""
    after = frames[ours[-1] + 1 :] if ours else frames
    backward = any(frame.name == "_engine_run_backward" for frame in after)
    files = ((frame, frame.filename.removeprefix(TORCH).replace(os.sep, "/")) for frame in after)
    found = [
        (frame, file)
        for frame, file in files
        if file.startswith(LIBRARY) and not calls_a_module(file, frame.name)
    ]
    if not found or backward:
        return _Place(line, None, "", (), backward)
    innermost, where = found[-1]
    same_file = itertools.takewhile(lambda each: each[1] == where, reversed(found))
    names = tuple(frame.name for frame, _ in same_file)
    return _Place(line, show(innermost), where, names, backward)


def _remedy(error: BaseException) -> tuple[str, str] | None:
    """Return message and remedy for an operation that a trace cannot record; `None` for other errors."""
    if isinstance(error, _torch.DATA_DEPENDENT):
        name = str(error.func).rpartition(".")[0]
        is_shape = isinstance(error, _torch.DATA_DEPENDENT[1])
        default = f"the {'shape' if is_shape else 'result'} of {name} depends on values"
        return _BY_OPERATOR.get(name, default), _SHAPE if is_shape else _VALUE
    if (refusal := dynamo_refusal(error)) is not None:
        operator, reason = refusal
        return f"{operator} refuses a function that it was given ({reason})", _HIGHER_ORDER
    text = str(error)
    if not isinstance(error, (RuntimeError, TypeError, ValueError)):
        return None
    if "FakeTensor.__format__" in text:
        return "it formats the value of a tensor", _VALUE
    if (
        "forward differentiable view operations" in text
        or "but got meta" in text
        or (type(error).__name__ == "FakeTensorDeviceMismatchError" and "devices, meta and" in text)
    ):
        return "it takes a derivative in forward mode that torch cannot trace", _FORWARD
    if ".numpy()" in text or "data pointer" in text:
        return "it hands a tensor to NumPy or asks for its memory", _NUMPY
    if "its data is not allocated yet" in text:
        return "a function of torch reads the values of a tensor", _OF_TORCH.format("it")
    if "UntypedStorage" in text:
        return "it reads or writes the storage of a tensor", _STORAGE
    if "Couldn't swap" in text or "Cannot swap" in text:
        return "it swaps tensors, as module.to(...) does", _SWAP
    if "get value out of a tracing tensor" in text or (
        text.startswith("vmap:") and ("data-dependent" in text or ".item()" in text)
    ):
        return _BY_OPERATOR["aten._local_scalar_dense"], _VALUE
    return None
