"""Errors for code in a model or a loss that torch's transforms (`torch.vmap`, `torch.func`) refuse.

Torch's own messages name no line of the user's, or the wrong cause.
"""

from __future__ import annotations

import os
import re
import traceback

import torch
from torch import nn

from ftrain.core._row_buffers import is_refused_write
from ftrain.core._user_line import user_line
from ftrain.core._words import one_line

__all__ = ["no_second_derivative", "unbound", "under_transforms"]

_LIBRARY = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "_library") + os.sep


_CUSTOM = (
    "a custom operator (torch.library.custom_op) has no gradient under torch's transforms, even with "
    "register_autograd",
    "Call the operator in the forward of a torch.autograd.Function that has setup_context and a vmap "
    "staticmethod, or loop over the rows instead of torch.vmap.",
)
_OLD_FUNCTION = (
    "an autograd.Function whose forward takes `ctx` cannot run under torch's transforms",
    "Write its forward without ctx and save tensors in a setup_context staticmethod; set "
    "generate_vmap_rule = True, or write a vmap staticmethod.",
)
_NO_RULE = (
    "an autograd.Function has no rule for torch.vmap",
    "Set generate_vmap_rule = True in the class (if its forward and backward use torch functions only), "
    "or write a vmap staticmethod.",
)
_REQUIRES_GRAD = (
    "requires_grad_() cannot be used under torch's transforms",
    "Take the inner gradient with ftrain.value_and_grad(fn)(x) or torch.func.grad(fn)(x) instead of "
    "x.requires_grad_() and torch.autograd.grad.",
)
_WRITE = (
    "an in-place write of values that have more dimensions than their target, or of values that "
    "torch.vmap maps over to a target that it does not map over (and that is not a buffer of the model)",
    "Write the out-of-place form (x = x + 1, not x += 1), or map over the target too (in_dims).",
)


_CAPTURED = (
    "an in-place write to a tensor from outside of the differentiated function (the batch, a captured "
    "tensor)",
    "Write the out-of-place form: x = x + 1, not x += 1.",
)
_VALUE = (
    "the value of a tensor that torch.vmap maps over cannot be read (`if`, bool(), float(), .item())",
    "Compute with tensors: torch.where(condition, a, b) or ftrain.cond instead of `if`.",
)
_TRACED = (
    "the value of a tensor cannot be read (`if`, bool(), float(), .item()) inside torch.func.linearize "
    "or another trace of torch's",
    "Compute with tensors: torch.where(condition, a, b) or ftrain.cond instead of `if`. Or write "
    "torch.func.jvp instead of torch.func.linearize, ftrain.compile instead of make_fx.",
)
_CUMULATIVE = (
    "a batch norm with momentum=None cannot be mapped by torch.vmap, because it reads the number of "
    "batches so far",
    "Give it a momentum, such as torch's default momentum=0.1.",
)
_BATCH_NORM = os.path.join(os.path.dirname(nn.__file__), "modules", "batchnorm.py")
_RECOMPUTED = (
    "torch.func.grad, vjp, jacrev and hessian cannot run inside a region that the backward pass "
    "recomputes (ftrain.remat, torch.utils.checkpoint)",
    "Write ftrain.value_and_grad(fn)(x), which can unless torch.vmap maps over the region, or leave "
    "this code out of the region.",
)
_DATA = (
    "x.data cannot be used under torch's transforms",
    "Write x.detach() to read it, and compute a new tensor instead of assigning to x.data.",
)


def under_transforms(error: Exception, *, in_trace: bool = False) -> RuntimeError | None:
    """Return a clearer error for code that torch's transforms refuse; `None` for any other error.

    Args:
        error: the error.
        in_trace: a trace raised it. Traces refuse reads of values too, and have their own message.
    """
    found = _found(error, in_trace)
    if found is None:
        return None
    what, remedy = found
    line = user_line(traceback.extract_tb(error.__traceback__))
    refusal = RuntimeError(f"{what}, here:\n\n{line}\n\n{remedy}")
    for note in getattr(error, "__notes__", ()):
        refusal.add_note(note)
    return refusal


def no_second_derivative(error: RuntimeError) -> NotImplementedError | None:
    """Return a clearer error for an operator without a second derivative; `None` for other errors."""
    found = re.search(r"derivative for '?((?:aten::)?\w+)'? is not implemented", str(error))
    if found is None:
        return None
    operator = found[1]
    remedy = (
        "Select the math kernel in the loss function: `with torch.nn.attention.sdpa_kernel("
        "torch.nn.attention.SDPBackend.MATH):` around the model's call."
        if "attention" in operator
        else "Write this operation with others that torch can differentiate twice."
    )
    return NotImplementedError(
        f"the function cannot be differentiated twice: torch has no derivative of {operator}, an "
        f"operator of its first derivative. {remedy}"
    )


def unbound(error: Exception) -> Exception:
    """Return a clearer error for a model that torch's transforms do not let `bind` read or build.

    Torch refuses to read the memory of a tensor that a transform has wrapped, such as a buffer that is
    made of a mapped value. Errors of other classes than torch's are returned unchanged.
    """
    if type(error) not in (RuntimeError, NotImplementedError):
        return error
    reason = one_line(error).rstrip(".")
    return RuntimeError(
        "bind: expected a model without tensors that depend on values that a transform (torch.vmap, "
        f"torch.func.grad) maps over or differentiates, got one that torch refuses: {reason}. Call "
        "ftrain.bind outside of the transformed function, and pass such values as params, buffers or "
        "arguments of the bound model."
    )


def _found(error: Exception, in_trace: bool) -> tuple[str, str] | None:
    """Return the operation that torch's transforms refused and a remedy; `None` for other errors."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if "must override the setup_context staticmethod" in text:
        return (
            _CUSTOM if any(file.startswith(_LIBRARY) for file in _files(error)) else _OLD_FUNCTION
        )
    if text.startswith("vmap:") and ".item()" in text and not in_trace:
        return _CUMULATIVE if _BATCH_NORM in _files(error) else _VALUE
    if "to get value out of a tracing tensor" in text and not in_trace:
        return _TRACED
    if "does not have vmap support" in text:
        return _NO_RULE
    if "attempting to call Tensor.requires_grad_()" in text:
        return _REQUIRES_GRAD
    if "that would mutate a captured Tensor" in text:
        return _CAPTURED
    if "don't yet support saved tensor hooks" in text:
        return _RECOMPUTED
    if text.startswith(("accessing `data` under", "mutating directly with `.data`")):
        return _DATA
    return _WRITE if is_refused_write(error) else None


def _files(error: Exception) -> list[str]:
    """Return the files of the frames of an error."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
